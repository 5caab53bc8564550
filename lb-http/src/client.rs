//! A client's connection: its socket, what it waits for, and for how long it may.
//!
//! No timer per wait: a worker's sweep looks at all its connections a few times a second. Nothing here speaks HTTP.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::Timeouts;
use crate::labels::ServiceTimeouts;
use crate::stats::Session;

/// How often waits are looked at: a time-out comes at most this much late.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Milliseconds since the worker's start, as of the last sweep.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    millis: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), millis: AtomicU64::new(0) })
    }

    pub(crate) fn advance(&self) -> u64 {
        let now = self.start.elapsed().as_millis() as u64;
        self.millis.store(now, Relaxed);
        now
    }

    pub(crate) fn now(&self) -> u64 {
        self.millis.load(Relaxed)
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// More of a request's body.
    RequestBody,
    /// The head of a response.
    ServerHead,
    /// More of a response's body, or the client to take it.
    ResponseBody,
}

impl Phase {
    fn limit(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Idle => timeouts.client_keepalive,
            Self::Head => timeouts.client_header,
            Self::RequestBody => timeouts.client_body_idle,
            Self::ServerHead => timeouts.server_head,
            Self::ResponseBody => timeouts.server_body_idle,
        }
    }
}

/// The present wait of a connection. Written and read by its worker only; atomic because hyper wants sockets that can
/// be sent.
#[derive(Debug)]
pub(crate) struct Wait {
    clock: Arc<Clock>,
    phase: AtomicU8,
    since: AtomicU64,
    expired: AtomicBool,
    /// In milliseconds, of the service that the request is for; 0: as every service.
    client_limit: AtomicU64,
    server_limit: AtomicU64,
}

impl Wait {
    /// Waits from here on last as long as the service says.
    pub(crate) fn heed(&self, timeouts: &ServiceTimeouts) {
        let millis = |time: Option<Duration>| time.map_or(0, |t| t.as_millis() as u64);
        self.client_limit.store(millis(timeouts.client), Relaxed);
        self.server_limit.store(millis(timeouts.server), Relaxed);
    }

    fn limit_millis(&self, timeouts: &Timeouts) -> u64 {
        let phase = self.phase();
        let own = match phase {
            Phase::RequestBody => self.client_limit.load(Relaxed),
            Phase::ServerHead | Phase::ResponseBody => self.server_limit.load(Relaxed),
            Phase::Idle | Phase::Head => 0,
        };
        if own > 0 { own } else { phase.limit(timeouts).as_millis() as u64 }
    }

    fn new(clock: Arc<Clock>) -> Arc<Self> {
        let since = AtomicU64::new(clock.now());
        let (phase, expired) = (AtomicU8::new(Phase::Idle as u8), AtomicBool::new(false));
        let (client_limit, server_limit) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { clock, phase, since, expired, client_limit, server_limit })
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.touch();
    }

    /// Something moved: the wait begins anew.
    pub(crate) fn touch(&self) {
        self.since.store(self.clock.now(), Relaxed);
        self.expired.store(false, Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            p if p == Phase::Idle as u8 => Phase::Idle,
            p if p == Phase::Head as u8 => Phase::Head,
            p if p == Phase::RequestBody as u8 => Phase::RequestBody,
            p if p == Phase::ServerHead as u8 => Phase::ServerHead,
            _ => Phase::ResponseBody,
        }
    }

    /// The sweep found that it has lasted too long.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Relaxed)
    }
}

/// All client connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    slots: RefCell<Vec<Option<WaitSlot>>>,
    free: RefCell<Vec<usize>>,
    draining: Cell<bool>,
}

#[derive(Debug)]
struct WaitSlot {
    wait: Arc<Wait>,
    waker: Option<Waker>,
}

impl Waits {
    pub(crate) fn register(self: &Rc<Self>, clock: &Arc<Clock>) -> Registered {
        let wait = Wait::new(Arc::clone(clock));
        let slot = Some(WaitSlot { wait: Arc::clone(&wait), waker: None });
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or(slots.len());
        match slots.get_mut(index) {
            Some(free) => *free = slot,
            None => slots.push(slot),
        }
        Registered { waits: Rc::clone(self), index, wait }
    }

