//! A worker's connections to endpoints: idle ones are kept per endpoint, newest first.
//!
//! It does not choose endpoints and does not retry. A connection belongs to one worker for life. An idle one has no
//! task and no buffer; that its endpoint closed it is seen when it is wanted or at the next pruning.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use foldhash::fast::RandomState;
use l4_vip::pool::EndpointState;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::http1::buffer::{Buffer, Spare};
use crate::http1::response::Response;
use crate::http1::side::{Side, some};
use crate::http1::socket::{self, Departure};
use crate::stats::{Series, Shard};
use crate::table::{Backend, Server};
use crate::tls::{ServerTls, ToServer};
use crate::wait::Clock;

/// Shorter than what most servers wait for the next request, so that we close first and no request meets a close.
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// A connection is replaced after this, so that none lives for ever with an endpoint that wants to move on.
const LONGEST_LIFE: Duration = Duration::from_secs(600);
/// And after so many requests, for endpoints that leak per connection.
const MOST_REQUESTS: u32 = 100_000;
/// Per endpoint and worker; more would only be held after a burst.
const MOST_IDLE: usize = 512;

#[derive(Debug)]
pub(crate) struct Upstreams {
    worker: usize,
    clock: Rc<Clock>,
    /// By the address of the endpoint's state, which the value keeps alive.
    idle: RefCell<HashMap<usize, IdleList, RandomState>>,
}

#[derive(Debug)]
struct IdleList {
    endpoint: Arc<EndpointState>,
    connections: Vec<(Box<Upstream>, u64)>,
}

/// How sure it must be that an idle connection is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// What is known will do: the request can be sent again.
    Known,
    /// The kernel is asked, because the request can be sent only once.
    Asked,
}

/// A connection to an endpoint; counts its bytes for backend and server. Boxed, because it is handed on a lot.
#[derive(Debug)]
pub(crate) struct Upstream {
    stream: Stream,
    pub(crate) input: Buffer,
    /// To the present request, once it is answered. It has its place here, because this is boxed and it is large.
    pub(crate) response: Response,
    worker: usize,
    backend: Arc<Series>,
    server: Arc<Series>,
    opened_at: u64,
    n_requests: u32,
    /// As the labels had it then.
    tls: Option<Arc<ServerTls>>,
    /// The endpoint was told whose it is, so nobody else may have it.
    is_announced: bool,
    /// Since the present request began.
    n_read: u64,
    n_written: u64,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connect failed: {0}")]
    Tcp(#[from] io::Error),
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
}

impl Upstreams {
    pub(crate) fn new(worker: usize, clock: Rc<Clock>) -> Self {
        Self { worker, clock, idle: RefCell::default() }
    }

