//! A client's connection, from its first byte to its last: one exchange after the other.
//!
//! One task per connection and no other. It holds memory only while bytes move, reads no further than the request that
//! it is at (what is pipelined waits in the buffer, and beyond that in the kernel), and leaves every wait to the
//! worker's sweep.

mod answer;
mod deliver;
mod head;
mod prepare;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

pub(crate) use answer::{FAREWELL, FAREWELL_BYTES};
use head::HeadReader;
use prepare::{About, NotPrepared, Prepared};

use super::Framing;
use super::buffer::Buffer;
use super::front::Http1Front;
use super::refusal::Refusal;
use super::request::{Persistence, Version};
use super::side::{ClientSide, ClientStream, Side};
use super::socket::Departure;
use crate::access_log::{Outcome, Record};
use crate::failover::Attempt;
use crate::outbound::Client;
use crate::proxy::{Accepted, Then};
use crate::stats::ResponseClass;
use crate::sticky::Cookie;
use crate::wait::{Phase, Registered, SWEEP_INTERVAL, Wait};
use crate::worker::Local;

/// How long a connection that has sent nothing yet may take to do so in a drain: no less than a sweep's interval, though
/// its time begins with the last one.
const LAST_REQUEST: Duration = SWEEP_INTERVAL.saturating_mul(2);

struct Connection<S> {
    local: Rc<Local>,
    registered: Registered,
    side: ClientSide<S>,
    client: Client,
    /// Of the present request, when it is to be logged.
    record: Option<Box<Record>>,
    /// Of the last response.
    status: u16,
}

/// What is waited for of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Its first bytes: mostly they are all of its head, which is parsed without a search for its end.
    Anything,
    /// Line after line, because those were not.
    Lines,
}

/// How long the next request is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    KeepAlive,
    /// Not for long: it is waited for elsewhere then.
    Shortly,
    /// As for the first one, in a drain, too: it may be on its way.
    First,
}

enum Arrival {
    Nothing,
    /// Some.
    Bytes,
    /// A whole head of so many bytes.
    Head(usize),
    Refused(Refusal),
    Ended,
}

/// Serves a connection until it ends; a drain lets it end after the request it is at.
pub(crate) async fn serve<S: ClientStream>(local: Rc<Local>, accepted: Accepted<S>, registered: Registered) {
    let Accepted { stream, client: address, local_port, entry, protection, session, permit } = accepted;
    let side = ClientSide {
        stream,
        input: Buffer::default(),
        client: address,
        local_port,
        frontend: Arc::clone(session.series()),
        worker: local.index,
        has_ended: false,
        n_written: Cell::new(0),
        departure: Departure::AtOnce,
    };
    let client = Client::new(address, local_port, entry, protection);
    let mut connection = Connection { local, registered, side, client, record: None, status: 0 };
    connection.run().await;
    drop((session, permit));
}

impl<S: ClientStream> Connection<S> {
    async fn run(&mut self) {
        self.registered.wake_this_task().await;
        let mut waiting = Waiting::First;
        let mut reading = Reading::Anything;
        loop {
            let arrival = self.read_head(reading, waiting).await;
            if let Arrival::Ended = arrival {
                return;
            }
            // Boxed: an idle connection, of which there may be many, holds no room for an exchange. A busy one keeps
            // it from request to request.
            match Box::pin(self.serve_while_busy(arrival)).await {
                Some(next) => reading = next,
                None => return,
            }
            waiting = Waiting::KeepAlive;
        }
    }

    /// One request after the other while they come at once. Then says what is to be read next; `None`: nothing.
    async fn serve_while_busy(&mut self, mut arrival: Arrival) -> Option<Reading> {
        let mut n_in_a_row = 0;
        loop {
            let known = match arrival {
                Arrival::Bytes => None,
                Arrival::Head(n) => Some(n),
                Arrival::Nothing => return Some(Reading::Anything),
                Arrival::Refused(refusal) => {
                    self.side.shard().n_requests.increment();
                    let n_before = self.side.n_written.get();
                    Box::pin(self.refuse(refusal)).await;
                    self.log(n_before);
                    return None;
                }
                Arrival::Ended => return None,
            };
            let n_before = self.side.n_written.get();
            let then = match self.prepare(known, None) {
                Ok(mut prepared) => self.exchange(&mut prepared).await,
                Err(NotPrepared::Unscanned) => return Some(Reading::Lines),
                Err(not_prepared) => Box::pin(self.answer_instead(known, not_prepared)).await,
            };
            self.log(n_before);
            if then == Then::Close {
                return None;
            }
            n_in_a_row = if self.side.input.is_empty() { 0 } else { n_in_a_row + 1 };
            if n_in_a_row >= self.local.limits.pipelining_depth {
                n_in_a_row = 0;
                tokio::task::yield_now().await;
            }
            arrival = self.read_head(Reading::Anything, Waiting::Shortly).await;
        }
    }

