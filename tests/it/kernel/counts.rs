//! What the kernel planes count of each backend: connections, bytes, and connects that failed.
//!
//! What people see of it is tested with the program as a whole, in `planes`.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use anyhow::Context as _;
use event_watcher::catalog::Protocol::{Tcp, Udp};
use l4_vip::kernel::{Change, Counted, Frontend, KernelCounters, KernelPlane};
use tests::netns::{Netns, is_root};

use super::host::{EBPF, Host, NFT};
use super::nft::open;
use super::peers::{
    Cluster, Connection, VIP, eventually, frontend, service, set, tcp_backend, udp_backend, udp_client,
};

fn counted(plane: &mut dyn KernelPlane, backend: SocketAddr) -> anyhow::Result<KernelCounters> {
    counted_of(plane, frontend(Tcp, VIP), backend)
}

fn counted_of(
    plane: &mut dyn KernelPlane,
    frontend: Frontend,
    backend: SocketAddr,
) -> anyhow::Result<KernelCounters> {
    Ok(backend_in(&plane.count()?, frontend, backend))
}

fn backend_in(counted: &Counted, frontend: Frontend, backend: SocketAddr) -> KernelCounters {
    let own = counted.backends.iter().find(|(vip, address, _)| *vip == frontend && *address == backend);
    own.map(|(_, _, counters)| *counters).unwrap_or_default()
}

fn total(plane: &mut dyn KernelPlane, frontend: Frontend) -> anyhow::Result<KernelCounters> {
    Ok(vip_in(&plane.count()?, frontend))
}

fn vip_in(counted: &Counted, frontend: Frontend) -> KernelCounters {
    let own = counted.frontends.iter().find(|(vip, _)| *vip == frontend);
    own.map(|(_, total)| *total).unwrap_or_default()
}

#[test]
fn connections_are_counted_for_each_backend_whatever_changes_beside_it() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    for open in [NFT, EBPF] {
        let host = Host::new()?;
        let [a, b] =
            [tcp_backend(&host.netns, "127.0.0.1:0", b'a')?, tcp_backend(&host.netns, "127.0.0.1:0", b'b')?];
        let mut plane = open(&host)?;
        plane.reconcile(&[])?;
        let mut n = [0, 0];
        let mut n_before = [0, 0];
        // The backends change places, and one leaves for a while but for what it still has to finish.
        for weights in [[1, 1], [3, 1], [0, 1], [1, 2], [1, 0], [2, 5]] {
            plane.apply(&[set(Tcp, VIP, &[(a, weights[0]), (b, weights[1])])])?;
            for _ in 0..20 {
                let name = host.run(|| Connection::open_here(VIP))?.backend;
                n[usize::from(name == b'b')] += 1;
            }
            let now = [counted(&mut *plane, a)?.n_connections, counted(&mut *plane, b)?.n_connections];
            assert_eq!(now, n, "{:?} {weights:?}", plane.kind());
            assert!(now.iter().zip(n_before).all(|(now, before)| *now >= before));
            n_before = n;
        }
        assert_eq!(plane.count()?.frontends[0].1.n_connections, n.iter().sum::<u64>());
        // Who was away comes back as a stranger.
        plane.apply(&[set(Tcp, VIP, &[(b, 1)])])?;
        plane.apply(&[set(Tcp, VIP, &[(a, 0), (b, 1)])])?;
        assert_eq!(counted(&mut *plane, a)?.n_connections, 0, "{:?}", plane.kind());
        host.run(|| plane.flush())?;
    }
    Ok(())
}

