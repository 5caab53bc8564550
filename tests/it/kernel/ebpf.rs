//! The eBPF plane in the kernel: programs attached to a control group of the test's own.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol;
use l4_vip::kernel::ebpf::{Ebpf, EbpfConfig, Limits};
use l4_vip::kernel::{ApplyError, Change, KernelPlane, Service};
use tests::cgroup::Cgroup;
use tests::client::DEADLINE;
use tests::netns::is_root;

use super::peers::{Connection, frontend, serve_tcp, serve_udp, service};

/// Nobody listens here: what arrives at a backend came through the plane.
const POOL: &str = "127.210.0.0/16";

pub fn open(cgroup: &Cgroup) -> anyhow::Result<Ebpf> {
    open_with(cgroup, Limits::default())
}

pub fn open_with(cgroup: &Cgroup, limits: Limits) -> anyhow::Result<Ebpf> {
    let config = EbpfConfig {
        cgroup: Some(cgroup.path().to_owned()),
        pools: vec![POOL.parse()?, "fd01:c::/64".parse()?],
        limits,
    };
    Ok(Ebpf::open(config)?)
}

pub fn tcp_backend(address: &str) -> anyhow::Result<SocketAddr> {
    serve_tcp(TcpListener::bind(address)?, b'e')
}

pub fn udp_backend(address: &str) -> anyhow::Result<SocketAddr> {
    serve_udp(UdpSocket::bind(address)?, b'e')
}

/// Which backend a new connection reached, by its port.
pub fn reached(vip: SocketAddr) -> io::Result<(TcpStream, u16)> {
    Connection::open_here(vip).map(|connection| (connection.stream, connection.port))
}

pub fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"ping"
}

pub fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_connection_is_given_a_backend_by_weight() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let vip = frontend(Protocol::Tcp, "127.210.1.1:80");
    let (light, heavy) = (tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?);
    plane.reconcile(&[service(vip, &[(light, 1), (heavy, 3)])])?;
    let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
    cgroup.run(|| {
        for _ in 0..400 {
            let (stream, port) = reached(vip.address)?;
            anyhow::ensure!(stream.peer_addr()? == vip.address, "the VIP is what the client sees");
            *counts.entry(port).or_default() += 1;
        }
        anyhow::Ok(())
    })?;
    // 300 are expected with a deviation of 8.7: seven times that is never seen.
    let n_heavy = counts.get(&heavy.port()).copied().unwrap_or(0);
    assert!((240..=360).contains(&n_heavy), "{counts:?}");
    assert!(
        TcpStream::connect_timeout(&vip.address, Duration::from_secs(1)).is_err(),
        "outside the control group there is no VIP"
    );
    let counters = plane.count()?.frontends;
    assert_eq!(counters.len(), 1);
    assert_eq!(counters[0].1.n_connections, 400);
    let of_heavy = plane.count()?.backends.into_iter().find(|(_, address, _)| *address == heavy);
    assert_eq!(of_heavy.map(|(_, _, counters)| counters.n_connections), Some(u64::from(n_heavy)));
    plane.flush()?;
    Ok(())
}

#[test]
fn a_vip_without_backends_and_a_wrong_port_are_refused_at_once() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let (tcp, udp) = (frontend(Protocol::Tcp, "127.210.2.1:80"), frontend(Protocol::Udp, "127.210.2.1:53"));
    let draining = tcp_backend("127.0.0.1:0")?;
    plane.reconcile(&[service(tcp, &[(draining, 0)]), service(udp, &[])])?;
    cgroup.run(|| {
        let started = Instant::now();
        assert_eq!(errno(TcpStream::connect(tcp.address)), Some(libc::ECONNREFUSED));
        assert_eq!(errno(TcpStream::connect("127.210.2.1:81")), Some(libc::ECONNREFUSED), "no VIP port");
        assert_eq!(errno(TcpStream::connect("[fd01:c::9]:81")), Some(libc::ECONNREFUSED), "the other pool");
        assert_eq!(errno(TcpStream::connect("[::ffff:127.210.2.1]:80")), Some(libc::ECONNREFUSED));
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        assert_eq!(errno(socket.send_to(b"?", udp.address)), Some(libc::ECONNREFUSED));
        assert_eq!(errno(socket.send_to(b"?", "127.210.2.1:54")), Some(libc::ECONNREFUSED));
        assert_eq!(errno(socket.connect(udp.address)), Some(libc::ECONNREFUSED));
        assert!(started.elapsed() < Duration::from_millis(500), "nothing waits");
        anyhow::Ok(())
    })?;
    assert_eq!(plane.count()?.frontends.iter().map(|(_, c)| c.n_refused).sum::<u64>(), 4, "of VIPs only");
    plane.flush()?;
    Ok(())
}

