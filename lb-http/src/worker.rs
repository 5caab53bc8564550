//! One worker: its listeners, its connections on both sides, its end.
//!
//! Everything in [`Local`] belongs to one thread. A worker never decides what to listen on; it is told.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use event_watcher::publish::Applied;
use foldhash::quality::RandomState;
use l4_vip::forward::tcp::{Forwarder, Options};
use l4_vip::proxy_protocol;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::config::Http2;
use crate::config::{Config, Limits, Timeouts};
use crate::http1::client_socket::ClientSocket;
use crate::http1::connection;
use crate::http1::fields::Field;
use crate::http1::flow::Means;
use crate::http1::socket;
use crate::labels::{AcceptProxy, Mode};
use crate::proxy::{Accepted, Entry, Protection};
use crate::reason::RefusedConnection;
use crate::request_id::RequestIds;
use crate::secure;
use crate::stats::Series;
use crate::table::Table;
use crate::tcp;
use crate::tls::TlsTable;
use crate::upstream::Upstreams;
use crate::wait::{Clock, SWEEP_INTERVAL, Waits};

/// After the process ran out of something (file descriptors): long enough for a connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) enum Command {
    Listen(Listener),
    Close(Entry),
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) entry: Entry,
    pub(crate) socket: std::net::TcpListener,
    pub(crate) port: u16,
    /// Of the frontend, when the table has none for the entry.
    pub(crate) series: Arc<Series>,
    /// Shared with the same listener of other workers.
    pub(crate) n_connections: Arc<AtomicU32>,
}

/// Serves on one thread: `run` wants a `LocalRuntime` around it.
#[derive(Debug)]
pub struct Worker {
    pub(crate) index: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) tls: Arc<ArcSwap<TlsTable>>,
    pub(crate) applied: Applied,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) cancel: CancellationToken,
}

/// What the connections of one worker share.
pub(crate) struct Local {
    pub(crate) index: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    http2: Http2,
    accept_proxy: AcceptProxy,
    pub(crate) upstreams: Upstreams,
    pub(crate) tasks: TaskTracker,
    /// Room for the lines of the next head.
    pub(crate) fields: Cell<Vec<Field>>,
    /// Room for a few bytes that are written down anew.
    pub(crate) scratch: Cell<Vec<u8>>,
    pub(crate) means: Means,
    pub(crate) request_ids: RequestIds,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) forwarder: Forwarder,
    table: RefCell<Cache<Arc<ArcSwap<Table>>, Arc<Table>>>,
    tls: RefCell<Cache<Arc<ArcSwap<TlsTable>>, Arc<TlsTable>>>,
    waits: Rc<Waits>,
    clock: Rc<Clock>,
    clients: Arc<Clients>,
}

impl Local {
    /// Looks something up in the newest table.
    pub(crate) fn with_table<T>(&self, look_up: impl FnOnce(&Table) -> T) -> T {
        look_up(self.table.borrow_mut().load())
    }

    /// The same of the certificates and policies for TLS.
    pub(crate) fn with_tls<T>(&self, look_up: impl FnOnce(&TlsTable) -> T) -> T {
        look_up(self.tls.borrow_mut().load())
    }
}

impl Worker {
    /// Serves until the plane is cancelled; then stops accepting, lets what is in flight end within the drain time,
    /// and returns.
    pub async fn run(mut self) {
        let clock = Clock::new();
        let local = Rc::new(Local {
            index: self.index,
            timeouts: self.config.timeouts,
            limits: self.config.limits,
            http2: self.config.http2,
            accept_proxy: self.config.accept_proxy,
            upstreams: Upstreams::new(self.index, Rc::clone(&clock)),
            tasks: TaskTracker::new(),
            fields: Cell::default(),
            scratch: Cell::default(),
            means: Means::default(),
            request_ids: RequestIds::new(),
            access_log: self.access_log.clone(),
            forwarder: Forwarder::new(Options {
                connect_timeout: self.config.timeouts.connect,
                idle_timeout: None,
            }),
            table: RefCell::new(Cache::new(Arc::clone(&self.table))),
            tls: RefCell::new(Cache::new(Arc::clone(&self.tls))),
            waits: Rc::default(),
            clock,
            clients: Arc::clone(&self.clients),
        });
        let mut listeners: HashMap<Entry, CancellationToken> = HashMap::new();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut n_sweeps = 0_u32;
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Listen(listener)) => {
                        let close = CancellationToken::new();
                        listeners.insert(listener.entry, close.clone());
                        local.tasks.spawn_local(accept(Rc::clone(&local), listener, close));
                    }
                    Some(Command::Close(entry)) => {
                        listeners.remove(&entry).iter().for_each(CancellationToken::cancel);
                    }
                    None => break,
                },
                Ok(_) = self.applied.changed() => local.upstreams.prune(),
                _ = sweep.tick() => {
                    local.sweep();
                    n_sweeps = n_sweeps.wrapping_add(1);
                    if n_sweeps.is_multiple_of(10) {
                        local.upstreams.prune();
                    }
                }
                () = self.cancel.cancelled() => break,
            }
        }
        listeners.values().for_each(CancellationToken::cancel);
        // Clients may already wait at a port that was bound a moment ago.
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            if let Command::Listen(listener) = command {
                local.tasks.spawn_local(accept(Rc::clone(&local), listener, self.cancel.clone()));
            }
        }
        local.waits.drain();
        local.tasks.close();
        let drained = async {
            tokio::select! {
                () = local.tasks.wait() => {}
                () = async {
                    loop {
                        sweep.tick().await;
                        local.sweep();
                    }
                } => {}
            }
        };
        if tokio::time::timeout(self.config.drain_timeout, drained).await.is_err() {
            tracing::warn!(
                worker = self.index,
                n_open = local.tasks.len(),
                "connections were cut at the end of the drain time"
            );
        }
        drop(local);
        // The last one waits for the log's lines, and others serve on this thread.
        let log = self.access_log.take();
        let _ = tokio::task::spawn_blocking(move || drop(log)).await;
    }
}

