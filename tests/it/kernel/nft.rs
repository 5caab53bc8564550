//! The nft plane in network namespaces: what clients on the host, in containers and on the backend's own host see of
//! its VIPs.
//!
//! It drives the plane itself; choosing between planes is not its business.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::Protocol::{Tcp, Udp};
use l4_vip::kernel::nft::{Nft, NftConfig, Ownership};
use l4_vip::kernel::{Change, Frontend, KernelPlane, Service};
use tests::netns::{Netns, is_root};

use super::peers::{
    Cluster, Connection, VIP, ask, eventually, frontend, names, reached, refusal, service, set, tcp_backend,
    udp_backend, udp_client,
};

/// The plane of a host.
pub fn open(host: &Netns) -> anyhow::Result<Nft> {
    open_as(host, Ownership::Exclusive)
}

pub fn open_as(host: &Netns, ownership: Ownership) -> anyhow::Result<Nft> {
    let pools = ["11.0.0.0/8", "fd01:c::/64"].map(|pool| pool.parse().expect("a network"));
    Ok(host.run(|| Nft::open(NftConfig { pools: pools.into(), ownership }))?)
}

#[test]
fn host_reaches_a_vip_and_nothing_else_of_its_address() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    // Whoever listens on all addresses must not be reached by a VIP's address.
    tcp_backend(&host, "0.0.0.0:81", b'x')?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let u = udp_backend(&host, "127.0.0.1:0", b'u')?;
    let mut nft = open(&host)?;
    nft.apply(&[
        set(Tcp, VIP, &[(a, 1), (b, 3)]),
        set(Udp, VIP, &[(u, 1)]),
        set(Tcp, "11.1.2.3:90", &[]),
        set(Tcp, "11.1.2.3:91", &[(a, 0)]),
        set(Udp, "11.1.2.3:90", &[]),
    ])?;
    let by_backend = reached(&host, VIP, 200)?;
    assert_eq!(names(&by_backend), "ab");
    assert!((100..200).contains(&by_backend[&b'b']), "a weight of 3 in 4: {by_backend:?}");
    assert_eq!(ask(&udp_client(&host, VIP)?)?, b'u');
    for port in [81, 90, 91, 22] {
        let (kind, after) = refusal(&host, &format!("11.1.2.3:{port}"));
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "port {port}");
        assert!(after < Duration::from_millis(500), "port {port}: refused after {after:?}");
    }
    for port in [90, 53] {
        let kind = ask(&udp_client(&host, &format!("11.1.2.3:{port}"))?).err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "UDP port {port}");
    }
    let counters: BTreeMap<Frontend, _> = nft.count()?.frontends.into_iter().collect();
    assert_eq!(counters[&frontend(Tcp, VIP)].n_connections, 200);
    assert_eq!(counters[&frontend(Udp, VIP)].n_connections, 1);
    assert_eq!(counters[&frontend(Tcp, "11.1.2.3:90")].n_refused, 1);
    assert_eq!(counters[&frontend(Tcp, "11.1.2.3:90")].n_connections, 0);
    // People and other programs read the rules with nft(8). A small Debian has no names of protocols.
    assert!(host.output("nft", "-p list ruleset")?.contains("11.1.2.3 . 6 . 90"));
    Ok(())
}

#[test]
fn containers_hosts_and_backends_themselves_reach_a_vip() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Cluster { host, containers: [one, two], other } = Cluster::new()?;
    let mut nft = open(&host)?;
    for (vip, local, remote) in [
        (VIP, ["172.30.0.2:8080", "172.30.0.3:8080"], ["10.1.0.2:8080", "10.1.0.1"]),
        ("[fd01:c::5]:80", ["[fd03::2]:8080", "[fd03::3]:8080"], ["[fd02::2]:8080", "fd02::1"]),
    ] {
        let a = tcp_backend(&one, local[0], b'a')?;
        let b = tcp_backend(&two, local[1], b'b')?;
        let o = tcp_backend(&other, remote[0], b'o')?;
        nft.apply(&[set(Tcp, vip, &[(a, 1), (b, 1)])])?;
        for (place, role) in [(&host, "the host"), (&one, "a backend itself"), (&two, "the other backend")] {
            assert_eq!(names(&reached(place, vip, 40)?), "ab", "{role} to {vip}");
        }
        for port in [22, 8080] {
            let address = SocketAddr::new(vip.parse::<SocketAddr>()?.ip(), port).to_string();
            let (kind, _) = refusal(&one, &address);
            assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "a container to {address}");
        }
        // Where answers come back this way anyhow, backends see the client itself.
        nft.apply(&[set(Tcp, vip, &[(o, 1)])])?;
        assert_eq!(Connection::open(&host, vip)?.client, remote[1].parse::<IpAddr>()?, "{vip}");
        assert_eq!(Connection::open(&two, vip)?.client, b.ip(), "{vip}");
    }
    Ok(())
}

