//! The eBPF plane where connections leave the host: from the host and from containers, to containers, to another host
//! and back to whoever connects.
//!
//! All of them share one kernel and one control group; the network between them is real.

use std::io;
use std::net::{IpAddr, UdpSocket};

use event_watcher::catalog::Protocol::{Tcp, Udp};
use l4_vip::kernel::KernelPlane;
use tests::cgroup::Cgroup;
use tests::client::DEADLINE;
use tests::netns::{Netns, is_root};

use super::host::open_ebpf;
use super::peers::{Cluster, Connection, VIP, set, tcp_backend, udp_backend};

const DATAGRAMS: &str = "11.1.2.3:53";

#[test]
fn hosts_containers_and_backends_themselves_reach_a_vip() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Cluster { host, containers: [one, two], other } = Cluster::new()?;
    let cgroup = Cgroup::new()?;
    let mut plane = open_ebpf(&host, &cgroup)?;
    plane.reconcile(&[])?;
    let connect = |place: &Netns, vip| place.run(|| cgroup.run(|| Connection::open_here(vip)));
    for (vip, local, remote) in [
        (VIP, ["172.30.0.2:8080", "172.30.0.3:8080"], ["10.1.0.2:8080", "10.1.0.1"]),
        ("[fd01:c::5]:80", ["[fd03::2]:8080", "[fd03::3]:8080"], ["[fd02::2]:8080", "fd02::1"]),
    ] {
        let a = tcp_backend(&one, local[0], b'a')?;
        let b = tcp_backend(&two, local[1], b'b')?;
        let o = tcp_backend(&other, remote[0], b'o')?;
        plane.apply(&[set(Tcp, vip, &[(a, 1), (b, 1), (o, 1)])])?;
        for (place, role) in [(&host, "the host"), (&one, "a container"), (&other, "another host")] {
            let mut names: Vec<u8> =
                (0..40).map(|_| Ok(connect(place, vip)?.backend)).collect::<io::Result<_>>()?;
            names.sort_unstable();
            names.dedup();
            assert_eq!(names, b"abo", "{role} to {vip}");
        }
        // Nothing is translated on the way, so backends see the client itself, also in itself.
        plane.apply(&[set(Tcp, vip, &[(o, 1)])])?;
        assert_eq!(connect(&host, vip)?.client, remote[1].parse::<IpAddr>()?, "{vip}");
        assert_eq!(connect(&two, vip)?.client, b.ip(), "{vip}");
        plane.apply(&[set(Tcp, vip, &[(a, 1)])])?;
        assert_eq!(connect(&one, vip)?.client, a.ip(), "{vip}");
    }
    let near = udp_backend(&one, "172.30.0.2:5353", b'n')?;
    let far = udp_backend(&other, "10.1.0.2:5353", b'f')?;
    for (backend, name) in [(near, b'n'), (far, b'f')] {
        plane.apply(&[set(Udp, DATAGRAMS, &[(backend, 1)])])?;
        for place in [&host, &one, &two] {
            let (heard, from) = place.run(|| cgroup.run(ask_once))?;
            assert_eq!((heard, from), (name, DATAGRAMS.to_owned()));
        }
    }
    plane.flush()?;
    Ok(())
}

/// The name of the backend, and who it says that it is.
fn ask_once() -> io::Result<(u8, String)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send_to(b"?", DATAGRAMS)?;
    let mut answer = [0; 8];
    let (_, from) = socket.recv_from(&mut answer)?;
    Ok((answer[0], from.to_string()))
}
