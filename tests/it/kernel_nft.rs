//! The nft plane in network namespaces: what clients on the host, in containers and on the backend's own host see of
//! its VIPs, while the VIPs change, while others change the rules, and when the plane starts again.
//!
//! Most of it drives the plane itself, one test the whole program; choosing between planes is not its business.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol::{self, Tcp, Udp};
use l4_vip::kernel::nft::{Nft, NftConfig, Ownership};
use l4_vip::kernel::{Backend, Change, Frontend, KernelPlane, Service};
use tests::client::get;
use tests::netns::{Netns, is_root};
use tests::waymark::Waymark;

use crate::{APP, PROGRAM, VIP_NAME};

const DEADLINE: Duration = Duration::from_secs(10);
const VIP: &str = "11.1.2.3:80";

/// The plane of a host.
fn open(host: &Netns) -> anyhow::Result<Nft> {
    open_as(host, Ownership::Exclusive)
}

fn open_as(host: &Netns, ownership: Ownership) -> anyhow::Result<Nft> {
    let pools = ["11.0.0.0/8", "fd01:c::/64"].map(|pool| pool.parse().expect("a network"));
    Ok(host.run(|| Nft::open(NftConfig { pools: pools.into(), ownership }))?)
}

fn frontend(protocol: Protocol, address: &str) -> Frontend {
    Frontend { protocol, address: address.parse().expect("an address") }
}

fn service(protocol: Protocol, address: &str, backends: &[(SocketAddr, u16)]) -> Service {
    let backends = backends.iter().map(|(address, weight)| Backend { address: *address, weight: *weight });
    Service { frontend: frontend(protocol, address), backends: backends.collect(), affinity: None }
}

fn set(protocol: Protocol, address: &str, backends: &[(SocketAddr, u16)]) -> Change {
    Change::Set(service(protocol, address, backends))
}

/// Says its name and whom it sees to whoever connects, and then sends back what it gets.
fn tcp_backend(place: &Netns, address: &str, name: u8) -> anyhow::Result<SocketAddr> {
    let listener = place.run(|| TcpListener::bind(address))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || greet_and_echo(connection, name));
        }
    });
    Ok(address)
}

fn greet_and_echo(mut connection: TcpStream, name: u8) -> io::Result<()> {
    let peer = connection.peer_addr()?.ip().to_string();
    connection.write_all(&[&[name, peer.len() as u8], peer.as_bytes()].concat())?;
    let mut buffer = [0; 64];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            n => connection.write_all(&buffer[..n])?,
        }
    }
}

/// A connection that has heard the name of its backend.
struct Connection {
    stream: TcpStream,
    backend: u8,
    /// The client as the backend sees it.
    client: IpAddr,
}

impl Connection {
    fn open(place: &Netns, address: &str) -> io::Result<Self> {
        place.run(|| Self::open_here(address))
    }

    fn open_here(address: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address.parse().expect("an address"), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut greeting = [0; 2];
        stream.read_exact(&mut greeting)?;
        let mut client = vec![0; greeting[1].into()];
        stream.read_exact(&mut client)?;
        let client = String::from_utf8_lossy(&client).parse().expect("the backend sends an address");
        Ok(Self { stream, backend: greeting[0], client })
    }

    fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(b"ping").and_then(|()| self.stream.read_exact(&mut [0; 4]))
    }
}

/// How many of `n` new connections reach each backend.
fn reached(place: &Netns, address: &str, n: usize) -> io::Result<BTreeMap<u8, usize>> {
    place.run(|| {
        let mut reached = BTreeMap::new();
        for _ in 0..n {
            *reached.entry(Connection::open_here(address)?.backend).or_default() += 1;
        }
        Ok(reached)
    })
}

fn names(reached: &BTreeMap<u8, usize>) -> String {
    reached.keys().map(|name| char::from(*name)).collect()
}

/// What becomes of a connection, and how soon.
fn refusal(place: &Netns, address: &str) -> (Option<ErrorKind>, Duration) {
    let started = Instant::now();
    (Connection::open(place, address).err().map(|error| error.kind()), started.elapsed())
}

/// Answers each datagram with its name.
fn udp_backend(place: &Netns, address: &str, name: u8) -> anyhow::Result<SocketAddr> {
    let socket = place.run(|| UdpSocket::bind(address))?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            // A client that has gone is no concern of the others.
            let _ = socket.send_to(&[name], client);
        }
    });
    Ok(address)
}

fn udp_client(place: &Netns, address: &str) -> io::Result<UdpSocket> {
    place.run(|| {
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    })
}

fn ask(socket: &UdpSocket) -> io::Result<u8> {
    let mut name = [0];
    socket.send(b"?")?;
    socket.recv(&mut name)?;
    Ok(name[0])
}

