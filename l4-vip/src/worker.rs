//! One worker thread's share of the plane: it accepts on its own sockets and forwards.
//!
//! It decides no addresses and compiles nothing: sockets come from the control thread, and each carries its VIP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::Protocol;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::addresses;
use crate::drain::Tasks;
use crate::error::ListenError;
use crate::forward::descriptors::Ceiling;
use crate::forward::tcp::{Forwarder, Options};
use crate::forward::udp::Relay;
use crate::kernel::Frontend;
use crate::stats::{Counter, UdpCounters};
use crate::table::{Owner, VipState};

/// Pauses between attempts to accept when the host has run out of something. Long enough for connections to end,
/// short enough for clients that wait in the backlog.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A VIP's socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

impl Socket {
    /// One for each worker.
    pub(crate) fn open(frontend: Frontend, n_workers: usize) -> Result<Vec<Self>, ListenError> {
        Ok(match frontend.protocol {
            Protocol::Tcp => {
                addresses::listen(frontend.address, n_workers)?.into_iter().map(Self::Tcp).collect()
            }
            Protocol::Udp => {
                addresses::listen_udp(frontend.address, n_workers)?.into_iter().map(Self::Udp).collect()
            }
        })
    }
}

/// What all workers count together.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) n_accept_pauses: Counter,
    pub(crate) n_refused_for_descriptors: Counter,
}

#[derive(Debug)]
pub(crate) struct UdpOptions {
    pub(crate) max_flows: usize,
    pub(crate) counters: Arc<UdpCounters>,
}

/// A socket on its way to the worker that will serve it.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) socket: Socket,
    pub(crate) owner: Arc<Owner>,
    /// Cancelled when the VIP goes or the plane stops.
    pub(crate) stop: CancellationToken,
}

/// Runs on a thread of its own, in a `LocalRuntime`.
#[derive(Debug)]
pub struct Worker {
    pub(crate) listeners: mpsc::Receiver<Listen>,
    pub(crate) options: Options,
    pub(crate) udp: UdpOptions,
    pub(crate) ceiling: Ceiling,
    pub(crate) drain_timeout: Duration,
    pub(crate) counts: Arc<Counts>,
    pub(crate) cancel: CancellationToken,
}

impl Worker {
    /// Serves until the plane is cancelled, then lets established connections end for as long as the configuration
    /// says. Connections that have not ended by then are reset.
    pub async fn run(self) {
        let Self { mut listeners, options, udp, ceiling, drain_timeout, counts, cancel } = self;
        let server =
            Rc::new(Server { forwarder: Forwarder::new(options), tasks: Rc::default(), ceiling, counts });
        let mut datagrams = Datagrams { options: udp, ceiling, relay: None, tasks: JoinSet::new() };
        loop {
            tokio::select! {
                listen = listeners.recv() => match listen {
                    Some(Listen { socket: Socket::Tcp(socket), owner, stop }) => {
                        server.tasks.spawn(accept(socket, owner, stop, Rc::clone(&server)));
                    }
                    Some(Listen { socket: Socket::Udp(socket), owner, stop }) => {
                        datagrams.serve(socket, owner, stop);
                    }
                    None => break,
                },
                () = cancel.cancelled() => break,
            }
        }
        cancel.cancelled().await;
        drop(listeners);
        let n_cut = server.tasks.drain(drain_timeout).await;
        if n_cut > 0 {
            tracing::warn!(n_cut, "connections through VIPs were reset at the end of the drain time");
        }
    }
}

struct Server {
    forwarder: Forwarder,
    tasks: Rc<Tasks>,
    ceiling: Ceiling,
    counts: Arc<Counts>,
}

/// The UDP side, which most workers never need.
struct Datagrams {
    options: UdpOptions,
    ceiling: Ceiling,
    relay: Option<Rc<Relay>>,
    /// They end when this is dropped.
    tasks: JoinSet<()>,
}

impl Datagrams {
    fn serve(&mut self, socket: std::net::UdpSocket, owner: Arc<Owner>, stop: CancellationToken) {
        let relay = match &self.relay {
            Some(relay) => Rc::clone(relay),
            None => {
                let made =
                    Relay::new(self.options.max_flows, self.ceiling, Arc::clone(&self.options.counters));
                let relay = match made {
                    Ok(relay) => Rc::new(relay),
                    Err(error) => {
                        tracing::error!(%error, vip = %owner.now.load().key.target, "cannot forward datagrams");
                        return;
                    }
                };
                let (answers, sweeper) = (Rc::clone(&relay), Rc::clone(&relay));
                self.tasks.spawn_local(async move { answers.answer().await });
                self.tasks.spawn_local(async move { sweeper.sweep().await });
                self.relay = Some(Rc::clone(&relay));
                relay
            }
        };
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn_local(async move { relay.serve(socket, owner, stop).await });
    }
}

impl Server {
    fn serve(self: &Rc<Self>, client: TcpStream, peer: IpAddr, vip: Arc<VipState>) {
        let server = Rc::clone(self);
        self.tasks.spawn(async move {
            let pool = vip.pool(peer).load_full();
            let outcome = server.forwarder.forward(client, peer, &pool, &vip.counters).await;
            tracing::trace!(%peer, vip = %vip.key.target, port = vip.key.port, ?outcome, "connection ended");
        });
    }
}

/// Accepts until told to stop, then takes what is still in the backlog, so that nobody who got a SYN-ACK is reset.
async fn accept(
    socket: std::net::TcpListener,
    owner: Arc<Owner>,
    stop: CancellationToken,
    server: Rc<Server>,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, vip = %owner.now.load().key.target, "cannot watch a VIP's socket");
            return;
        }
    };
    let mut stopped = pin!(stop.cancelled());
    let mut pause = FIRST_PAUSE;
    let mut refuses = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((client, _)) if server.ceiling.is_reached_by(&client) => {
                if !refuses {
                    tracing::warn!(vip = %owner.now.load().key.target, "file descriptors are short: connections are refused");
                }
                refuses = true;
                server.counts.n_refused_for_descriptors.add(1);
                // It fails only on a socket that is already dead.
                let _ = client.set_zero_linger();
            }
            Ok((client, peer)) => {
                pause = FIRST_PAUSE;
                refuses = false;
                server.serve(client, peer.ip(), owner.now.load_full());
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                server.counts.n_accept_pauses.add(1);
                tracing::warn!(%error, vip = %owner.now.load().key.target, ?pause, "cannot accept; waiting");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = &mut stopped => break,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    match listener.into_std() {
        Ok(listener) => {
            while let Ok((client, peer)) = take_waiting(&listener) {
                server.serve(client, peer.ip(), owner.now.load_full());
            }
        }
        Err(error) => {
            tracing::error!(%error, vip = %owner.now.load().key.target, "cannot empty a VIP's backlog")
        }
    }
}

/// Accepts without asking the runtime whether there is something: it may not have been told yet.
fn take_waiting(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (client, peer) = listener.accept()?;
    client.set_nonblocking(true)?;
    Ok((TcpStream::from_std(client)?, peer))
}
