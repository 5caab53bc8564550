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
use std::task::{Context, Poll, ready};
use std::time::Duration;

use foldhash::fast::RandomState;
use l4_vip::pool::EndpointState;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::buffer::{Buffer, Spare};
use crate::http1::side::{Side, some};
use crate::http1::socket;
use crate::stats::Series;
use crate::table::{Backend, Server};
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
    stream: TcpStream,
    pub(crate) input: Buffer,
    worker: usize,
    backend: Arc<Series>,
    server: Arc<Series>,
    opened_at: u64,
    n_requests: u32,
    /// The endpoint was told whose it is, so nobody else may have it.
    is_announced: bool,
    /// Since the present request began.
    n_read: u64,
    n_written: u64,
}

impl Upstreams {
    pub(crate) fn new(worker: usize, clock: Rc<Clock>) -> Self {
        Self { worker, clock, idle: RefCell::default() }
    }

    /// An idle connection to the endpoint that is still open.
    pub(crate) fn reuse(&self, endpoint: &Arc<EndpointState>, certainty: Certainty) -> Option<Box<Upstream>> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key(endpoint))?;
        while let Some((mut connection, _)) = list.connections.pop() {
            if connection.is_quiet(certainty) {
                (connection.n_read, connection.n_written) = (0, 0);
                return Some(connection);
            }
        }
        None
    }

    /// `greeting` is written before anything else: a PROXY header, or nothing.
    pub(crate) async fn connect(
        &self,
        backend: &Backend,
        server: &Server,
        greeting: &[u8],
    ) -> io::Result<Box<Upstream>> {
        let mut stream = TcpStream::connect(server.endpoint.address).await?;
        stream.set_nodelay(true)?;
        let is_announced = !greeting.is_empty();
        if is_announced {
            stream.write_all(greeting).await?;
        }
        Ok(Box::new(Upstream {
            stream,
            input: Buffer::default(),
            worker: self.worker,
            backend: Arc::clone(&backend.series),
            server: Arc::clone(&server.series),
            opened_at: self.clock.now(),
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
                .retain(|(c, since)| now.saturating_sub(*since) < oldest && c.is_quiet(Certainty::Known));
            !list.connections.is_empty()
        });
    }
}

fn key(endpoint: &Arc<EndpointState>) -> usize {
    Arc::as_ptr(endpoint).addr()
}

impl Upstream {
    /// Nothing has come on it, not even its end.
    fn is_quiet(&self, certainty: Certainty) -> bool {
        let would_block =
            |result: io::Result<usize>| result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        match certainty {
            // Makes a system call only when the runtime has heard of something.
            Certainty::Known => would_block(self.stream.try_read(&mut [0])),
            Certainty::Asked => {
                would_block(socket2::SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit()]))
            }
        }
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
        let n = ready!(self.input.poll_receive(cx, &self.stream, spare))?;
        self.n_read += n as u64;
        self.count_read(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(socket::poll_send(cx, &self.stream, bytes))?;
        self.n_written += n as u64;
        self.count_written(n);
        Poll::Ready(some(n))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(&self.stream)
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
