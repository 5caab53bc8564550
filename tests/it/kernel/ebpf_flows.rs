//! UDP sockets whose backend goes, by the eBPF plane: how soon they leave it, connected or not.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use event_watcher::catalog::Protocol::Udp;
use l4_vip::kernel::KernelPlane;
use tests::client::DEADLINE;
use tests::netns::is_root;

use super::host::{Host, open_ebpf};
use super::peers::{VIP, ask, eventually, set, udp_backend, udp_client};

#[test]
fn datagrams_leave_a_backend_that_goes() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    let [a, b] =
        [udp_backend(&host.netns, "127.0.0.1:0", b'a')?, udp_backend(&host.netns, "127.0.0.1:0", b'b')?];
    let mut plane = open_ebpf(&host.netns, &host.cgroup)?;
    plane.reconcile(&[])?;
    plane.apply(&[set(Udp, VIP, &[(a, 1)])])?;
    let connect = || host.run(|| udp_client(&host.netns, VIP));
    let connected = connect()?;
    let unconnected = host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    unconnected.set_read_timeout(Some(DEADLINE))?;
    let ask_by_address = || -> io::Result<u8> {
        let mut name = [0];
        host.run(|| unconnected.send_to(b"?", VIP))?;
        unconnected.recv(&mut name)?;
        Ok(name[0])
    };
    assert_eq!((ask(&connected)?, ask_by_address()?), (b'a', b'a'));

    // Connected sockets are ended in the network namespace that the plane runs in.
    host.run(|| plane.apply(&[set(Udp, VIP, &[(b, 1)])]))?;
    let after = eventually(|| Ok(ask(&connected).is_err_and(|e| e.kind() != io::ErrorKind::TimedOut)))?;
    assert!(after < Duration::from_secs(1), "told after {after:?}");
    assert_eq!(ask(&connect()?)?, b'b', "a new socket");
    assert_eq!(ask_by_address()?, b'b', "the same socket");

    host.run(|| plane.apply(&[set(Udp, VIP, &[])]))?;
    assert_eq!(ask_by_address().map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
    host.run(|| plane.flush())?;
    Ok(())
}

#[test]
fn a_socket_that_speaks_to_several_vips_hears_each_of_them() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    const OTHER: &str = "11.1.2.4:53";
    let host = Host::new()?;
    let [a, b, c] = [b'a', b'b', b'c'].map(|name| udp_backend(&host.netns, "127.0.0.1:0", name));
    let (a, b, c) = (a?, b?, c?);
    let mut plane = open_ebpf(&host.netns, &host.cgroup)?;
    plane.reconcile(&[])?;
    plane.apply(&[set(Udp, VIP, &[(a, 1)]), set(Udp, OTHER, &[(b, 1)])])?;
    let socket = host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let speak_to = |vip: &str| {
        host.run(|| {
            let mut name = [0];
            socket.send_to(b"?", vip)?;
            let (_, from) = socket.recv_from(&mut name)?;
            anyhow::ensure!(from == vip.parse()?, "{vip} answers as {from}");
            Ok(char::from(name[0]))
        })
    };
    for _ in 0..3 {
        assert_eq!((speak_to(VIP)?, speak_to(OTHER)?), ('a', 'b'));
    }
    plane.apply(&[set(Udp, VIP, &[(c, 1)])])?;
    for _ in 0..3 {
        assert_eq!((speak_to(OTHER)?, speak_to(VIP)?), ('b', 'c'));
    }
    // Who names a backend himself hears that.
    let stranger = host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    stranger.set_read_timeout(Some(DEADLINE))?;
    let from = host.run(|| stranger.send_to(b"?", b).and_then(|_| stranger.recv_from(&mut [0])))?.1;
    assert_eq!(from, b);

    // Connected to one VIP and then to another.
    host.run(|| {
        for (vip, name) in [(VIP, 'c'), (OTHER, 'b')] {
            socket.connect(vip)?;
            socket.send(b"?")?;
            let mut said = [0];
            let (_, from) = socket.recv_from(&mut said)?;
            assert_eq!((from, char::from(said[0])), (vip.parse()?, name));
            assert_eq!(socket.peer_addr()?, vip.parse()?);
        }
        anyhow::Ok(())
    })?;
    host.run(|| plane.flush())?;
    Ok(())
}
