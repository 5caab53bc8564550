//! What the kernel planes count of each backend: connections, and with eBPF bytes and connects that failed.
//!
//! What people see of it is tested with the program as a whole, in `planes`.

use std::net::{SocketAddr, TcpListener};

use event_watcher::catalog::Protocol::Tcp;
use l4_vip::kernel::{KernelCounters, KernelPlane};
use tests::netns::is_root;

use super::host::{EBPF, Host, NFT};
use super::peers::{Connection, VIP, eventually, frontend, set, tcp_backend};

fn counted(plane: &mut dyn KernelPlane, backend: SocketAddr) -> anyhow::Result<KernelCounters> {
    let of_all = plane.count()?.backends;
    let own = of_all.into_iter().find(|(vip, address, _)| *vip == frontend(Tcp, VIP) && *address == backend);
    Ok(own.map(|(_, _, counters)| counters).unwrap_or_default())
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
