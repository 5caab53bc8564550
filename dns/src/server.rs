//! Binds the sockets, all or none, and runs one worker's share of them.
//!
//! It reads no packet: `udp` and `tcp` do.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, DEFAULT_UDP_PAYLOAD_BYTES};
use crate::error::Error;
use crate::forward::Forwarder;
use crate::handler::{Responder, Terms};
use crate::stats::{Counters, Transport};
use crate::tcp::{self, Connections};
use crate::udp;
use crate::zone::Zone;

/// Holds some thousand queries while a worker does something else.
const UDP_RECEIVE_BYTES: usize = 1024 * 1024;
const TCP_BACKLOG: i32 = 1024;
/// How often a free port is sought that is free for both transports.
const N_PORT_ATTEMPTS: usize = 16;

/// The sockets of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub udp: Vec<StdUdpSocket>,
    pub tcp: Vec<StdTcpListener>,
}

/// Binds every address once per worker, for both transports. Gives the addresses with the ports they got.
pub(crate) fn bind(config: &Config, n_workers: usize) -> Result<(Vec<SocketAddr>, Vec<Sockets>), Error> {
    let mut bound = Vec::new();
    let mut workers: Vec<Sockets> = (0..n_workers).map(|_| Sockets::default()).collect();
    for address in &config.listen {
        let mut attempt = 1;
        let (address, sockets) = loop {
            match bind_address(*address, n_workers, config.udp_payload_bytes) {
                // The port that UDP was given may be taken for TCP.
                Err(Error::Listen { source, .. })
                    if address.port() == 0
                        && attempt < N_PORT_ATTEMPTS
                        && source.kind() == io::ErrorKind::AddrInUse =>
                {
                    attempt += 1;
                }
                other => break other?,
            }
        };
        bound.push(address);
        for (worker, (udp, tcp)) in workers.iter_mut().zip(sockets) {
            worker.udp.push(udp);
            worker.tcp.push(tcp);
        }
    }
    Ok((bound, workers))
}

type Pair = (StdUdpSocket, StdTcpListener);

fn bind_address(
    address: SocketAddr,
    n_workers: usize,
    payload_bytes: u16,
) -> Result<(SocketAddr, Vec<Pair>), Error> {
    let failed = |transport| move |source| Error::Listen { address, transport, source };
    let mut port = address.port();
    let mut pairs = Vec::with_capacity(n_workers);
    for _ in 0..n_workers {
        let address = SocketAddr::new(address.ip(), port);
        if pairs.is_empty() {
            find_taken(address, Transport::Udp).map_err(failed(Transport::Udp))?;
        }
        let udp: StdUdpSocket =
            open(address, Transport::Udp, payload_bytes).map_err(failed(Transport::Udp))?.into();
        port = udp.local_addr().map_err(failed(Transport::Udp))?.port();
        let address = SocketAddr::new(address.ip(), port);
        if pairs.is_empty() {
            find_taken(address, Transport::Tcp).map_err(failed(Transport::Tcp))?;
        }
        let tcp = open(address, Transport::Tcp, payload_bytes).and_then(|socket| {
            socket.listen(TCP_BACKLOG)?;
            Ok(socket)
        });
        pairs.push((udp, tcp.map_err(failed(Transport::Tcp))?.into()));
    }
    Ok((SocketAddr::new(address.ip(), port), pairs))
}

/// Workers share an address by SO_REUSEPORT, by which another process of the same user could join them unnoticed and
/// take some of their queries. So the first asks for the address without.
fn find_taken(address: SocketAddr, transport: Transport) -> io::Result<()> {
    let socket = socket(address, transport)?;
    if transport == Transport::Tcp {
        // Connections that have ended are no obstacle.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(address))
}

fn socket(address: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Tcp | Transport::Https => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// `payload_bytes`: of the largest answer over UDP.
fn open(address: SocketAddr, transport: Transport, payload_bytes: u16) -> io::Result<Socket> {
    let socket = socket(address, transport)?;
    socket.set_reuse_port(true)?;
    match transport {
        Transport::Tcp | Transport::Https => socket.set_reuse_address(true)?,
        Transport::Udp => {
            set_receive_buffer(&socket)?;
            if payload_bytes <= DEFAULT_UDP_PAYLOAD_BYTES {
                forbid_fragments(&socket, address)?;
            }
            if address.ip().is_unspecified() {
                tell_destination(&socket, address)?;
            }
        }
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// Asks that no packet be cut on its way: pieces are lost and forged more easily than packets are (RFC 9715 section
/// 3.1). Nor does anybody's word about the way's width count, by which answers could be made to vanish.
fn forbid_fragments(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => {
            set_option(socket, (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), libc::IP_PMTUDISC_PROBE)
        }
        SocketAddr::V6(_) => {
            set_option(socket, (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER), libc::IPV6_PMTUDISC_PROBE)
        }
    }
}

/// More than the system's limit for everybody takes CAP_NET_ADMIN; without, as much as that allows.
fn set_receive_buffer(socket: &Socket) -> io::Result<()> {
    let bytes = UDP_RECEIVE_BYTES as libc::c_int;
    set_option(socket, (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE), bytes)
        .or_else(|_| socket.set_recv_buffer_size(UDP_RECEIVE_BYTES))
}

/// Asks the kernel to say to which address each packet was sent: a client takes the reply from no other.
fn tell_destination(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let option = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    set_option(socket, option, 1)
}

fn set_option(socket: &Socket, (level, option): (i32, i32), value: libc::c_int) -> io::Result<()> {
    // SAFETY: the options take an int, whose address and size are given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            std::mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the tasks of one worker share.
#[derive(Debug)]
pub(crate) struct Context {
    pub config: Arc<Config>,
    pub zone: Arc<ArcSwap<Zone>>,
    pub terms: Arc<Terms>,
    pub forwarder: Arc<Forwarder>,
    pub counters: Arc<Counters>,
    pub cancel: CancellationToken,
    pub tasks: TaskTracker,
    pub connections: Connections,
}

impl Context {
    pub fn responder(&self) -> Responder {
        Responder::new(Arc::clone(&self.zone), Arc::clone(&self.counters), Arc::clone(&self.terms))
    }
}

/// One worker thread's share of the server.
#[derive(Debug)]
pub struct Worker {
    pub(crate) sockets: Sockets,
    pub(crate) config: Arc<Config>,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) terms: Arc<Terms>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) cancel: CancellationToken,
}

impl Worker {
    /// Serves until cancelled, finishes what is in flight (for `drain_timeout` at most), and returns.
    ///
    /// To be run in a [`tokio::runtime::LocalRuntime`]: it spawns tasks that stay on this thread.
    pub async fn run(self) {
        let drain_timeout = self.config.drain_timeout;
        let (cancel, tasks) = (self.cancel.clone(), TaskTracker::new());
        let context = Rc::new(Context {
            config: self.config,
            zone: self.zone,
            terms: self.terms,
            forwarder: self.forwarder,
            counters: self.counters,
            cancel: self.cancel,
            tasks: tasks.clone(),
            connections: Connections::default(),
        });
        for socket in self.sockets.udp {
            tasks.spawn_local(udp::serve(socket, Rc::clone(&context)));
        }
        for listener in self.sockets.tcp {
            tasks.spawn_local(tcp::serve(listener, Rc::clone(&context)));
        }
        cancel.cancelled().await;
        tasks.close();
        if timeout(drain_timeout, tasks.wait()).await.is_err() {
            tracing::warn!(n_unfinished = tasks.len(), "DNS queries were cut off by the end of the drain");
        }
    }
}