#[test]
fn changes_move_new_connections_and_cut_no_old_one() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let vip = frontend(Protocol::Tcp, "127.210.3.1:80");
    let (first, second) = (tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?);
    plane.reconcile(&[service(vip, &[(first, 1)])])?;
    let mut old: Vec<TcpStream> =
        cgroup.run(|| (0..50).map(|_| Ok(reached(vip.address)?.0)).collect::<std::io::Result<_>>())?;

    plane.apply(&[Change::Set(service(vip, &[(first, 0), (second, 1)]))])?;
    let (_, port) = cgroup.run(|| reached(vip.address))?;
    assert_eq!(port, second.port());
    plane.apply(&[Change::Remove(vip)])?;
    assert_eq!(cgroup.run(|| errno(TcpStream::connect(vip.address))), Some(libc::ECONNREFUSED));
    plane.apply(&[Change::Set(service(vip, &[(first, 1)]))])?;
    assert_eq!(cgroup.run(|| reached(vip.address))?.1, first.port());
    assert!(old.iter_mut().all(echoes), "the last VIP was removed and added again: 50 of 50 alive");
    assert!(old.iter().all(|stream| stream.peer_addr().is_ok_and(|peer| peer == vip.address)));
    plane.flush()?;
    Ok(())
}

#[test]
fn datagrams_keep_their_backend_while_it_lives() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let vip = frontend(Protocol::Udp, "127.210.4.1:53");
    let all = [udp_backend("127.0.0.1:0")?, udp_backend("127.0.0.1:0")?, udp_backend("127.0.0.1:0")?];
    let backends = all.map(|address| (address, 1));
    plane.reconcile(&[service(vip, &backends)])?;
    cgroup.run(|| {
        let ask = |socket: &UdpSocket| -> anyhow::Result<u16> {
            let mut answer = [0; 3];
            socket.send_to(b"?", vip.address)?;
            let (_, from) = socket.recv_from(&mut answer)?;
            anyhow::ensure!(from == vip.address, "the answer came from {from}");
            Ok(u16::from_be_bytes([answer[1], answer[2]]))
        };
        let sockets: Vec<UdpSocket> = (0..12)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(DEADLINE))?;
                Ok(socket)
            })
            .collect::<std::io::Result<_>>()?;
        let first: Vec<u16> = sockets.iter().map(&ask).collect::<anyhow::Result<_>>()?;
        for _ in 0..5 {
            let again: Vec<u16> = sockets.iter().map(&ask).collect::<anyhow::Result<_>>()?;
            assert_eq!(again, first, "each socket keeps its backend");
        }
        // A draining backend keeps its flows, a removed one loses them with the next datagram.
        plane.apply(&[Change::Set(service(vip, &[(all[0], 0), backends[1], backends[2]]))])?;
        assert_eq!(sockets.iter().map(&ask).collect::<anyhow::Result<Vec<_>>>()?, first);
        plane.apply(&[Change::Set(service(vip, &backends[1..]))])?;
        for (socket, before) in sockets.iter().zip(&first) {
            let now = ask(socket)?;
            assert_ne!(now, all[0].port(), "it is gone");
            assert!(*before == all[0].port() || now == *before, "the others' flows stay");
        }
        anyhow::Ok(())
    })?;
    let n_picked = plane.count()?.frontends[0].1.n_connections;
    assert!(
        (12..24).contains(&n_picked),
        "once for each socket and for each that lost its backend: {n_picked}"
    );
    plane.flush()?;
    Ok(())
}

#[test]
fn a_client_with_affinity_keeps_its_backend_until_it_drains() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let vip = frontend(Protocol::Tcp, "127.210.5.1:80");
    let all = [tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?];
    let with =
        |backends: &[(SocketAddr, u16)], time| Service { affinity: Some(time), ..service(vip, backends) };
    let long = Duration::from_secs(3600);
    plane.reconcile(&[with(&all.map(|address| (address, 1)), long)])?;
    let ask = || cgroup.run(|| reached(vip.address).map(|(_, port)| port));
    let kept = ask()?;
    for _ in 0..20 {
        assert_eq!(ask()?, kept);
    }
    // Another client address is another client; out of twenty one at least is sent elsewhere.
    let others = cgroup.run(|| {
        (2..22_u8)
            .map(|last| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into())?;
                socket.connect(&vip.address.into())?;
                let mut greeting = [0; 3];
                TcpStream::from(socket).read_exact(&mut greeting)?;
                Ok(u16::from_be_bytes([greeting[1], greeting[2]]))
            })
            .collect::<std::io::Result<Vec<u16>>>()
    })?;
    assert!(others.iter().any(|port| *port != kept), "{others:?}");
    let without: Vec<_> = all.map(|address| (address, u16::from(address.port() != kept))).into();
    plane.apply(&[Change::Set(with(&without, long))])?;
    let next = ask()?;
    assert_ne!(next, kept, "it drains");
    assert_eq!(ask()?, next);
    // Once the time is over, twenty draws from two do not all end alike.
    plane.apply(&[Change::Set(with(&without, Duration::from_nanos(1)))])?;
    let draws: Vec<u16> = (0..20).map(|_| ask()).collect::<std::io::Result<_>>()?;
    assert!(draws.iter().any(|port| *port != draws[0]), "{draws:?}");
    plane.flush()?;
    Ok(())
}