impl Local {
    fn sweep(&self) {
        self.waits.sweep(self.clock.advance());
        // A worker without requests lets go of the table before, too.
        self.with_table(|_| ());
    }
}

async fn accept(local: Rc<Local>, listener: Listener, close: CancellationToken) {
    let Listener { entry, socket, port, series, n_connections } = listener;
    let from = Rc::new(From { entry, port, series, n_connections });
    // SAFETY: a listener has one descriptor, its own, for as long as it lives.
    let socket = match unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) } {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(port, %error, "a listener could not be watched");
            return;
        }
    };
    let mut closed = pin!(close.cancelled());
    loop {
        tokio::select! {
            biased;
            () = &mut closed => break,
            accepted = socket.async_io(Interest::READABLE, socket::accept) => match accepted {
                Ok((stream, client)) => from.admit(&local, stream, client),
                Err(error) => {
                    tracing::warn!(port, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Who is in the backlog was promised service when the kernel completed the handshake.
    let socket = socket.into_inner();
    while let Ok((stream, client)) = socket::accept(&socket) {
        from.admit(&local, stream, client);
    }
}

struct From {
    entry: Entry,
    port: u16,
    series: Arc<Series>,
    n_connections: Arc<AtomicU32>,
}

impl From {
    /// Begins to serve a connection, or refuses it.
    fn admit(self: &Rc<Self>, local: &Rc<Local>, stream: std::net::TcpStream, peer: SocketAddr) {
        let wants_header = match self.entry {
            Entry::ServicePort(port) => local.with_table(|table| {
                let backend = table.routes.of_port(port).map(|i| &table.backends[i]);
                backend.is_some_and(|b| b.labels.proxy_protocol.accept == AcceptProxy::Required)
            }),
            Entry::Hosts | Entry::TlsHosts => local.accept_proxy == AcceptProxy::Required,
            Entry::AppIds => false,
        };
        let stream = ClientSocket::new(stream);
        if !wants_header {
            self.admit_from(local, stream, peer);
        } else if let Some(stream) = watched(stream) {
            local.tasks.spawn_local(Rc::clone(self).admit_announced(Rc::clone(local), stream, peer));
        }
    }

    /// The same when its first bytes are to tell whose it is. Until then it counts for the listener alone: whoever
    /// announces has the connections of many clients.
    async fn admit_announced(self: Rc<Self>, local: Rc<Local>, mut stream: TcpStream, peer: SocketAddr) {
        let limits = Limits { connections_per_client: usize::MAX, ..local.limits };
        let permit = match local.clients.permit(peer.ip(), &self.n_connections, &limits) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::debug!(%peer, reason = %refused, "refused");
                return self.series(&local).of_worker(local.index).refused_connection(refused);
            }
        };
        let limit = local.timeouts.client_header;
        let header = tokio::time::timeout(limit, proxy_protocol::read(&mut stream)).await;
        drop(permit);
        match header {
            Ok(Ok(ends)) => self.admit_from(&local, stream.into(), ends.map_or(peer, |ends| ends.source)),
            bad => {
                let refused = RefusedConnection::ProxyHeader;
                match bad {
                    Ok(Err(error)) => tracing::debug!(%peer, reason = %refused, %error, "refused"),
                    _ => tracing::debug!(%peer, reason = %refused, "refused"),
                }
                self.series(&local).of_worker(local.index).refused_connection(refused);
            }
        }
    }

    /// Of the frontend as the present table has it.
    fn series(&self, local: &Local) -> Arc<Series> {
        let of_table = match self.entry {
            Entry::ServicePort(port) => local.with_table(|table| {
                table.routes.of_port(port).map(|i| Arc::clone(&table.backends[i].frontend))
            }),
            _ => None,
        };
        of_table.unwrap_or_else(|| Arc::clone(&self.series))
    }

    fn admit_from(&self, local: &Rc<Local>, stream: ClientSocket, client: SocketAddr) {
        let backend = match self.entry {
            Entry::ServicePort(port) => {
                local.with_table(|table| table.routes.of_port(port).map(|i| Arc::clone(&table.backends[i])))
            }
            Entry::Hosts | Entry::TlsHosts | Entry::AppIds => None,
        };
        let series = Arc::clone(backend.as_ref().map_or(&self.series, |b| &b.frontend));
        let shard = series.of_worker(local.index);
        let permit = match local.clients.permit(client.ip(), &self.n_connections, &local.limits) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::debug!(%client, reason = %refused, "refused");
                return shard.refused_connection(refused);
            }
        };
        shard.n_sessions.increment();
        let session = series.begin();
        let (entry, local_port) = (self.entry, self.port);
        let protection = Protection::Plain;
        let is_tcp = backend.as_ref().is_some_and(|b| b.labels.mode == Mode::Tcp);
        let is_tls = !is_tcp && secure::is_tls(local, entry);
        if !is_tcp && !is_tls && local.http2 != Http2::WithPriorKnowledge {
            let accepted = Accepted { stream, client, local_port, entry, protection, session, permit };
            let registered = local.waits.register(&local.clock);
            // Boxed, because the runtime moves what it is given to and fro; and not spawned by the tracker, whose own
            // future would be polled each time before this one.
            let served = Box::pin(connection::serve(Rc::clone(local), accepted, registered));
            let token = local.tasks.token();
            tokio::task::spawn_local(async move {
                served.await;
                drop(token);
            });
            return;
        }
        let Some(stream) = watched(stream) else { return };
        let accepted = Accepted { stream, client, local_port, entry, protection, session, permit };
        if let Some(backend) = backend.filter(|b| b.labels.mode == Mode::Tcp) {
            local.tasks.spawn_local(tcp::serve(Rc::clone(local), backend, accepted));
            return;
        }
        let registered = local.waits.register(&local.clock);
        let local = Rc::clone(local);
        let tasks = local.tasks.clone();
        if is_tls {
            tasks.spawn_local(secure::serve(local, accepted, registered));
        } else {
            tasks.spawn_local(secure::serve_either(local, accepted, registered));
        }
    }
}