#[test]
fn ebpf_counts_bytes_when_a_connection_ends_and_connects_that_fail() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    let a = tcp_backend(&host.netns, "127.0.0.1:0", b'a')?;
    let nobody = host.netns.run(|| TcpListener::bind("127.0.0.1:0"))?.local_addr()?;
    let mut plane = EBPF(&host)?;
    assert!(plane.counts(Tcp).bytes && !plane.counts(Udp).bytes, "what is not counted is not 0");
    plane.reconcile(&[])?;
    plane.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let greeting = 4 + "127.0.0.1".len() as u64;
    let talk = |n_pings: u64| -> anyhow::Result<Connection> {
        let mut connection = host.run(|| Connection::open_here(VIP))?;
        (0..n_pings).try_for_each(|_| connection.ping())?;
        Ok(connection)
    };
    // The end of a connection may count as a byte in each direction.
    let is = |counted: u64, expect: u64, n_ends: u64| (expect..=expect + n_ends).contains(&counted);
    drop(talk(1000)?);
    eventually(|| Ok(counted(&mut *plane, a)?.bytes_in > 0))?;
    let first = counted(&mut *plane, a)?;
    assert!(is(first.bytes_in, 4000, 1) && is(first.bytes_out, greeting + 4000, 1), "{first:?}");
    let mut kept = talk(10)?;
    assert_eq!(counted(&mut *plane, a)?.bytes_in, first.bytes_in, "it has not ended");

    // The backend goes before its connection does: the VIP's total has both.
    plane.apply(&[set(Tcp, VIP, &[(nobody, 1)])])?;
    kept.ping()?;
    drop(kept);
    let mut total = || anyhow::Ok(plane.count()?.frontends[0].1);
    eventually(|| Ok(total()?.bytes_in > first.bytes_in))?;
    let second = total()?;
    assert!(is(second.bytes_in, 4044, 2) && is(second.bytes_out, 2 * greeting + 4044, 2), "{second:?}");
    assert_eq!(second.n_connect_failures, 0);

    for n in 1..4 {
        assert!(host.run(|| Connection::open_here(VIP)).is_err());
        let failed = counted(&mut *plane, nobody)?;
        assert_eq!((failed.n_connections, failed.n_connect_failures, failed.bytes_in), (n, n, 0));
    }
    host.run(|| plane.flush())?;
    Ok(())
}

const N_QUESTIONS: u64 = 10;
const QUESTION: &[u8] = &[b'q'; 32];
/// The backend puts its name and port before it.
const ANSWER_BYTES: u64 = QUESTION.len() as u64 + 3;

/// How many datagrams may have been counted each way: a question that gets no answer is asked again.
fn ask_all(client: &UdpSocket) -> anyhow::Result<RangeInclusive<u64>> {
    let mut n_sent = 0;
    for _ in 0..N_QUESTIONS {
        eventually(|| {
            client.send(QUESTION)?;
            n_sent += 1;
            Ok(client.recv(&mut [0; 64]).is_ok())
        })?;
    }
    Ok(N_QUESTIONS..=n_sent)
}

/// The plane reads what connection tracking counts a few times a second.
fn eventually_counted(
    nft: &mut dyn KernelPlane,
    of: impl Fn(&mut dyn KernelPlane) -> anyhow::Result<KernelCounters>,
    is_right: impl Fn(&KernelCounters) -> bool,
) -> anyhow::Result<KernelCounters> {
    let mut last = KernelCounters::default();
    eventually(|| {
        last = of(nft)?;
        Ok(is_right(&last))
    })
    .with_context(|| format!("{last:?}"))?;
    Ok(last)
}