#[test]
fn draining_keeps_the_old_and_moves_the_new() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let mut nft = open(&host)?;
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let mut old = (0..5).map(|_| Connection::open(&host, VIP)).collect::<io::Result<Vec<_>>>()?;
    nft.apply(&[set(Tcp, VIP, &[(a, 0), (b, 1)])])?;
    assert_eq!(names(&reached(&host, VIP, 20)?), "b");
    for connection in &mut old {
        connection.ping()?;
    }
    Ok(())
}

#[test]
fn connections_outlive_the_last_vip() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open(&host)?;
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let mut old = (0..50).map(|_| Connection::open(&host, VIP)).collect::<io::Result<Vec<_>>>()?;
    nft.apply(&[Change::Remove(frontend(Tcp, VIP))])?;
    assert_eq!(refusal(&host, VIP).0, Some(ErrorKind::ConnectionRefused));
    for connection in &mut old {
        connection.ping()?;
    }
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    assert_eq!(names(&reached(&host, VIP, 5)?), "a");
    for connection in &mut old {
        connection.ping()?;
    }
    Ok(())
}

#[test]
fn a_client_with_affinity_keeps_its_backend_while_it_is_there() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let backends: Vec<SocketAddr> =
        (b'a'..b'f').map(|name| tcp_backend(&host, "127.0.0.1:0", name)).collect::<anyhow::Result<_>>()?;
    let mut nft = open(&host)?;
    let with = |backends: &[SocketAddr]| {
        let backends: Vec<_> = backends.iter().map(|backend| (*backend, 1)).collect();
        Change::Set(Service {
            affinity: Some(Duration::from_secs(600)),
            ..service(frontend(Tcp, VIP), &backends)
        })
    };
    nft.apply(&[with(&backends)])?;
    let first = reached(&host, VIP, 30)?;
    assert_eq!(first.len(), 1, "{first:?}");
    let mine = usize::from(*first.keys().next().expect("it has one") - b'a');
    let without_another: Vec<_> = (0..5).filter(|n| *n != (mine + 1) % 5).map(|n| backends[n]).collect();
    nft.apply(&[with(&without_another)])?;
    assert_eq!(names(&reached(&host, VIP, 30)?), names(&first));
    let without_mine: Vec<_> = (0..5).filter(|n| *n != mine).map(|n| backends[n]).collect();
    nft.apply(&[with(&without_mine)])?;
    let second = reached(&host, VIP, 30)?;
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(names(&second), names(&first));
    Ok(())
}

#[test]
fn a_client_with_affinity_is_forgotten_when_its_time_is_up() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let backends: Vec<(SocketAddr, u16)> = (b'a'..b'i')
        .map(|name| Ok((tcp_backend(&host, "127.0.0.1:0", name)?, 1)))
        .collect::<anyhow::Result<_>>()?;
    let mut nft = open(&host)?;
    let affinity = Some(Duration::from_secs(1));
    nft.apply(&[Change::Set(Service { affinity, ..service(frontend(Tcp, VIP), &backends) })])?;
    let remembered = || host.output("nft", "-p list map inet waymark sessions4");
    let mut seen = String::new();
    // Out of ten draws from eight backends, two at least differ.
    for _ in 0..10 {
        let first = Connection::open(&host, VIP)?.backend;
        assert!(remembered()?.contains("11.1.2.3 . 6 . 80"), "{}", remembered()?);
        assert_eq!(Connection::open(&host, VIP)?.backend, first);
        seen.push(char::from(first));
        eventually(|| Ok(!remembered()?.contains("expires")))?;
        if seen.chars().any(|name| name != char::from(first)) {
            // The rules can be read, these too.
            host.output("nft", "list ruleset")?;
            return Ok(());
        }
    }
    anyhow::bail!("always the same: {seen}")
}