    /// Wakes the connections whose wait has lasted too long.
    pub(crate) fn sweep(&self, now: u64, timeouts: &Timeouts) {
        for slot in self.slots.borrow().iter().flatten() {
            let lasted = now.saturating_sub(slot.wait.since.load(Relaxed));
            let limit = slot.wait.limit_millis(timeouts);
            if lasted >= limit
                && !slot.wait.expired.swap(true, Relaxed)
                && let Some(waker) = &slot.waker
            {
                waker.wake_by_ref();
            }
        }
    }

    /// Tells every connection to end after the request it is at.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        for slot in self.slots.borrow().iter().flatten() {
            slot.waker.iter().for_each(Waker::wake_by_ref);
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// A connection's place among the worker's connections.
#[derive(Debug)]
pub(crate) struct Registered {
    waits: Rc<Waits>,
    index: usize,
    wait: Arc<Wait>,
}

impl Registered {
    pub(crate) fn wait(&self) -> &Arc<Wait> {
        &self.wait
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.waits.is_draining()
    }

    /// The sweep and the drain wake this task.
    pub(crate) fn wake_me(&self, waker: &Waker) {
        if let Some(Some(slot)) = self.waits.slots.borrow_mut().get_mut(self.index)
            && !slot.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            slot.waker = Some(waker.clone());
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.waits.slots.borrow_mut()[self.index] = None;
        self.waits.free.borrow_mut().push(self.index);
    }
}

/// A client's socket: counts its bytes for the frontend and sees the first byte of a request.
#[derive(Debug)]
pub(crate) struct ClientIo {
    inner: TokioIo<TcpStream>,
    wait: Arc<Wait>,
    session: Session,
    worker: usize,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream, wait: Arc<Wait>, session: Session, worker: usize) -> Self {
        Self { inner: TokioIo::new(stream), wait, session, worker }
    }

    /// Says so much as fits into the socket, before the connection is dropped.
    pub(crate) fn say_last(&self, bytes: &'static [u8]) {
        if let Ok(n) = self.inner.inner().try_write(bytes) {
            self.sent(n);
        }
    }

    fn sent(&self, n: usize) {
        self.session.series().of_worker(self.worker).bytes_out.add(n as u64);
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut counted = Counted { inner: &mut self.inner, n: 0 };
        let result = counted.read(cx, buf);
        let n = counted.n;
        if n > 0 {
            if self.wait.phase() == Phase::Idle {
                self.wait.enter(Phase::Head);
            }
            self.session.series().of_worker(self.worker).bytes_in.add(n as u64);
        }
        result
    }
}

impl Write for ClientIo {
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

/// Up to this much is copied together: one plain send costs less than a vectored one.
const COPIED_BYTES: usize = 2048;

/// Writes pieces of a message as few and as cheap calls as possible.
pub(crate) fn write_pieces(
    io: &mut TokioIo<TcpStream>,
    cx: &mut Context<'_>,
    pieces: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let io = Pin::new(io);
    if let [piece] = pieces {
        return io.poll_write(cx, piece);
    }
    if pieces.iter().map(|piece| piece.len()).sum::<usize>() > COPIED_BYTES {
        return io.poll_write_vectored(cx, pieces);
    }
    let mut room = [const { MaybeUninit::uninit() }; COPIED_BYTES];
    let mut together = tokio::io::ReadBuf::uninit(&mut room);
    pieces.iter().for_each(|piece| together.put_slice(piece));
    io.poll_write(cx, together.filled())
}

/// Reads and tells how much, which hyper's cursor does not.
pub(crate) struct Counted<'a> {
    pub(crate) inner: &'a mut TokioIo<TcpStream>,
    pub(crate) n: usize,
}

impl Counted<'_> {
    pub(crate) fn read(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // SAFETY: as hyper-util's TokioIo: the uninitialised bytes are only lent to tokio's ReadBuf, which tracks what
        // it filled, and exactly that much is claimed as filled.
        unsafe {
            let mut lent = tokio::io::ReadBuf::uninit(buf.as_mut());
            ready!(tokio::io::AsyncRead::poll_read(Pin::new(self.inner.inner_mut()), cx, &mut lent))?;
            self.n = lent.filled().len();
            buf.advance(self.n);
        }
        Poll::Ready(Ok(()))
    }
}
