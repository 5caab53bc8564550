//! What each connection of a worker waits for, and for how long it may.
//!
//! No timer per wait: a worker's sweep looks at all its connections a few times a second. Nothing here speaks HTTP.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How often waits are looked at: a time-out comes at most this much early or late, for a wait is said to have begun at
/// the last look.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// A wait is a long one when it has seen two sweeps.
const LONG_MILLIS: u64 = 150;

/// Milliseconds since the worker's start, as of the last sweep.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    millis: Cell<u64>,
}

impl Clock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { start: Instant::now(), millis: Cell::new(0) })
    }

    pub(crate) fn advance(&self) -> u64 {
        let now = self.start.elapsed().as_millis() as u64;
        self.millis.set(now);
        now
    }

    pub(crate) fn now(&self) -> u64 {
        self.millis.get()
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// Room at an endpoint.
    Queue,
    /// An endpoint to accept.
    Connect,
    /// More of a request's body.
    RequestBody,
    /// The head of a response.
    ServerHead,
    /// More of a response's body, or the client to take it.
    ResponseBody,
    /// A byte in either direction of an upgraded connection.
    Tunnel,
    /// The client to read the last response and to close.
    Farewell,
}

/// The present wait of a connection.
#[derive(Debug)]
pub(crate) struct Wait {
    clock: Rc<Clock>,
    phase: Cell<Phase>,
    since: Cell<u64>,
    limit_millis: Cell<u64>,
    /// Whatever the phase is; `u64::MAX`: for ever.
    until: Cell<u64>,
    expired: Cell<bool>,
    /// The task wants to be woken when the wait is a long one.
    minds_length: Cell<bool>,
}

impl Wait {
    fn new(clock: Rc<Clock>) -> Rc<Self> {
        Rc::new(Self {
            since: Cell::new(clock.now()),
            phase: Cell::new(Phase::Idle),
            limit_millis: Cell::new(u64::MAX),
            until: Cell::new(u64::MAX),
            expired: Cell::new(false),
            minds_length: Cell::new(false),
            clock,
        })
    }

    pub(crate) fn enter(&self, phase: Phase, limit: Duration) {
        self.phase.set(phase);
        // Not `as_millis`, which counts in 128 bits.
        self.limit_millis.set(limit.as_secs().saturating_mul(1000) + u64::from(limit.subsec_millis()));
        self.since.set(self.clock.now());
        self.expired.set(false);
        self.minds_length.set(false);
    }

    /// Whether it has lasted so long that what is not worth its while in a short wait is. If not, the sweep wakes the
    /// task when it has.
    pub(crate) fn is_long(&self) -> bool {
        let is_long = self.has_lasted(self.clock.now()) >= LONG_MILLIS;
        self.minds_length.set(!is_long);
        is_long
    }

    /// Something moved: the wait begins anew.
    pub(crate) fn touch(&self) {
        self.since.set(self.clock.now());
        self.expired.set(self.clock.now() >= self.until.get());
    }

    /// From now on all waits together may take so long.
    pub(crate) fn limit_all(&self, limit: Option<Duration>) {
        let until = limit.map(|limit| self.clock.now().saturating_add(limit.as_millis() as u64));
        self.until.set(until.unwrap_or(u64::MAX));
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// The sweep found that it has lasted too long.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired.get()
    }

    /// All waits together have lasted too long.
    pub(crate) fn is_all_over(&self) -> bool {
        self.clock.now() >= self.until.get()
    }

    fn is_over(&self, now: u64) -> bool {
        self.has_lasted(now) >= self.limit_millis.get() || now >= self.until.get()
    }

    fn has_lasted(&self, now: u64) -> u64 {
        now.saturating_sub(self.since.get())
    }

    /// Whether the task is to be woken, which is said once.
    fn is_due(&self, now: u64) -> bool {
        if self.is_over(now) {
            return !self.expired.replace(true);
        }
        self.minds_length.get() && self.has_lasted(now) >= LONG_MILLIS && self.minds_length.replace(false)
    }

    /// `None`: the wait was too long.
    pub(crate) async fn unless_expired<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.is_expired() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
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
    wait: Rc<Wait>,
    waker: Option<Waker>,
}

impl Waits {
    pub(crate) fn register(self: &Rc<Self>, clock: &Rc<Clock>) -> Registered {
        let wait = Wait::new(Rc::clone(clock));
        let slot = Some(WaitSlot { wait: Rc::clone(&wait), waker: None });
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or(slots.len());
        match slots.get_mut(index) {
            Some(free) => *free = slot,
            None => slots.push(slot),
        }
        Registered { waits: Rc::clone(self), index, wait }
    }

    /// Wakes the connections whose wait has lasted too long, or long enough for those that mind.
    pub(crate) fn sweep(&self, now: u64) {
        for slot in self.slots.borrow().iter().flatten() {
            if slot.wait.is_due(now)
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
}

/// A connection's place among the worker's connections.
#[derive(Debug)]
pub(crate) struct Registered {
    waits: Rc<Waits>,
    index: usize,
    wait: Rc<Wait>,
}

impl Registered {
    pub(crate) fn wait(&self) -> &Rc<Wait> {
        &self.wait
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.waits.draining.get()
    }

    /// A place of its own for another task of the same worker.
    pub(crate) fn another(&self) -> Self {
        self.waits.register(&self.wait.clock)
    }

    /// The sweep and the drain wake the task that waits for this.
    pub(crate) async fn wake_this_task(&self) {
        poll_fn(|cx| {
            self.wake_me(cx.waker());
            Poll::Ready(())
        })
        .await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_by_its_own_limit_or_by_that_of_all() {
        let clock = Clock::new();
        let waits = Rc::new(Waits::default());
        let registered = waits.register(&clock);
        let wait = registered.wait();
        wait.enter(Phase::ServerHead, Duration::from_millis(50));
        waits.sweep(49);
        assert!(!wait.is_expired());
        waits.sweep(50);
        assert!(wait.is_expired());
        wait.touch();
        assert!(!wait.is_expired());
        wait.limit_all(Some(Duration::from_millis(20)));
        waits.sweep(20);
        assert!(wait.is_expired());
        wait.limit_all(None);
        wait.enter(Phase::Idle, Duration::from_secs(1));
        waits.sweep(999);
        assert!(!wait.is_expired());
        assert!(!wait.is_long());
        assert!(!wait.is_due(LONG_MILLIS - 1) && wait.is_due(LONG_MILLIS) && !wait.is_due(LONG_MILLIS + 1));
    }
}