fn watched(socket: ClientSocket) -> Option<TcpStream> {
    let watched = socket.into_watched();
    watched.inspect_err(|error| tracing::warn!(%error, "a connection could not be watched")).ok()
}

/// How many connections each client address has, over all workers. A table of counters, not of addresses: two that
/// share a counter are counted together, which the table's size makes rare.
#[derive(Debug)]
pub(crate) struct Clients {
    counters: Box<[AtomicU32]>,
    hasher: RandomState,
}

const N_COUNTERS: usize = 1 << 14;

/// A connection's place within the limits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Clients>,
    counter: usize,
    n_connections: Arc<AtomicU32>,
}

impl Clients {
    pub(crate) fn new() -> Arc<Self> {
        let counters = (0..N_COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self { counters, hasher: RandomState::default() })
    }

    fn permit(
        self: &Arc<Self>,
        client: IpAddr,
        n_connections: &Arc<AtomicU32>,
        limits: &Limits,
    ) -> Result<Permit, RefusedConnection> {
        let counter = self.hasher.hash_one(client.to_canonical()) as usize % N_COUNTERS;
        // Made first, so that what is over a limit is taken back by its drop.
        let permit = Permit { clients: Arc::clone(self), counter, n_connections: Arc::clone(n_connections) };
        let of_client = self.counters[counter].fetch_add(1, Relaxed) as usize;
        let of_listener = n_connections.fetch_add(1, Relaxed) as usize;
        if of_client >= limits.connections_per_client {
            Err(RefusedConnection::ManyOfClient)
        } else if of_listener >= limits.connections_per_listener {
            Err(RefusedConnection::ManyOfListener)
        } else {
            Ok(permit)
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.clients.counters[self.counter].fetch_sub(1, Relaxed);
        self.n_connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_per_client_and_per_listener_and_given_back() {
        let limits = Limits { connections_per_client: 2, connections_per_listener: 3, ..Limits::default() };
        let (clients, listener) = (Clients::new(), Arc::default());
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let first = clients.permit(a, &listener, &limits).unwrap();
        let _second = clients.permit(a, &listener, &limits).unwrap();
        let many_of_client = clients.permit(a, &listener, &limits).err();
        assert_eq!(many_of_client, Some(RefusedConnection::ManyOfClient), "two of one client");
        drop(first);
        let _third = clients.permit(a, &listener, &limits).unwrap();
        assert!(
            clients.permit("::ffff:10.0.0.1".parse().unwrap(), &listener, &limits).is_err(),
            "the same client"
        );
        let _fourth = clients.permit(b, &listener, &limits);
        let many_of_listener = clients.permit(b, &listener, &limits).err();
        assert_eq!(many_of_listener, Some(RefusedConnection::ManyOfListener), "three of one listener");
    }
}