/// Tries until it is so; how long that took.
fn eventually(mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        anyhow::ensure!(started.elapsed() < DEADLINE, "it did not come about");
        thread::park_timeout(Duration::from_millis(5));
    }
    Ok(started.elapsed())
}

/// A host with a bridge for containers, and another host.
struct Cluster {
    host: Netns,
    containers: [Netns; 2],
    other: Netns,
}

impl Cluster {
    fn new() -> anyhow::Result<Self> {
        let host = Netns::new("host")?;
        let containers = [Netns::new("one")?, Netns::new("two")?];
        let other = Netns::new("other")?;
        host.connect(("eth0", "10.1.0.1/24"), &other, ("eth0", "10.1.0.2/24"))?;
        host.add_address("eth0", "fd02::1/64")?;
        other.add_address("eth0", "fd02::2/64")?;
        host.add_bridge("br0", "172.30.0.1/24")?;
        host.add_address("br0", "fd03::1/64")?;
        for (n, container) in containers.iter().enumerate() {
            host.plug("br0", &format!("port{n}"), container, &format!("172.30.0.{}/24", n + 2))?;
            container.add_address("eth0", &format!("fd03::{}/64", n + 2))?;
            container.ip("route add default via 172.30.0.1")?;
            container.ip("-6 route add default via fd03::1")?;
        }
        other.ip("route add 172.30.0.0/24 via 10.1.0.1")?;
        other.ip("-6 route add fd03::/64 via fd02::1")?;
        host.set_variable("net/ipv4/ip_forward", "1")?;
        host.set_variable("net/ipv6/conf/all/forwarding", "1")?;
        Ok(Self { host, containers, other })
    }
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
    let counters: BTreeMap<Frontend, _> = nft.counters()?.into_iter().collect();
    assert_eq!(counters[&frontend(Tcp, VIP)].n_connections, 200);
    assert_eq!(counters[&frontend(Udp, VIP)].n_connections, 1);
    assert_eq!(counters[&frontend(Tcp, "11.1.2.3:90")].n_refused, 1);
    assert_eq!(counters[&frontend(Tcp, "11.1.2.3:90")].n_connections, 0);
    // People and other programs read the rules with nft(8).
    assert!(host.output("nft", "list ruleset")?.contains("11.1.2.3 . tcp . 90"));
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
    let after = eventually(|| Ok(ask(&client)? == b'b'))?;
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

#[test]
fn a_flush_of_all_rules_leaves_an_owned_table() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open(&host)?;
    let all = [service(Tcp, VIP, &[(a, 1)])];
    nft.reconcile(&all)?;
    let mut old = Connection::open(&host, VIP)?;
    host.output("nft", "flush ruleset")?;
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 5)?), "a");
    assert!(!nft.was_changed_by_others()?);
    assert_eq!(nft.reconcile(&all)?, 0);
    Ok(())
}

#[test]
fn what_others_remove_is_found_and_repaired() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let a = tcp_backend(&host, "127.0.0.1:0", b'a')?;
    let mut nft = open_as(&host, Ownership::Shared)?;
    let all = [service(Tcp, VIP, &[(a, 1)]), service(Tcp, "1.2.3.4:80", &[(a, 1)])];
    nft.reconcile(&all)?;
    assert!(!nft.was_changed_by_others()?, "own changes are not others'");
    let port = a.port();
    for damage in [
        "nft flush ruleset".to_owned(),
        "nft flush table inet waymark".to_owned(),
        "nft flush map inet waymark slots4".to_owned(),
        "nft flush set inet waymark connections4".to_owned(),
        format!("nft add element inet waymark slots4 {{ 11.9.9.9 . tcp . 80 . 0x0 : 127.0.0.1 . {port} }}"),
        "nft delete chain inet waymark prerouting".to_owned(),
        "ip route del local 11.0.0.0/8 dev lo table local".to_owned(),
        "ip route del local 1.2.3.4 dev lo table local".to_owned(),
    ] {
        let (program, words) = damage.split_once(' ').expect("a program and its words");
        host.output(program, words)?;
        let started = Instant::now();
        assert!(nft.was_changed_by_others()?, "{damage} was not noticed");
        nft.reconcile(&all)?;
        assert!(started.elapsed() < Duration::from_secs(1), "{damage}: {:?}", started.elapsed());
        for service in &all {
            let address = service.frontend.address.to_string();
            assert_eq!(names(&reached(&host, &address, 3)?), "a", "{address} after {damage}");
        }
        assert_eq!(nft.reconcile(&all)?, 0, "{damage} was not repaired as a whole");
    }
    Ok(())
}

