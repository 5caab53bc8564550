//! The nft plane in network namespaces: what clients on the host, in containers and on the backend's own host see of
//! its VIPs, while the VIPs change, while others change the rules, and when the plane starts again.
//!
//! It drives the plane itself; what chooses planes and follows the scheduler is not its business.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::Protocol;
use l4_vip::kernel::nft::{Nft, NftConfig, Ownership};
use l4_vip::kernel::{Backend, Change, Frontend, KernelPlane, Service};
use tests::netns::{Netns, is_root};

const DEADLINE: Duration = Duration::from_secs(10);
const VIP: &str = "11.1.2.3:80";

fn config(ownership: Ownership) -> NftConfig {
    let pools = ["11.0.0.0/8", "fd01:c::/64"].map(|pool| pool.parse().expect("a network"));
    NftConfig { pools: pools.into(), ownership }
}

/// The plane of a host.
fn open(host: &Netns) -> anyhow::Result<Nft> {
    Ok(host.run(|| Nft::open(config(Ownership::Exclusive)))?)
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

/// Says its name to whoever connects, and then sends back what it gets.
fn tcp_backend(place: &Netns, address: &str, name: u8) -> anyhow::Result<SocketAddr> {
    let listener = place.run(|| TcpListener::bind(address))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || serve(connection, name));
        }
    });
    Ok(address)
}

fn serve(mut connection: TcpStream, name: u8) -> io::Result<()> {
    connection.write_all(&[name])?;
    let mut buffer = [0; 64];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            n => connection.write_all(&buffer[..n])?,
        }
    }
}

/// A connection that has heard the name of its backend.
struct Connection(TcpStream, u8);

impl Connection {
    fn open(place: &Netns, address: &str) -> io::Result<Self> {
        let address: SocketAddr = address.parse().expect("an address");
        place.run(|| Self::open_here(address))
    }

    fn open_here(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut name = [0];
        stream.read_exact(&mut name)?;
        Ok(Self(stream, name[0]))
    }

    fn is_alive(&mut self) -> bool {
        let mut answer = [0; 4];
        self.0.write_all(b"ping").and_then(|()| self.0.read_exact(&mut answer)).is_ok()
    }
}

/// The backends that `n` new connections reach.
fn reached(place: &Netns, address: &str, n: usize) -> io::Result<BTreeSet<u8>> {
    (0..n).map(|_| Connection::open(place, address).map(|connection| connection.1)).collect()
}

#[test]
fn host_reaches_the_backends_of_a_vip() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let [a, b] = [tcp_backend(&host, "127.0.0.1:0", b'a')?, tcp_backend(&host, "127.0.0.1:0", b'b')?];
    let mut nft = open(&host)?;
    nft.apply(&[set(Protocol::Tcp, VIP, &[(a, 1), (b, 1)])])?;
    println!("{}", host.output("nft", "list ruleset")?);
    assert_eq!(reached(&host, VIP, 32)?, BTreeSet::from([b'a', b'b']));
    Ok(())
}