    fn log(&mut self, n_before: u64) {
        if let (Some(record), Some(log)) = (self.record.take(), &self.local.access_log) {
            let n_bytes = self.side.n_written.get() - n_before;
            log.write(*record, Outcome { status: self.status, n_bytes });
        }
    }

    /// The client gets a response with this status.
    fn responds(&mut self, status: u16) {
        self.status = status;
        self.side.shard().responded(ResponseClass::of_number(status));
    }

    fn wait(&self) -> &Rc<Wait> {
        self.registered.wait()
    }

    async fn read_head(&mut self, reading: Reading, waiting: Waiting) -> Arrival {
        let Self { local, registered, side, .. } = self;
        let (limits, timeouts) = (local.limits.head(), &local.timeouts);
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::Idle, timeouts.client_keepalive);
        let mut is_last_chance = false;
        let begin = || {
            wait.enter(Phase::Head, timeouts.client_header);
            wait.limit_all(timeouts.request);
        };
        if !side.input.is_empty() {
            begin();
        }
        let mut head = HeadReader::default();
        poll_fn(|cx| {
            loop {
                match reading {
                    Reading::Anything if side.input.is_empty() => {}
                    Reading::Anything => return Poll::Ready(Arrival::Bytes),
                    Reading::Lines => match head.look(&mut side.input, &limits) {
                        Ok(Some(n)) => return Poll::Ready(Arrival::Head(n)),
                        Ok(None) => {}
                        Err(refusal) => return Poll::Ready(Arrival::Refused(refusal)),
                    },
                }
                if side.input.is_full() {
                    side.input.grow(limits.head_bytes(), &local.means.spare);
                }
                match side.poll_fill(cx, &local.means.spare) {
                    Poll::Ready(Ok(1..)) if wait.phase() == Phase::Idle => begin(),
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Arrival::Ended),
                    Poll::Pending if wait.is_expired() && wait.phase() == Phase::Head => {
                        return Poll::Ready(Arrival::Refused(Refusal::HeadTime));
                    }
                    Poll::Pending if wait.is_expired() => return Poll::Ready(Arrival::Ended),
                    Poll::Pending if wait.phase() != Phase::Idle => return Poll::Pending,
                    Poll::Pending if registered.is_draining() && waiting != Waiting::First => {
                        return Poll::Ready(Arrival::Ended);
                    }
                    Poll::Pending if registered.is_draining() && !is_last_chance => {
                        is_last_chance = true;
                        wait.enter(Phase::Idle, LAST_REQUEST);
                        return Poll::Pending;
                    }
                    Poll::Pending if waiting == Waiting::Shortly && wait.is_long() => {
                        return Poll::Ready(Arrival::Nothing);
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// A request that does not go to an endpoint, or not before its login was looked at. `known` is the head's length,
    /// if it has been scanned.
    async fn answer_instead(&mut self, known: Option<usize>, mut not_prepared: NotPrepared) -> Then {
        if let NotPrepared::Unverified(verification) = not_prepared {
            let login = verification.run().await;
            not_prepared = match self.prepare(known, Some(login)) {
                Ok(mut prepared) => return self.exchange(&mut prepared).await,
                Err(not_prepared) => not_prepared,
            };
        }
        self.side.shard().n_requests.increment();
        match not_prepared {
            // A login that was decided on is not asked for again, and a head that was whole still is.
            NotPrepared::Unverified(_) | NotPrepared::Unscanned => Then::Close,
            NotPrepared::Refused(refusal) => self.refuse(refusal).await,
            NotPrepared::Answered(answer, about, framing) => {
                let has_body = !matches!(framing, Framing::None | Framing::Length(0));
                let then = if has_body { Then::Close } else { self.then(&about) };
                self.answer(&answer, &about, then, Vec::new()).await
            }
        }
    }

    /// One request and its response. What is rare is boxed, so that the memory for what is not stays small.
    async fn exchange(&mut self, prepared: &mut Prepared) -> Then {
        self.side.shard().n_requests.increment();
        let Prepared { backend, flow, cookie, affinity, about } = prepared;
        let local = Rc::clone(&self.local);
        let wait = Rc::clone(self.wait());
        let mut front = Http1Front::new(&mut self.side, flow, about.method, &wait, &local.means);
        front.passes_interim = about.version == Version::Http11;
        front.expects_continue = about.expects_continue;
        let cookie = cookie.as_ref().map(Cookie::as_bytes);
        let attempt =
            Attempt { local: &local, wait: &wait, affinity: *affinity, cookie, waited: Cell::default() };
        let sent = attempt.send(backend, &mut front).await;
        let interim = front.into_interim();
        match sent {
            Ok(exchange) => self.deliver(exchange, flow, about, interim).await,
            Err(error) => {
                let is_read = flow.has_source_ended();
                flow.release(&local.means);
                let then = if is_read { self.then(about) } else { Then::Close };
                Box::pin(self.fail(error, about, then, interim)).await
            }
        }
    }

    fn then(&self, about: &About) -> Then {
        let keeps = about.persistence == Persistence::Keep && !self.registered.is_draining();
        if keeps { Then::Keep } else { Then::Close }
    }
}