#[test]
fn nothing_stops_while_the_plane_is_away() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let all = [service(Tcp, VIP, &[(a, 1), (b, 2)]), service(Tcp, "[fd01:c::7]:1", &[])];
    let mut nft = open(&host)?;
    nft.reconcile(&all)?;
    let mut old = Connection::open(&host, VIP)?;
    drop(nft);
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 40)?), "ab");
    let mut nft = open(&host)?;
    old.ping()?;
    assert_eq!(names(&reached(&host, VIP, 40)?), "ab");
    assert_eq!(nft.reconcile(&all)?, 0, "what stands there is adopted");
    assert_eq!(nft.counters()?.iter().map(|(_, counters)| counters.n_connections).sum::<u64>(), 81);
    assert_eq!(nft.reconcile(&all[..1])?, 1, "what is not wanted any more goes");
    old.ping()?;
    let another = host.run(|| Nft::open(NftConfig { pools: vec![], ownership: Ownership::Exclusive }));
    let hint = another.err().map(|error| error.hint).unwrap_or_default();
    assert!(hint.contains("another"), "two planes at once: {hint:?}");
    nft.flush()?;
    assert!(!host.output("nft", "list ruleset")?.contains("waymark"));
    assert!(!host.ip("route show table local")?.contains("11.0.0.0/8"));
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
        Change::Set(Service { affinity: Some(Duration::from_secs(600)), ..service(Tcp, VIP, &backends) })
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
fn six_hundred_changes_under_load_refuse_almost_nothing_and_break_nothing() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let backends: Vec<SocketAddr> =
        (b'a'..b'd').map(|name| tcp_backend(&host, "127.0.0.1:0", name)).collect::<anyhow::Result<_>>()?;
    let mut nft = open(&host)?;
    nft.apply(&[set(Tcp, VIP, &[(backends[0], 1)])])?;
    let mut old = (0..50).map(|_| Connection::open(&host, VIP)).collect::<io::Result<Vec<_>>>()?;
    let is_over = AtomicBool::new(false);
    let load = || {
        let mut results = BTreeMap::<Option<ErrorKind>, usize>::new();
        while !is_over.load(Relaxed) {
            let result = Connection::open_here(VIP).and_then(|mut connection| connection.ping());
            *results.entry(result.err().map(|error| error.kind())).or_default() += 1;
        }
        results
    };
    let results = host.run(|| {
        thread::scope(|scope| -> anyhow::Result<_> {
            let clients = [(); 4].map(|()| scope.spawn(load));
            let changed = (0..600_usize).try_for_each(|n| {
                let others = n % 3..=n % 3 + n % 2;
                let some: Vec<_> = others.map(|n| (backends[n % 3], 1 + (n % 2) as u16)).collect();
                nft.apply(&[set(Tcp, VIP, &some), set(Tcp, "11.7.7.7:7", &some[..n % 2])])
            });
            is_over.store(true, Relaxed);
            changed?;
            Ok(clients.map(|client| client.join().expect("a client does not panic")))
        })
    })?;
    // Known fault: a packet that looks up its slot after a commit, and the number of slots before it, finds no backend and
    // is refused. Seldom, but not never, as it should be; nothing else may happen, and no more than this.
    for result in &results {
        let refused = result.get(&Some(ErrorKind::ConnectionRefused)).copied().unwrap_or_default();
        let served = result.get(&None).copied().unwrap_or_default();
        assert_eq!(result.values().sum::<usize>(), served + refused, "{results:?}");
        assert!(refused * 100 <= served, "{results:?}");
    }
    for connection in &mut old {
        connection.ping()?;
    }
    Ok(())
}

#[test]
fn the_program_serves_by_nft_and_leaves_vips_behind_when_killed() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let pool = ["--vip-plane", "nft", "--vip-pool", "11.0.0.0/8"];
            let waymark = Waymark::dev(PROGRAM, &pool).await?;
            waymark.ok(&["app", "update", APP, "instances=2", "--wait"]).await?;
            let address = waymark.ok(&["dns", "lookup", "--short", VIP_NAME]).await?;
            let vip = SocketAddr::new(address.trim().parse()?, 10_000);
            let mut answers = BTreeSet::new();
            for _ in 0..20 {
                answers.insert(get(vip, "/").await?.text());
            }
            assert_eq!(answers.len(), 2, "both instances answer: {answers:?}");
            let vips = waymark.stats("/api/vips").await?.text();
            assert!(vips.contains(r#""plane":"nft""#), "{vips}");
            let elements = host.output("nft", "list map inet waymark slots4")?;
            host.output("nft", "flush ruleset")?;
            assert_eq!(get(vip, "/").await?.status, 200);
            waymark.signal(libc::SIGKILL);
            drop(waymark);
            assert_eq!(
                host.output("nft", "list map inet waymark slots4")?,
                elements,
                "it outlives its maker"
            );
            anyhow::Ok(())
        })
    })
}