#[test]
fn nft_counts_the_bytes_of_each_packet_once_wherever_clients_and_backends_are() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Cluster { host, containers: [one, two], other } = Cluster::new()?;
    let mut nft = open(&host)?;
    // Headers of IP and UDP.
    for (vip, headers, addresses) in [
        ("11.1.2.3:53", 20 + 8, ["127.0.0.1", "10.1.0.1", "10.1.0.2", "172.30.0.2", "172.30.0.3"]),
        ("[fd01:c::5]:53", 40 + 8, ["[::1]", "[fd02::1]", "[fd02::2]", "[fd03::2]", "[fd03::3]"]),
    ] {
        let [_, of_host, of_other, of_one, of_two] = addresses;
        let local = if headers > 28 { of_host } else { addresses[0] };
        for (client, backend, address, what) in [
            (&host, &host, local, "a host and itself"),
            (&host, &other, of_other, "a host and another"),
            (&host, &one, of_one, "a host and its container"),
            (&one, &other, of_other, "a container and another host"),
            (&one, &host, of_host, "a container and its host"),
            (&one, &two, of_two, "two containers of a bridge"),
            (&one, &one, of_one, "a container and itself"),
        ] {
            let backend = udp_backend(backend, &format!("{address}:0"), b'u')?;
            nft.apply(&[set(Udp, vip, &[(backend, 1)])])?;
            let before = total(&mut nft, frontend(Udp, vip))?;
            let n_datagrams = ask_all(&udp_client(client, vip)?)?;
            let [question, answer] = [headers + QUESTION.len() as u64, headers + ANSWER_BYTES];
            let are = |n_bytes: u64, each: u64| {
                n_bytes.is_multiple_of(each) && n_datagrams.contains(&(n_bytes / each))
            };
            let mut last = Counted::default();
            eventually(|| {
                last = nft.count()?;
                let [own, of_all] =
                    [backend_in(&last, frontend(Udp, vip), backend), vip_in(&last, frontend(Udp, vip))];
                let grown = [of_all.bytes_in - before.bytes_in, of_all.bytes_out - before.bytes_out];
                let is_with_those_that_left = grown == [own.bytes_in, own.bytes_out];
                Ok(are(own.bytes_in, question) && are(own.bytes_out, answer) && is_with_those_that_left)
            })
            .with_context(|| format!("{vip}: {what}: {n_datagrams:?} datagrams, {before:?}, {last:?}"))?;
        }
    }
    Ok(())
}

/// Bytes from clients and to them, as connection tracking itself has counted them.
fn tracked(host: &Netns, words: &str) -> anyhow::Result<[u64; 2]> {
    let entries = host.output("conntrack", &format!("-L {words}"))?;
    let numbers = entries.split_whitespace().filter_map(|word| word.strip_prefix("bytes="));
    let numbers: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>()?;
    Ok([numbers.iter().step_by(2).sum(), numbers.iter().skip(1).step_by(2).sum()])
}

#[test]
fn nft_counts_bytes_of_tcp_as_connection_tracking_does_whatever_becomes_of_backend_and_agent()
-> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let mut nft = open(&host)?;
    let bytes = |counters: KernelCounters| [counters.bytes_in, counters.bytes_out];
    let agree = |nft: &mut dyn KernelPlane| {
        eventually(|| {
            let all = tracked(&host, "-p tcp --orig-dst 11.1.2.3")?;
            Ok(all == bytes(total(nft, frontend(Tcp, VIP))?))
        })
    };
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let mut to_a = Connection::open(&host, VIP)?;
    (0..100).try_for_each(|_| to_a.ping())?;
    agree(&mut nft)?;
    let [bytes_in, bytes_out] = bytes(counted(&mut nft, a)?);
    assert!(bytes_in > 100 * 44 && bytes_out > 100 * 44, "{bytes_in} {bytes_out}");
    nft.apply(&[set(Tcp, VIP, &[(a, 0), (b, 1)])])?;
    let mut to_b = Connection::open(&host, VIP)?;
    (0..10).try_for_each(|_| to_b.ping())?;
    agree(&mut nft)?;
    // An acknowledgement may come late.
    let drained = bytes(counted(&mut nft, a)?);
    let is_kept = |now: u64, before: u64| (before..before + 100).contains(&now);
    assert!(is_kept(drained[0], bytes_in) && is_kept(drained[1], bytes_out), "it stays while it drains");

    // Another agent takes over, twice, and one of the backends leaves before its connection ends.
    let all = [service(frontend(Tcp, VIP), &[(b, 1)])];
    nft.apply(&[Change::Set(all[0].clone())])?;
    drop(nft);
    let mut nft = open(&host)?;
    assert_eq!(nft.reconcile(&all)?, 0, "nothing is left to be done");
    eventually_counted(&mut nft, |nft| counted(nft, b), |of_b| of_b.bytes_in > 10 * 44)?;
    to_a.ping()?;
    to_b.ping()?;
    agree(&mut nft)?;
    nft.reconcile(&[service(frontend(Tcp, VIP), &[(a, 1)])])?;
    to_a.ping()?;
    to_b.ping()?;
    agree(&mut nft)?;
    let [again, _] = bytes(counted(&mut nft, a)?);
    assert!((1..bytes_in).contains(&again), "who was away comes back as a stranger: {again}");

    // What connection tracking forgets has been counted.
    to_a.ping()?;
    to_b.ping()?;
    let last = tracked(&host, "-p tcp --orig-dst 11.1.2.3")?;
    host.output("conntrack", "-D -p tcp --orig-dst 11.1.2.3")?;
    eventually_counted(
        &mut nft,
        |nft| total(nft, frontend(Tcp, VIP)),
        |total| {
            // An acknowledgement may have come between.
            bytes(*total).iter().zip(last).all(|(counted, last)| is_kept(*counted, last))
        },
    )?;
    Ok(())
}

