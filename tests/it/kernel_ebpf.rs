//! The eBPF plane in the kernel: programs attached to a control group of the test's own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol;
use l4_vip::kernel::ebpf::{Ebpf, EbpfConfig, Limits};
use l4_vip::kernel::{ApplyError, Backend, Change, Frontend, KernelPlane, Service};
use tests::cgroup::Cgroup;
use tests::client::DEADLINE;
use tests::netns::is_root;

/// Nobody listens here: what arrives at a backend came through the plane.
const POOL: &str = "127.210.0.0/16";

fn open(cgroup: &Cgroup) -> anyhow::Result<Ebpf> {
    open_with(cgroup, Limits::default())
}

fn open_with(cgroup: &Cgroup, limits: Limits) -> anyhow::Result<Ebpf> {
    let config = EbpfConfig {
        cgroup: Some(cgroup.path().to_owned()),
        pools: vec![POOL.parse()?, "fd01:c::/64".parse()?],
        limits,
    };
    Ok(Ebpf::open(config)?)
}

fn frontend(protocol: Protocol, address: &str) -> Frontend {
    Frontend { protocol, address: address.parse().expect("the test's own address") }
}

fn service(frontend: Frontend, backends: &[(SocketAddr, u16)]) -> Service {
    let backends = backends.iter().map(|(address, weight)| Backend { address: *address, weight: *weight });
    Service { frontend, backends: backends.collect(), affinity: None }
}

/// Accepts for ever and says on each connection which port it came to; the connection stays open until its end.
fn tcp_backend(address: &str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let (mut stream, mut line) = (stream, [0; 64]);
                let _ = stream.write_all(&address.port().to_be_bytes());
                while let Ok(n @ 1..) = stream.read(&mut line) {
                    if stream.write_all(&line[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// Answers every datagram with its own port.
fn udp_backend(address: &str) -> anyhow::Result<SocketAddr> {
    let socket = UdpSocket::bind(address)?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&address.port().to_be_bytes(), from);
        }
    });
    Ok(address)
}

/// Which backend a new connection reached.
fn reached(vip: SocketAddr) -> std::io::Result<(TcpStream, u16)> {
    let mut stream = TcpStream::connect(vip)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok((stream, u16::from_be_bytes(port)))
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"ping"
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
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
    let counters = plane.counters()?;
    assert_eq!(counters.len(), 1);
    assert_eq!(counters[0].1.n_connections, 400);
    let of_heavy = plane.backend_counters()?.into_iter().find(|(_, address, _)| *address == heavy);
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
    assert_eq!(plane.counters()?.iter().map(|(_, c)| c.n_refused).sum::<u64>(), 4, "of VIPs only");
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
            let mut answer = [0; 2];
            socket.send_to(b"?", vip.address)?;
            let (_, from) = socket.recv_from(&mut answer)?;
            anyhow::ensure!(from == vip.address, "the answer came from {from}");
            Ok(u16::from_be_bytes(answer))
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
    let counters = plane.counters()?[0].1;
    assert!(counters.n_packets >= 12 * 8, "also those of the removed backend: {counters:?}");
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
                let mut port = [0; 2];
                TcpStream::from(socket).read_exact(&mut port)?;
                Ok(u16::from_be_bytes(port))
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
fn the_programs_outlive_the_process_and_are_adopted() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let vip = frontend(Protocol::Tcp, "127.210.6.1:80");
    let backend = tcp_backend("127.0.0.1:0")?;
    let all = [service(vip, &[(backend, 1)])];
    let mut plane = open(&cgroup)?;
    assert!(plane.reconcile(&all)? > 0);
    let second = open(&cgroup).expect_err("one process at a time");
    assert!(format!("{second:#}").contains("another waymark"), "{second:#}");
    let (mut kept, _) = cgroup.run(|| reached(vip.address))?;
    drop(plane);

    let (mut made_meanwhile, _) = cgroup.run(|| reached(vip.address))?;
    let mut plane = open(&cgroup)?;
    let (mut before_reconcile, _) = cgroup.run(|| reached(vip.address))?;
    let n_differed = plane.reconcile(&all)?;
    assert_eq!(n_differed, 8, "only the programs were replaced");
    assert_eq!(plane.reconcile(&all)?, 0);
    assert_eq!(plane.counters()?[0].1.n_connections, 3, "counters go on");
    for stream in [&mut kept, &mut made_meanwhile, &mut before_reconcile] {
        assert!(echoes(stream));
        assert_eq!(stream.peer_addr()?, vip.address);
    }
    plane.flush()?;
    assert!(
        cgroup.run(|| TcpStream::connect_timeout(&vip.address, Duration::from_secs(1)).is_err()),
        "nothing is left"
    );
    assert!(echoes(&mut kept), "what is established stays");
    assert_eq!(Ebpf::remove_left_over(&|frontend| *frontend == vip)?, 0, "nothing is pinned any more");
    Ok(())
}

