//! Mode tcp: connections that are passed on byte by byte, by service port or by the server name of their TLS.
//!
//! The relaying itself is the forwarder's, but for service ports with a certificate, whose TLS is ended here, and for
//! servers that are spoken to in TLS. So is the choice of an endpoint; where each may have only so many connections,
//! those over it wait here.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use l4_vip::forward::tcp::{Connected, Destination, Rooms};
use l4_vip::pool::EndpointState;
use l4_vip::proxy_protocol::{self, Ends};
use l4_vip::stats::Counters;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use crate::peek;
use crate::proxy::{Accepted, Entry};
use crate::queue::Place;
use crate::secure;
use crate::stats::{Shard, Stage};
use crate::table::Backend;
use crate::tls;
use crate::tls::hello::{self, Beginning, LONGEST_BEGINNING};
use crate::worker::Local;

/// Enough for the first message of today's clients, whose post-quantum keys make it as long as that.
const USUAL_BEGINNING: usize = 4 * 1024;

/// As long as a TLS record.
const PIECE_BYTES: usize = 16 * 1024;

/// Serves a connection to a backend in mode tcp to its end.
pub(crate) async fn serve(local: Rc<Local>, backend: Arc<Backend>, accepted: Accepted<TcpStream>) {
    let Accepted { stream, client, entry, session, permit, .. } = accepted;
    let of_frontend = session.series().of_worker(local.index);
    let of_backend = backend.series.of_worker(local.index);
    if !backend.labels.admission.lets_in(client.ip()) {
        of_frontend.n_denied_requests.increment();
        of_backend.n_denied_requests.increment();
        return;
    }
    of_backend.n_sessions.increment();
    let began = Instant::now();
    let ended = |shard: &Shard| {
        shard.n_timed.increment();
        shard.spent(Stage::Total, began.elapsed());
    };
    let current = backend.series.begin();
    let destination = stream.local_addr().unwrap_or(client);
    let greeting = match backend.labels.proxy_protocol.send {
        Some(version) => proxy_protocol::header(version, &Ends { source: client, destination }),
        None => Vec::new(),
    };
    let counters = match entry {
        Entry::TlsHosts => &backend.tcp.of_names,
        Entry::ServicePort(_) | Entry::Hosts | Entry::AppIds => &backend.tcp.of_port,
    };
    let rooms = OfBackend { backend: &backend, worker: local.index };
    let to = Destination { pool: &backend.pool, counters, rooms };
    let own_tls = secure::config_of(&local, entry, None).filter(|_| entry != Entry::TlsHosts);
    if own_tls.is_some() || backend.labels.server_tls.is_some() {
        let relay = Relay { local: &local, backend: &backend, client, greeting: &greeting, to };
        match own_tls {
            None => relay.run(stream, |stream| stream).await,
            Some(config) => {
                let limit = local.timeouts.client_header;
                match tokio::time::timeout(limit, tls::accept(stream, |_| Some(config))).await {
                    Ok(Ok(greeted)) => relay.run(greeted.stream, |stream| stream.get_ref().0).await,
                    _ => {
                        of_frontend.n_handshake_failures.increment();
                        tracing::debug!(%client, "TLS handshake failed or timed out");
                    }
                }
            }
        }
        return ended(of_backend);
    }
    let forwarded = local.forwarder.forward_after(&greeting, stream, client.ip(), to).await;
    if entry == Entry::TlsHosts {
        // The port of a service tells its bytes as they flow; this one has other connections, too.
        of_frontend.bytes_in.add(forwarded.bytes_in);
        of_frontend.bytes_out.add(forwarded.bytes_out);
    }
    tracing::debug!(backend = %backend.name, %client, outcome = ?forwarded.outcome, "connection ended");
    ended(of_backend);
    drop((current, permit));
}

/// A backend's maximum of connections per endpoint, and its queue.
struct OfBackend<'a> {
    backend: &'a Backend,
    worker: usize,
}

impl Rooms for OfBackend<'_> {
    type Place = Place;

    fn enter(&self, endpoint: &Arc<EndpointState>) -> Option<Place> {
        match self.backend.labels.capacity.per_endpoint {
            None => Some(Place::begin(endpoint)),
            Some(_) => self.backend.queue.enter(endpoint),
        }
    }

    async fn wait(&self, client: &TcpStream) -> Option<Place> {
        let Backend { labels, series, queue, pool, .. } = self.backend;
        let shard = series.of_worker(self.worker);
        let Ok(mut turn) = queue.wait(pool, None, labels.capacity.queue, series) else {
            shard.n_queue_refusals.increment();
            return None;
        };
        let began = Instant::now();
        let mut turn = pin!(poll_fn(|cx| turn.poll(cx)));
        let waited = tokio::select! {
            biased;
            place = &mut turn => Some(place),
            // A reset. Who has only ended its direction waits for an answer.
            _ = client.ready(Interest::ERROR) => Some(None),
            () = tokio::time::sleep(labels.capacity.queue_timeout) => None,
        };
        shard.n_queued.increment();
        shard.spent(Stage::Queue, began.elapsed());
        if waited.is_none() {
            shard.n_queue_timeouts.increment();
            // HAProxy counts it there.
            shard.n_connect_errors.increment();
        }
        waited.flatten()
    }
}

