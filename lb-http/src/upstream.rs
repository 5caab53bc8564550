//! A worker's connections to endpoints: idle ones are kept per endpoint, newest first.
//!
//! It does not choose endpoints and does not retry. A connection belongs to one worker for life.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use foldhash::fast::RandomState;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use l4_vip::pool::EndpointState;
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::client::{Clock, Counted, write_pieces};
use crate::stats::Series;
use crate::table::{Backend, Server};

/// Shorter than what most servers wait for the next request, so that we close first and no request meets a close.
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// A connection is replaced after this, so that none lives for ever with an endpoint that wants to move on.
const LONGEST_LIFE: Duration = Duration::from_secs(600);
/// Per endpoint and worker; more would only be held after a burst.
const MOST_IDLE: usize = 512;

#[derive(Debug)]
pub(crate) struct Upstreams {
    worker: usize,
    clock: Arc<Clock>,
    connect_timeout: Duration,
    /// By the address of the endpoint's state, which the value keeps alive.
    idle: RefCell<HashMap<usize, IdleList, RandomState>>,
}

#[derive(Debug)]
struct IdleList {
    endpoint: Arc<EndpointState>,
    connections: Vec<(UpstreamConnection, u64)>,
}

#[derive(Debug)]
pub(crate) struct UpstreamConnection {
    pub(crate) sender: SendRequest<RequestBody>,
    /// Of all responses so far.
    n_bytes_read: Arc<AtomicU64>,
    opened_at: u64,
}

impl UpstreamConnection {
    pub(crate) fn n_bytes_read(&self) -> u64 {
        self.n_bytes_read.load(Relaxed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connect: {0}")]
    Io(#[from] io::Error),
    #[error("connect: timed out")]
    TimedOut,
    #[error("connect: {0}")]
    Handshake(#[from] hyper::Error),
}

impl Upstreams {
    pub(crate) fn new(worker: usize, clock: Arc<Clock>, connect_timeout: Duration) -> Self {
        Self { worker, clock, connect_timeout, idle: RefCell::default() }
    }

    /// An idle connection to the endpoint that is still open.
    pub(crate) fn reuse(&self, endpoint: &Arc<EndpointState>) -> Option<UpstreamConnection> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key(endpoint))?;
        while let Some((connection, _)) = list.connections.pop() {
            if connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    pub(crate) async fn connect(
        &self,
        backend: &Backend,
        server: &Server,
    ) -> Result<UpstreamConnection, ConnectError> {
        let connect = TcpStream::connect(server.endpoint.address);
        let limit = backend.labels.timeouts.connect.unwrap_or(self.connect_timeout);
        let stream = tokio::time::timeout(limit, connect).await.map_err(|_| ConnectError::TimedOut)??;
        stream.set_nodelay(true)?;
        let n_bytes_read = Arc::new(AtomicU64::new(0));
        let io = UpstreamIo {
            inner: TokioIo::new(stream),
            worker: self.worker,
            backend: Arc::clone(&backend.series),
            server: Arc::clone(&server.series),
            n_bytes_read: Arc::clone(&n_bytes_read),
        };
        let (sender, connection) = http1::handshake(io).await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Ok(UpstreamConnection { sender, n_bytes_read, opened_at: self.clock.now() })
    }

    /// Takes back a connection whose response has ended.
    pub(crate) fn give_back(&self, endpoint: &Arc<EndpointState>, connection: UpstreamConnection) {
        let now = self.clock.now();
        let is_old = now.saturating_sub(connection.opened_at) > LONGEST_LIFE.as_millis() as u64;
        if is_old || connection.sender.is_closed() || !endpoint.is_usable() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle
            .entry(key(endpoint))
            .or_insert_with(|| IdleList { endpoint: Arc::clone(endpoint), connections: Vec::new() });
        if list.connections.len() < MOST_IDLE {
            list.connections.push((connection, now));
        }
    }

    /// Closes what has been idle for too long, was closed by its endpoint, or leads to an endpoint that has left.
    pub(crate) fn prune(&self) {
        let now = self.clock.now();
        let oldest = LONGEST_IDLE.as_millis() as u64;
        self.idle.borrow_mut().retain(|_, list| {
            if !list.endpoint.is_usable() {
                return false;
            }
            list.connections
                .retain(|(c, since)| now.saturating_sub(*since) < oldest && !c.sender.is_closed());
            !list.connections.is_empty()
        });
    }
}

fn key(endpoint: &Arc<EndpointState>) -> usize {
    Arc::as_ptr(endpoint).addr()
}

/// A socket to an endpoint: counts its bytes for backend and server.
#[derive(Debug)]
struct UpstreamIo {
    inner: TokioIo<TcpStream>,
    worker: usize,
    backend: Arc<Series>,
    server: Arc<Series>,
    n_bytes_read: Arc<AtomicU64>,
}

impl UpstreamIo {
    fn sent(&self, n: usize) {
        self.backend.of_worker(self.worker).bytes_in.add(n as u64);
        self.server.of_worker(self.worker).bytes_in.add(n as u64);
    }
}

impl Read for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut counted = Counted { inner: &mut self.inner, n: 0 };
        let result = counted.read(cx, buf);
        let n = counted.n as u64;
        if n > 0 {
            self.n_bytes_read.store(self.n_bytes_read.load(Relaxed) + n, Relaxed);
            self.backend.of_worker(self.worker).bytes_out.add(n);
            self.server.of_worker(self.worker).bytes_out.add(n);
        }
        result
    }
}

impl Write for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(write_pieces(&mut self.inner, cx, bufs))?;
        self.sent(n);
        Poll::Ready(Ok(n))
    }
}