#[test]
fn sockets_of_both_families_reach_both_kinds_of_vip() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let mut plane = open(&cgroup)?;
    let four = frontend(Protocol::Tcp, "127.210.9.1:80");
    let six = frontend(Protocol::Tcp, "[fd01:c::9]:80");
    let six_over_four = frontend(Protocol::Tcp, "[fd01:c::9]:81");
    let udp_four = frontend(Protocol::Udp, "127.210.9.1:53");
    let udp_six = frontend(Protocol::Udp, "[fd01:c::9]:53");
    let (tcp4, tcp6) = (tcp_backend("127.0.0.1:0")?, tcp_backend("[::1]:0")?);
    let (udp4, udp6) = (udp_backend("127.0.0.1:0")?, udp_backend("[::1]:0")?);
    plane.reconcile(&[
        service(four, &[(tcp4, 1), (tcp6, 1)]),
        service(six, &[(tcp6, 1)]),
        service(six_over_four, &[(tcp4, 1)]),
        service(udp_four, &[(udp4, 1)]),
        service(udp_six, &[(udp6, 1), (udp4, 1)]),
    ])?;
    cgroup.run(|| {
        for _ in 0..10 {
            assert_eq!(reached(four.address)?.1, tcp4.port(), "an IPv4 socket cannot reach an IPv6 backend");
        }
        for (vip, backend) in
            [("[fd01:c::9]:80", tcp6), ("[fd01:c::9]:81", tcp4), ("[::ffff:127.210.9.1]:80", tcp4)]
        {
            let vip: SocketAddr = vip.parse()?;
            let (stream, port) = reached(vip)?;
            assert_eq!((port, stream.peer_addr()?), (backend.port(), vip));
        }
        for (local, vip, backend) in [
            ("0.0.0.0:0", "127.210.9.1:53", udp4),
            ("[::]:0", "[fd01:c::9]:53", udp6),
            ("[::]:0", "[::ffff:127.210.9.1]:53", udp4),
        ] {
            let (socket, vip) = (UdpSocket::bind(local)?, vip.parse::<SocketAddr>()?);
            socket.set_read_timeout(Some(DEADLINE))?;
            let mut answer = [0; 3];
            for _ in 0..4 {
                socket.send_to(b"?", vip)?;
                let (_, from) = socket.recv_from(&mut answer)?;
                assert_eq!((from, u16::from_be_bytes([answer[1], answer[2]])), (vip, backend.port()));
            }
            socket.connect(vip)?;
            assert_eq!(socket.peer_addr()?, vip);
            socket.send(b"?")?;
            let (_, from) = socket.recv_from(&mut answer)?;
            assert_eq!(from, vip);
        }
        anyhow::Ok(())
    })?;
    plane.flush()?;
    Ok(())
}

#[test]
fn full_maps_refuse_the_new_vip_and_keep_the_old() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let backend = tcp_backend("127.0.0.1:0")?;
    let mut plane = open_with(&cgroup, Limits { n_frontends: 2, n_backends: 3, n_flows: 64, n_peers: 64 })?;
    let vip = |last: u8| frontend(Protocol::Tcp, &format!("127.210.8.{last}:80"));
    let one = |last| service(vip(last), &[(backend, 1)]);
    plane.reconcile(&[one(1), one(2)])?;
    for (change, reason) in [
        (one(3), "2 VIP addresses"),
        (
            service(vip(1), &[1, 2, 3, 4].map(|port| (SocketAddr::from(([127, 0, 0, 1], port)), 1))),
            "3 backends",
        ),
    ] {
        let refused = vec![change.frontend];
        match plane.apply(&[Change::Set(change)]) {
            Err(ApplyError::Refused { frontends, reason: told }) => {
                assert_eq!(frontends, refused);
                assert!(told.contains(reason), "{told}");
            }
            other => panic!("{other:?}"),
        }
    }
    for last in [1, 2] {
        cgroup.run(|| reached(vip(last).address))?;
    }
    plane.apply(&[Change::Remove(vip(1)), Change::Set(one(3))])?;
    cgroup.run(|| reached(vip(3).address))?;
    plane.flush()?;
    Ok(())
}