/// A connection that is in TLS on one side or both, so that its bytes pass through here.
struct Relay<'a> {
    local: &'a Local,
    backend: &'a Backend,
    client: SocketAddr,
    greeting: &'a [u8],
    to: Destination<'a, OfBackend<'a>>,
}

impl Relay<'_> {
    /// `socket` is below the client's stream.
    async fn run<C>(&self, mut stream: C, socket: impl Fn(&C) -> &TcpStream)
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { local, backend, client, to, .. } = self;
        let connected = local.forwarder.connect_to_one(socket(&stream), client.ip(), to).await;
        match connected {
            Ok(connected) => match self.relay(&mut stream, connected).await {
                Ok(()) => return,
                Err(error) => {
                    to.counters.n_resets.add(1);
                    tracing::debug!(backend = %backend.name, %client, %error, "connection broke");
                }
            },
            Err(outcome) => tracing::debug!(backend = %backend.name, %client, ?outcome, "not connected"),
        }
        // What was cut off must not look complete.
        let _ = socket(&stream).set_zero_linger();
    }

    async fn relay(
        &self,
        client: &mut (impl AsyncRead + AsyncWrite + Unpin),
        connected: Connected<Place>,
    ) -> io::Result<()> {
        let Connected { stream: mut server, place } = connected;
        let endpoint = place.endpoint();
        server.write_all(self.greeting).await?;
        let Some(tls) = &self.backend.labels.server_tls else {
            let relayed = both_ways(client, &mut server, endpoint, self.to.counters).await;
            if relayed.is_err() {
                let _ = server.set_zero_linger();
            }
            return relayed;
        };
        let tls = self.local.with_tls(|table| table.to_server(tls, endpoint.address.ip()));
        let tls =
            tls.ok_or_else(|| io::Error::other("TLS to the server cannot be spoken as its label asks"))?;
        let limit = self.local.timeouts.connect;
        let mut server = tokio::time::timeout(limit, tls.greet(server)).await??;
        let relayed = both_ways(client, &mut server, endpoint, self.to.counters).await;
        if relayed.is_err() {
            let _ = server.get_ref().0.set_zero_linger();
        }
        relayed
    }
}

/// Passes bytes on until both sides have ended.
async fn both_ways(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    endpoint: &EndpointState,
    counters: &Counters,
) -> io::Result<()> {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let note_in = |n| {
        endpoint.add_bytes_in(n);
        counters.bytes_in.add(n);
    };
    let note_out = |n| {
        endpoint.add_bytes_out(n);
        counters.bytes_out.add(n);
    };
    let up = copy(from_client, to_server, note_in);
    let down = copy(from_server, to_client, note_out);
    tokio::try_join!(up, down).map(|_| ())
}

/// Until `from` has ended; its end is passed on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    note: impl Fn(u64),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..n]).await?;
        to.flush().await?;
        note(n as u64);
    }
}

/// The backend in mode tcp whose host a connection's TLS is for. `None`: TLS is ended here. It takes no byte off the
/// connection; the caller limits the time.
pub(crate) async fn backend_of_server_name(
    local: &Local,
    stream: &TcpStream,
) -> io::Result<Option<Arc<Backend>>> {
    let mut seen = vec![0; USUAL_BEGINNING];
    let mut n_seen = 0;
    loop {
        let n = peek::beyond(stream, n_seen, &mut seen).await?;
        match hello::read(&seen[..n]) {
            Beginning::Hello(name) => {
                return Ok(local.with_table(|table| {
                    let index = table.routes.of_server_name(name.as_deref())?;
                    Some(Arc::clone(&table.backends[index]))
                }));
            }
            // The handshake will fail, and say so in TLS's own words.
            Beginning::Strange => return Ok(None),
            Beginning::Unfinished if n == seen.len() && n < LONGEST_BEGINNING => {
                seen.resize(LONGEST_BEGINNING, 0);
            }
            Beginning::Unfinished if n == seen.len() => return Err(too_long()),
            Beginning::Unfinished if n <= n_seen => return Err(io::ErrorKind::UnexpectedEof.into()),
            Beginning::Unfinished => {}
            Beginning::TooLong => return Err(too_long()),
        }
        n_seen = n;
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its ClientHello is too long")
}
