//! 60,000 connections from one address to one VIP with three backends, held at the same time.
//!
//! DC/OS ends at 28,232, the number of ports that a client has by default: its connections all lead to the VIP. They
//! are made and kept, and carry nothing.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;

use event_watcher::catalog::Protocol::Tcp;
use tests::netns::is_root;

use super::host::{EBPF, Host, NFT, Open};
use super::peers::{VIP, frontend, service};

const N_CONNECTIONS: usize = 60_000;
const N_BACKENDS: u16 = 3;
/// Threads that hold connections; each has as many descriptors as the limit allows.
const N_CLIENTS: usize = 10;

/// The client's TCP sees the backends, so each of them has all its ports: there are fewer ports than connections. (Not
/// the usual 28,232: Linux takes milliseconds to find a port when more than half of them are taken, and minutes in
/// all.)
#[test]
fn sixty_thousand_connections_to_one_vip_by_ebpf() -> anyhow::Result<()> {
    hold_all(EBPF, "16384 65535", |_| TcpStream::connect(VIP))
}

/// The client's TCP sees the VIP, and needs a port for each connection to it. It names them itself, for the same
/// reason.
#[test]
fn sixty_thousand_connections_to_one_vip_by_nft_with_ports_enough() -> anyhow::Result<()> {
    hold_all(NFT, "1024 65535", connect_from)
}

fn connect_from(nth: usize) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 2_000 + nth as u16)).into())?;
    socket.connect(&VIP.parse::<SocketAddr>().map_err(io::Error::other)?.into())?;
    Ok(socket.into())
}

type Connect = fn(usize) -> io::Result<TcpStream>;

/// `connect` makes the nth connection.
fn hold_all(open: Open, ports: &str, connect: Connect) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new()?;
    host.netns.set_variable("net/ipv4/ip_local_port_range", ports)?;
    host.netns.set_variable("net/core/somaxconn", "65535")?;
    // Nobody accepts: established connections wait in the listeners' queues.
    let listeners: Vec<socket2::Socket> =
        host.run(|| (1..=N_BACKENDS).map(listen).collect::<io::Result<_>>())?;
    let backends: Vec<(SocketAddr, u16)> =
        listeners.iter().map(|listener| Ok((address(listener)?, 1))).collect::<io::Result<_>>()?;
    let mut plane = open(&host)?;
    plane.reconcile(&[service(frontend(Tcp, VIP), &backends)])?;
    let made = Barrier::new(N_CLIENTS + 1);
    let of_backend = thread::scope(|scope| {
        let clients: Vec<_> = (0..N_CLIENTS)
            .map(|nth| {
                let (host, made) = (&host, &made);
                scope.spawn(move || host.run(|| hold(nth, connect, made)))
            })
            .collect();
        made.wait();
        let of_backend = listeners.iter().map(n_waiting).collect::<io::Result<Vec<usize>>>();
        made.wait();
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        anyhow::Ok(of_backend?)
    })?;
    assert_eq!(of_backend.iter().sum::<usize>(), N_CONNECTIONS, "{of_backend:?}");
    // 20,000 are expected with a deviation of 115.
    assert!(of_backend.iter().all(|n| (19_000..21_000).contains(n)), "{of_backend:?}");
    let counted: u64 = plane.count()?.frontends.iter().map(|(_, counters)| counters.n_connections).sum();
    assert_eq!(counted, N_CONNECTIONS as u64);
    plane.flush()?;
    Ok(())
}

/// Connections that are established and not accepted yet.
fn n_waiting(listener: &socket2::Socket) -> io::Result<usize> {
    listener.set_nonblocking(true)?;
    Ok(std::iter::from_fn(|| listener.accept().ok()).count())
}

/// Below the ports of clients.
fn listen(port: u16) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(65_535)?;
    Ok(socket)
}

fn address(listener: &socket2::Socket) -> io::Result<SocketAddr> {
    listener.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Gives this thread descriptors of its own, so that the limit of a process does not count for all threads together.
fn with_own_descriptors() -> io::Result<()> {
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 2;
    // SAFETY: a plain call; no value of this thread owns a descriptor yet, and those of other threads stay open.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_UNSHARE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes its part of the connections, and keeps them until all are made.
fn hold(client: usize, connect: Connect, made: &Barrier) -> anyhow::Result<()> {
    const N_OWN: usize = N_CONNECTIONS / N_CLIENTS;
    let connect = |n| connect(n).map_err(|e| anyhow::anyhow!("connection {n}: {e}"));
    let connections = with_own_descriptors().map_err(anyhow::Error::from).and_then(|()| {
        (client * N_OWN..(client + 1) * N_OWN).map(connect).collect::<anyhow::Result<Vec<_>>>()
    });
    made.wait();
    made.wait();
    connections.map(drop)
}