#[test]
fn nft_counts_connects_that_fail() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let nobody = host.run(|| TcpListener::bind("127.0.0.1:0"))?.local_addr()?;
    let mut nft = open(&host)?;
    assert!(nft.counts(Tcp).connect_failures && !nft.counts(Udp).connect_failures);
    nft.apply(&[set(Tcp, VIP, &[(nobody, 1)])])?;
    for n in 1..4 {
        assert!(Connection::open(&host, VIP).is_err());
        eventually_counted(&mut nft, |nft| counted(nft, nobody), |of| of.n_connect_failures == n)?;
    }
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    Connection::open(&host, VIP)?.ping()?;
    host.output("conntrack", "-D -p tcp --orig-dst 11.1.2.3")?;
    // The next that fails is heard of after the end of the one that did not.
    nft.apply(&[set(Tcp, VIP, &[(a, 0), (nobody, 1)])])?;
    assert!(Connection::open(&host, VIP).is_err());
    eventually_counted(&mut nft, |nft| counted(nft, nobody), |of| of.n_connect_failures == 1)?;
    let of_a = counted(&mut nft, a)?;
    assert!(of_a.n_connect_failures == 0 && of_a.bytes_out > 0, "{of_a:?}");
    assert_eq!(total(&mut nft, frontend(Tcp, VIP))?.n_connect_failures, 4);

    let accounting = || host.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct"));
    assert_eq!(accounting()?.trim(), "1");
    host.run(|| nft.flush())?;
    assert_eq!(accounting()?.trim(), "0", "as it was");
    Ok(())
}

#[test]
fn nft_counts_no_bytes_of_datagrams_that_are_refused() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let u = udp_backend(&host, "127.0.0.1:0", b'u')?;
    let mut nft = open(&host)?;
    nft.apply(&[set(Udp, VIP, &[(u, 1)])])?;
    let n_datagrams = ask_all(&udp_client(&host, VIP)?)?;
    nft.apply(&[set(Udp, VIP, &[])])?;
    let of_vip = |nft: &mut dyn KernelPlane| total(nft, frontend(Udp, VIP));
    let is_all = |n_bytes: u64, each: u64| n_datagrams.contains(&(n_bytes / (28 + each)));
    let before = eventually_counted(&mut nft, of_vip, |of_who_has_left| {
        is_all(of_who_has_left.bytes_in, QUESTION.len() as u64)
            && is_all(of_who_has_left.bytes_out, ANSWER_BYTES)
    })?;
    let refused = udp_client(&host, VIP)?;
    refused.send(QUESTION)?;
    assert!(refused.recv(&mut [0; 64]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused));
    // One more that is counted, so that the refused one would have been.
    nft.apply(&[set(Udp, VIP, &[(u, 1)])])?;
    let more = ask_all(&udp_client(&host, VIP)?)?;
    let grown =
        |after: u64, before: u64, each: usize| more.contains(&((after - before) / (28 + each as u64)));
    let after = eventually_counted(&mut nft, of_vip, |after| {
        grown(after.bytes_in, before.bytes_in, QUESTION.len())
            && grown(after.bytes_out, before.bytes_out, ANSWER_BYTES as usize)
    })?;
    assert_eq!(after.n_refused, 1);
    Ok(())
}