    /// An idle connection to the endpoint that is still open, and was made in TLS of this kind.
    pub(crate) fn reuse(
        &self,
        endpoint: &Arc<EndpointState>,
        certainty: Certainty,
        tls: Option<&Arc<ServerTls>>,
    ) -> Option<Box<Upstream>> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key(endpoint))?;
        while let Some((mut connection, _)) = list.connections.pop() {
            connection.counted().n_idle.decrement();
            if connection.tls.as_ref() == tls && connection.is_quiet(certainty) {
                (connection.n_read, connection.n_written) = (0, 0);
                return Some(connection);
            }
        }
        None
    }

    /// `greeting` is written before anything else, TLS included: a PROXY header, or nothing.
    pub(crate) async fn connect(
        &self,
        backend: &Backend,
        server: &Server,
        greeting: &[u8],
        tls: Option<ToServer>,
    ) -> Result<Box<Upstream>, ConnectError> {
        let mut stream = TcpStream::connect(server.endpoint.address).await?;
        stream.set_nodelay(true)?;
        let is_announced = !greeting.is_empty();
        if is_announced {
            stream.write_all(greeting).await?;
        }
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(tls) => Stream::Tls(Box::new(tls.greet(stream).await.map_err(ConnectError::Tls)?)),
        };
        Ok(Box::new(Upstream {
            stream,
            input: Buffer::default(),
            response: Response::default(),
            worker: self.worker,
            backend: Arc::clone(&backend.series),
            server: Arc::clone(&server.series),
            opened_at: self.clock.now(),
            tls: backend.labels.server_tls.clone(),
            n_requests: 0,
            is_announced,
            n_read: 0,
            n_written: 0,
        }))
    }

    /// Takes back a connection whose response has ended.
    pub(crate) fn give_back(
        &self,
        endpoint: &Arc<EndpointState>,
        mut connection: Box<Upstream>,
        spare: &Spare,
    ) {
        let now = self.clock.now();
        let is_old = now.saturating_sub(connection.opened_at) > LONGEST_LIFE.as_millis() as u64;
        connection.n_requests += 1;
        // Bytes that nobody asked for would answer the next client's request.
        let has_more = !connection.input.is_empty();
        if connection.is_announced
            || is_old
            || has_more
            || connection.n_requests >= MOST_REQUESTS
            || !endpoint.is_usable()
        {
            return;
        }
        connection.input.release(spare);
        let mut idle = self.idle.borrow_mut();
        let list = idle
            .entry(key(endpoint))
            .or_insert_with(|| IdleList { endpoint: Arc::clone(endpoint), connections: Vec::new() });
        if list.connections.len() < MOST_IDLE {
            connection.counted().n_idle.increment();
            list.connections.push((connection, now));
        }
    }

    /// Closes what has been idle for too long, was closed by its endpoint, or leads to an endpoint that has left.
    pub(crate) fn prune(&self) {
        let now = self.clock.now();
        let oldest = LONGEST_IDLE.as_millis() as u64;
        self.idle.borrow_mut().retain(|_, list| {
            let is_usable = list.endpoint.is_usable();
            list.connections.retain_mut(|(c, since)| {
                let stays = is_usable && now.saturating_sub(*since) < oldest && c.is_quiet(Certainty::Known);
                if !stays {
                    c.counted().n_idle.decrement();
                }
                stays
            });
            !list.connections.is_empty()
        });
    }
}

fn key(endpoint: &Arc<EndpointState>) -> usize {
    Arc::as_ptr(endpoint).addr()
}

impl Upstream {
    /// Nothing has come on it, not even its end.
    fn is_quiet(&mut self, certainty: Certainty) -> bool {
        let would_block =
            |result: io::Result<usize>| result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        let is_unread = |stream: &TcpStream| {
            would_block(socket2::SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]))
        };
        let stream = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => {
                // Messages of TLS itself, tickets for one, are no response. What the kernel has and the runtime has not
                // heard of yet could be anything.
                let mut byte = [0];
                let mut room = ReadBuf::new(&mut byte);
                let mut cx = Context::from_waker(Waker::noop());
                let is_silent = Pin::new(&mut **stream).poll_read(&mut cx, &mut room).is_pending();
                return is_silent && (certainty == Certainty::Known || is_unread(stream.get_ref().0));
            }
        };
        match certainty {
            // Makes a system call only when the runtime has heard of something.
            Certainty::Known => would_block(stream.try_read(&mut [0])),
            Certainty::Asked => is_unread(stream),
        }
    }

    fn counted(&self) -> &Shard {
        self.server.of_worker(self.worker)
    }

    /// Bytes of the response that have come.
    pub(crate) fn n_read(&self) -> u64 {
        self.n_read
    }

    /// Bytes of the request that were written.
    pub(crate) fn n_written(&self) -> u64 {
        self.n_written
    }
}

impl Side for Upstream {
    fn input(&mut self) -> &mut Buffer {
        &mut self.input
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, spare: &Spare) -> Poll<io::Result<usize>> {
        let n = ready!(match &mut self.stream {
            Stream::Plain(stream) => self.input.poll_receive(cx, stream, spare),
            Stream::Tls(stream) => self.input.poll_fill(cx, &mut **stream, spare),
        })?;
        self.n_read += n as u64;
        self.count_read(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(match &mut self.stream {
            Stream::Plain(stream) => socket::poll_send(cx, stream, bytes, Departure::AtOnce),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        })?;
        self.n_written += n as u64;
        self.count_written(n);
        Poll::Ready(some(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self.stream, Stream::Plain(_))
    }

    fn plain(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(_) => None,
        }
    }

    fn count_read(&self, n: usize) {
        self.backend.of_worker(self.worker).bytes_out.add(n as u64);
        self.server.of_worker(self.worker).bytes_out.add(n as u64);
    }

    fn count_written(&self, n: usize) {
        self.backend.of_worker(self.worker).bytes_in.add(n as u64);
        self.server.of_worker(self.worker).bytes_in.add(n as u64);
    }
}
