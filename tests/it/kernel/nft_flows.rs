//! What connection tracking remembers of backends that are gone, and how soon the nft plane makes it forget.
//!
//! Connections whose backend only drains are not ended by anybody, and not tested here.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol::{Tcp, Udp};
use l4_vip::kernel::KernelPlane;
use tests::netns::{Netns, is_root};

use super::nft::open;
use super::peers::{Cluster, Connection, VIP, ask, eventually, set, tcp_backend, udp_backend, udp_client};

#[test]
fn datagrams_leave_a_backend_that_goes() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [udp_backend(&host, "127.0.0.1:0", b'a')?, udp_backend(&host, "127.0.0.1:0", b'b')?];
    let mut nft = open(&host)?;
    nft.apply(&[set(Udp, VIP, &[(a, 1)])])?;
    let client = udp_client(&host, VIP)?;
    assert_eq!(ask(&client)?, b'a');
    nft.apply(&[set(Udp, VIP, &[(b, 1)])])?;
    let after = eventually(|| Ok(ask(&client).is_ok_and(|name| name == b'b')))?;
    assert!(after < Duration::from_secs(1), "left after {after:?}");
    nft.apply(&[set(Udp, VIP, &[])])?;
    let is_refused = || Ok(ask(&client).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
    let after = eventually(is_refused)?;
    assert!(after < Duration::from_secs(1), "refused after {after:?}");
    // The refused flow must not keep the client from the next backend.
    nft.apply(&[set(Udp, VIP, &[(a, 1)])])?;
    let after = eventually(|| Ok(ask(&client).is_ok_and(|name| name == b'a')))?;
    assert!(after < Duration::from_secs(1), "back after {after:?}");
    Ok(())
}

/// By default for 120 s, in which the client could not use its port again.
#[test]
fn a_connection_is_remembered_no_longer_than_a_second_after_its_end() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open(&host)?;
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let connection = Connection::open(&host, VIP)?;
    let entries = || host.output("conntrack", "-L -p tcp --orig-dst 11.1.2.3");
    assert!(entries()?.contains("ESTABLISHED"));
    drop(connection);
    eventually(|| Ok(!entries()?.contains("11.1.2.3")))?;
    Ok(())
}

/// The port of a task that has ended is another app's.
#[test]
fn w38_the_kernel_forgets_flows_to_a_port_that_another_app_got() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    const OF_NEXT: &str = "11.1.2.4:80";
    let host = Netns::new("host")?;
    let [reused, other] =
        [udp_backend(&host, "127.0.0.1:0", b'r')?, udp_backend(&host, "127.0.0.1:0", b'o')?];
    let mut nft = open(&host)?;
    nft.apply(&[set(Udp, VIP, &[(reused, 1)])])?;
    let client = udp_client(&host, VIP)?;
    assert_eq!(ask(&client)?, b'r');
    let flows = || host.output("conntrack", "-L -p udp --orig-dst 11.1.2.3");
    let of_reused = format!("sport={} ", reused.port());
    assert!(flows()?.contains(&of_reused), "the kernel knows the flow: {}", flows()?);
    nft.apply(&[set(Udp, VIP, &[(other, 1)]), set(Udp, OF_NEXT, &[(reused, 1)])])?;
    let after = eventually(|| Ok(!flows()?.contains(&of_reused)))?;
    assert!(after < Duration::from_secs(1), "forgotten after {after:?}");
    assert_eq!(ask(&client)?, b'o', "the same socket");
    assert_eq!(ask(&udp_client(&host, OF_NEXT)?)?, b'r');
    Ok(())
}

#[test]
fn connections_to_a_dead_backend_end_when_it_goes() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Cluster { host, containers: [one, two], other: _other } = Cluster::new()?;
    let a = tcp_backend(&one, "172.30.0.2:8080", b'a')?;
    let b = tcp_backend(&two, "172.30.0.3:8080", b'b')?;
    let mut nft = open(&host)?;
    nft.apply(&[set(Tcp, VIP, &[(a, 1)])])?;
    let mut to_dead = Connection::open(&host, VIP)?;
    nft.apply(&[set(Tcp, VIP, &[(b, 1)])])?;
    let mut to_living = Connection::open(&host, VIP)?;
    one.ip("link set eth0 down")?;
    nft.apply(&[set(Tcp, VIP, &[])])?;
    let started = Instant::now();
    assert_eq!(to_dead.ping().map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert!(started.elapsed() < Duration::from_secs(5), "reset after {:?}", started.elapsed());
    to_living.ping()?;
    Ok(())
}