#[test]
fn what_others_took_away_comes_back() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let vip = frontend(Protocol::Tcp, "127.210.7.1:80");
    let backend = tcp_backend("127.0.0.1:0")?;
    let all = [service(vip, &[(backend, 1)])];
    let mut plane = open(&cgroup)?;
    plane.reconcile(&all)?;
    assert!(!plane.was_changed_by_others()?);
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(cgroup.path())?);
    let pins = std::path::PathBuf::from(format!("/sys/fs/bpf/waymark/{id}"));
    std::fs::remove_file(pins.join("link_connect4"))?;
    std::fs::remove_file(pins.join("services_1"))?;
    assert!(plane.was_changed_by_others()?);
    assert!(plane.reconcile(&all)? > 0);
    assert!(!plane.was_changed_by_others()?);
    cgroup.run(|| reached(vip.address))?;
    drop(plane);
    cgroup.run(|| reached(vip.address))?;
    open(&cgroup)?.flush()?;
    Ok(())
}

#[test]
fn full_maps_refuse_the_new_vip_and_keep_the_old() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::new()?;
    let backend = tcp_backend("127.0.0.1:0")?;
    let mut plane = open_with(&cgroup, Limits { n_frontends: 2, n_backends: 3, n_flows: 64 })?;
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
            let mut answer = [0; 2];
            for _ in 0..4 {
                socket.send_to(b"?", vip)?;
                let (_, from) = socket.recv_from(&mut answer)?;
                assert_eq!((from, u16::from_be_bytes(answer)), (vip, backend.port()));
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

/// The C twin, loaded on the same maps and attached to another group, gives the answers that our programs give.
#[test]
fn the_c_twin_agrees() -> anyhow::Result<()> {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !is_root() || !is_there("clang-14") || !is_there("bpftool") {
        return Ok(());
    }
    let (ours, twins) = (Cgroup::new()?, Cgroup::new()?);
    let mut plane = open(&ours)?;
    let vip = frontend(Protocol::Tcp, "127.210.10.1:80");
    let (empty, sticky) =
        (frontend(Protocol::Tcp, "127.210.10.2:80"), frontend(Protocol::Tcp, "127.210.10.3:80"));
    let (light, heavy) = (tcp_backend("127.0.0.1:0")?, tcp_backend("127.0.0.1:0")?);
    let both = [(light, 1), (heavy, 3)];
    let with_affinity = Service { affinity: Some(Duration::from_secs(60)), ..service(sticky, &both) };
    plane.reconcile(&[service(vip, &both), service(empty, &[]), with_affinity])?;

    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(ours.path())?);
    let pins = format!("/sys/fs/bpf/waymark/{id}");
    let (object, programs) = (tempfile::NamedTempFile::new()?, format!("{pins}/twin"));
    let object = object.path().to_string_lossy().into_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/wm.bpf.c");
    run(
        "clang-14",
        &[
            "-O2",
            "-g",
            "-target",
            "bpf",
            "-mcpu=v3",
            "-I/usr/include/x86_64-linux-gnu",
            "-c",
            source,
            "-o",
            &object,
        ],
    )?;
    let maps = ["services", "slots", "backends", "counters", "peers", "affinity"];
    let maps: Vec<[String; 5]> = maps
        .iter()
        .map(|map| ["map", "name", map, "pinned", &format!("{pins}/{map}_1")].map(str::to_owned))
        .collect();
    let load = ["prog", "loadall", &object, &programs];
    run("bpftool", &load.into_iter().chain(maps.iter().flatten().map(String::as_str)).collect::<Vec<_>>())?;
    for (program, call) in
        [("connect4", "cgroup_inet4_connect"), ("getpeername4", "cgroup_inet4_getpeername")]
    {
        let pinned = format!("{programs}/{program}");
        run("bpftool", &["cgroup", "attach", &twins.flag(), call, "pinned", &pinned])?;
    }
    for cgroup in [&ours, &twins] {
        cgroup.run(|| {
            let mut n_heavy = 0;
            for _ in 0..400 {
                let (stream, port) = reached(vip.address)?;
                anyhow::ensure!(stream.peer_addr()? == vip.address, "the VIP is what the client sees");
                n_heavy += u32::from(port == heavy.port());
            }
            assert!((240..=360).contains(&n_heavy), "{n_heavy} of 400");
            assert_eq!(errno(TcpStream::connect(empty.address)), Some(libc::ECONNREFUSED));
            anyhow::Ok(())
        })?;
    }
    let clients = [&ours, &twins, &ours, &twins];
    let kept: Vec<u16> = clients
        .iter()
        .map(|cgroup| cgroup.run(|| reached(sticky.address).map(|(_, port)| port)))
        .collect::<std::io::Result<_>>()?;
    assert!(kept.iter().all(|port| *port == kept[0]), "one client, whoever picks: {kept:?}");
    let total: u64 = plane.counters()?.iter().map(|(_, c)| c.n_connections + c.n_refused).sum();
    assert_eq!(total, 806, "both count in the same place");
    std::fs::remove_file(format!("{programs}/connect4"))?;
    std::fs::remove_file(format!("{programs}/getpeername4"))?;
    std::fs::remove_dir(&programs)?;
    plane.flush()?;
    Ok(())
}

fn run(program: &str, words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(words).output()?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
