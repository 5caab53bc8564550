//! Backends that say who they are, clients that hear it, and hosts with containers: what the planes' tests stand on.
//!
//! It makes namespaces and control groups of its own and opens no plane.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol;
use l4_vip::kernel::{Backend, Change, Frontend, Service};
use tests::client::DEADLINE;
use tests::netns::Netns;

pub const VIP: &str = "11.1.2.3:80";

pub fn frontend(protocol: Protocol, address: &str) -> Frontend {
    Frontend { protocol, address: address.parse().expect("an address") }
}

pub fn service(frontend: Frontend, backends: &[(SocketAddr, u16)]) -> Service {
    let backends = backends.iter().map(|(address, weight)| Backend { address: *address, weight: *weight });
    Service { frontend, backends: backends.collect(), affinity: None }
}

pub fn set(protocol: Protocol, address: &str, backends: &[(SocketAddr, u16)]) -> Change {
    Change::Set(service(frontend(protocol, address), backends))
}

pub fn tcp_backend(place: &Netns, address: &str, name: u8) -> anyhow::Result<SocketAddr> {
    serve_tcp(place.run(|| TcpListener::bind(address))?, name)
}

/// Says its name and whom it sees to whoever connects, and then sends back what it gets.
pub fn serve_tcp(listener: TcpListener, name: u8) -> anyhow::Result<SocketAddr> {
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
    let [high, low] = connection.local_addr()?.port().to_be_bytes();
    connection.write_all(&[&[name, high, low, peer.len() as u8], peer.as_bytes()].concat())?;
    let mut buffer = [0; 64];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            n => connection.write_all(&buffer[..n])?,
        }
    }
}

/// A connection that has heard the name of its backend.
pub struct Connection {
    pub stream: TcpStream,
    pub backend: u8,
    /// Of the backend.
    pub port: u16,
    /// The client as the backend sees it.
    pub client: IpAddr,
}

impl Connection {
    pub fn open(place: &Netns, address: &str) -> io::Result<Self> {
        place.run(|| Self::open_here(address))
    }

    pub fn open_here(address: impl ToSocketAddrs) -> io::Result<Self> {
        let address = address.to_socket_addrs()?.next().ok_or(ErrorKind::AddrNotAvailable)?;
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        let [backend, high, low, length] = greeting;
        let mut client = vec![0; length.into()];
        stream.read_exact(&mut client)?;
        let client = String::from_utf8_lossy(&client).parse().expect("the backend sends an address");
        Ok(Self { stream, backend, port: u16::from_be_bytes([high, low]), client })
    }

    pub fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(b"ping").and_then(|()| self.stream.read_exact(&mut [0; 4]))
    }
}

/// How many of `n` new connections reach each backend.
pub fn reached(place: &Netns, address: &str, n: usize) -> io::Result<BTreeMap<u8, usize>> {
    place.run(|| {
        let mut reached = BTreeMap::new();
        for _ in 0..n {
            *reached.entry(Connection::open_here(address)?.backend).or_default() += 1;
        }
        Ok(reached)
    })
}

pub fn names(reached: &BTreeMap<u8, usize>) -> String {
    reached.keys().map(|name| char::from(*name)).collect()
}

/// What becomes of a connection, and how soon.
pub fn refusal(place: &Netns, address: &str) -> (Option<ErrorKind>, Duration) {
    let started = Instant::now();
    (Connection::open(place, address).err().map(|error| error.kind()), started.elapsed())
}

pub fn udp_backend(place: &Netns, address: &str, name: u8) -> anyhow::Result<SocketAddr> {
    serve_udp(place.run(|| UdpSocket::bind(address))?, name)
}

/// Answers each datagram with its name and its port, and what it was asked.
pub fn serve_udp(socket: UdpSocket, name: u8) -> anyhow::Result<SocketAddr> {
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            // A client that has gone is no concern of the others.
            let [high, low] = address.port().to_be_bytes();
            let _ = socket.send_to(&[&[name, high, low], &buffer[..n]].concat(), client);
        }
    });
    Ok(address)
}

/// How long a client waits for an answer before it asks again. Well below what the planes have for leaving a backend,
/// so that one lost datagram does not look like a plane that is late.
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub fn udp_client(place: &Netns, address: &str) -> io::Result<UdpSocket> {
    place.run(|| {
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(ASK_AGAIN))?;
        Ok(socket)
    })
}

/// Who answers. A question that gets no answer is asked again, as clients of datagrams do; an answer that comes late is
/// not taken for that of a later question. Refusals are told at once.
pub fn ask(socket: &UdpSocket) -> io::Result<u8> {
    static N_ASKED: AtomicU32 = AtomicU32::new(0);
    let question = N_ASKED.fetch_add(1, Relaxed).to_be_bytes();
    let until = Instant::now() + DEADLINE;
    let mut answer = [0; 16];
    while Instant::now() < until {
        socket.send(&question)?;
        loop {
            match socket.recv(&mut answer) {
                Ok(n) if answer[..n].ends_with(&question) => return Ok(answer[0]),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Tries until it is so; how long that took.
pub fn eventually(mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        anyhow::ensure!(started.elapsed() < DEADLINE, "it did not come about");
        thread::park_timeout(Duration::from_millis(5));
    }
    Ok(started.elapsed())
}

/// A host with a bridge for containers, and another host.
pub struct Cluster {
    pub host: Netns,
    pub containers: [Netns; 2],
    pub other: Netns,
}

impl Cluster {
    pub fn new() -> anyhow::Result<Self> {
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
