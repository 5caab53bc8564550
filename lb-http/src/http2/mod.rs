//! HTTP/2 towards clients: a connection, from its preface to its last stream.
//!
//! The frames are the `h2` library's. Each stream is a task of its own (`exchange`): its head is written down for the
//! guard (`head`), so that nothing that the guard refuses can come in by another protocol, and its bodies flow between
//! the stream (`side`) and the endpoint's connection with nothing in between. Endpoints are spoken to in HTTP/1.1.

mod exchange;
mod front;
mod head;
mod side;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use h2::{Ping, PingPong, Reason};
use l4_vip::proxy_protocol::Ends;
use tokio::time::{Instant, Sleep, sleep};

use crate::config::Limits;
use crate::http1::side::{ClientStream, ends};
use crate::outbound;
use crate::proxy::Accepted;
use crate::reason::RefusedConnection;
use crate::stats::Series;
use crate::wait::{Phase, Registered};
use crate::worker::{Local, Permit};
use exchange::Stream;

/// RFC 9113 section 5.1.2 recommends at least 100.
const MOST_STREAMS: u32 = 128;
/// Streams that a client opened and reset before they were looked at (CVE-2023-44487).
const MOST_PENDING_RESETS: usize = 20;
/// Resets that a client's own errors cause (CVE-2025-8671).
const MOST_ERROR_RESETS: usize = 256;
/// Of a response, waiting for the client's socket.
const SEND_BYTES: usize = 32 * 1024;
/// What a client may send of bodies before an endpoint has taken them, on a stream and on all streams together.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// A client that does not answer a ping is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What the streams of a connection share.
struct Shared {
    local: Rc<Local>,
    client: outbound::Client,
    ends: Ends,
    frontend: Arc<Series>,
    /// Holds the connection's place while a stream is still served.
    _permit: Permit,
    n_streams: Cell<usize>,
    registered: Registered,
}

/// Serves a connection until it ends. A drain, or a long silence, lets it end after the requests it is at.
pub(crate) async fn serve<S: ClientStream>(local: Rc<Local>, accepted: Accepted<S>, registered: Registered) {
    let Accepted { stream, client, local_port, entry, protection, session, permit } = accepted;
    let wait = Rc::clone(registered.wait());
    registered.wake_this_task().await;
    wait.enter(Phase::Head, local.timeouts.client_header);
    let shared = Rc::new(Shared {
        ends: ends(client, local_port, stream.plain()),
        client: outbound::Client::new(client, local_port, entry, protection),
        frontend: Arc::clone(session.series()),
        local: Rc::clone(&local),
        _permit: permit,
        n_streams: Cell::new(0),
        registered,
    });
    let ended = match wait.unless_expired(builder(&local).handshake(stream)).await {
        Some(Ok(connection)) => shared.serve(connection).await,
        Some(Err(error)) => Err(error),
        None => {
            shared.refuse(RefusedConnection::Silent);
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "HTTP/2 connection ended");
        if let Some(refused) = refused(&error) {
            shared.refuse(refused);
        }
    }
    drop(session);
}

/// What the client did wrong; `None`: nothing that was noticed here.
fn refused(error: &h2::Error) -> Option<RefusedConnection> {
    match error.reason() {
        _ if error.is_remote() || error.is_io() => None,
        Some(Reason::ENHANCE_YOUR_CALM) => Some(RefusedConnection::Http2Flood),
        _ => Some(RefusedConnection::Http2Error),
    }
}

fn builder(local: &Local) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(MOST_STREAMS)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MOST_ERROR_RESETS))
        .max_header_list_size(header_list_bytes(&local.limits))
        .max_send_buffer_size(SEND_BYTES);
    builder
}

/// Beyond it HTTP/2 itself refuses, which nobody counts: as much as our own limits can let in. Each field counts as 32
/// bytes more than it has (RFC 9113 section 6.5.2), pseudo-headers too.
fn header_list_bytes(limits: &Limits) -> u32 {
    const N_PSEUDO: usize = 5;
    let overhead = limits.header_count.saturating_add(N_PSEUDO).saturating_mul(32);
    let all = limits.request_line_bytes.saturating_add(limits.header_bytes).saturating_add(overhead);
    u32::try_from(all).unwrap_or(u32::MAX)
}

impl Shared {
    async fn serve<S: ClientStream>(
        self: &Rc<Self>,
        mut connection: Connection<S, Bytes>,
    ) -> Result<(), h2::Error> {
        let mut heartbeat = connection.ping_pong().map(Heartbeat::new);
        let mut is_told_to_end = false;
        self.rest();
        poll_fn(|cx| {
            self.registered.wake_me(cx.waker());
            while let Poll::Ready(accepted) = pin!(connection.accept()).poll(cx) {
                match accepted.transpose()? {
                    Some((request, respond)) => {
                        // Boxed, because a task that begins is moved a lot.
                        let served = Box::pin(Stream::new(self, request, respond).serve());
                        self.local.tasks.spawn_local(served);
                    }
                    None => return Poll::Ready(Ok(())),
                }
            }
            if let Some(heartbeat) = &mut heartbeat
                && heartbeat.poll_lost(cx).is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            let is_silent = self.n_streams.get() == 0 && self.registered.wait().is_expired();
            if (is_silent || self.registered.is_draining()) && !is_told_to_end {
                is_told_to_end = true;
                connection.graceful_shutdown();
                self.rest();
                // What it has to say is said when it is looked at again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // It was told to end and says nothing at all.
            if is_silent { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    fn refuse(&self, refused: RefusedConnection) {
        tracing::debug!(client = %self.client.origin.connection.client, reason = %refused, "refused");
        self.frontend.of_worker(self.local.index).refused_connection(refused);
    }

    /// Nothing is asked: the connection may be silent for so long.
    fn rest(&self) {
        self.registered.wait().enter(Phase::Idle, self.local.timeouts.client_keepalive);
    }

    /// A stream is served until what this gives is dropped.
    fn begin_stream(self: &Rc<Self>) -> Active {
        self.n_streams.set(self.n_streams.get() + 1);
        Active(Rc::clone(self))
    }
}

/// A stream that is being served.
struct Active(Rc<Shared>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.n_streams.set(self.0.n_streams.get() - 1);
        self.0.rest();
    }
}

/// Asks the client from time to time whether it is still there.
struct Heartbeat {
    pings: PingPong,
    is_asked: bool,
    until: Pin<Box<Sleep>>,
}

impl Heartbeat {
    fn new(pings: PingPong) -> Self {
        Self { pings, is_asked: false, until: Box::pin(sleep(PING_INTERVAL)) }
    }

    /// Ready when the client is gone.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_asked && self.pings.poll_pong(cx).is_ready() {
                // Also after an error, which the connection tells by itself.
                self.next(PING_INTERVAL);
            }
            ready!(self.until.as_mut().poll(cx));
            if self.is_asked || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.next(PING_TIMEOUT);
        }
    }

    fn next(&mut self, wait: Duration) {
        self.is_asked = wait == PING_TIMEOUT;
        self.until.as_mut().reset(Instant::now() + wait);
    }
}
