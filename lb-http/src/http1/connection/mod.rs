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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use l4_vip::proxy_protocol::Ends;

pub(crate) use answer::{FAREWELL, FAREWELL_BYTES};
use head::HeadReader;
use prepare::{About, NotPrepared, Prepared};

use super::Framing;
use super::buffer::Buffer;
use super::front::Http1Front;
use super::refusal::Refusal;
use super::request::{Persistence, Version};
use super::side::{ClientSide, ClientStream, Side};
use crate::access::Scheme;
use crate::access_log::{Outcome, Record};
use crate::edits;
use crate::failover::Attempt;
use crate::proxy::{Accepted, Entry, Protection, Then};
use crate::stats::ResponseClass;
use crate::sticky::Cookie;
use crate::wait::{Phase, Registered, Wait};
use crate::worker::Local;

/// How long a connection that was accepted during a drain may take to send its request.
const LAST_REQUEST: Duration = Duration::from_millis(100);
/// So many pipelined requests are served before others of the worker have their turn.
const MOST_IN_A_ROW: u32 = 16;

struct Connection<S> {
    local: Rc<Local>,
    registered: Registered,
    side: ClientSide<S>,
    entry: Entry,
    origin: edits::Connection,
    ends: Ends,
    protection: Protection,
    /// What every request is told about the client.
    lines: Box<[u8]>,
    /// Of the present request, when it is to be logged.
    record: Option<Box<Record>>,
    /// Of the last response.
    status: u16,
}

enum Arrival {
    /// A whole head of so many bytes.
    Head(usize),
    Refused(Refusal),
    Ended,
}

/// Serves a connection until it ends; a drain lets it end after the request it is at.
pub(crate) async fn serve<S: ClientStream>(local: Rc<Local>, accepted: Accepted<S>, registered: Registered) {
    let Accepted { stream, client, local_port, entry, protection, session, permit } = accepted;
    let address = client.ip().to_canonical();
    let proto = match protection {
        Protection::Plain => "",
        Protection::Tls { .. } => "X-Forwarded-Proto: https\r\n",
    };
    let lines = format!("X-Forwarded-For: {address}\r\nX-Forwarded-Port: {local_port}\r\n{proto}");
    // Where it came to is not known of a connection that is no socket as it is; its port is.
    let local_address = stream.plain().and_then(|stream| stream.local_addr().ok());
    let destination = local_address.unwrap_or_else(|| match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, local_port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, local_port).into(),
    });
    let ends = Ends { source: client, destination };
    let side = ClientSide {
        stream,
        input: Buffer::default(),
        frontend: Arc::clone(session.series()),
        worker: local.index,
        has_ended: false,
        n_written: Cell::new(0),
    };
    let lines = lines.into_bytes().into();
    let scheme = match protection {
        Protection::Plain => Scheme::Http,
        Protection::Tls { .. } => Scheme::Https,
    };
    let origin = edits::Connection { scheme, client: address, local_port };
    let mut connection = Connection {
        local,
        registered,
        side,
        entry,
        origin,
        ends,
        protection,
        lines,
        record: None,
        status: 0,
    };
    connection.run().await;
    drop((session, permit));
}

impl<S: ClientStream> Connection<S> {
    async fn run(&mut self) {
        self.registered.wake_this_task().await;
        // It was in the backlog: its request is served, if there is one.
        let mut is_last_chance = self.registered.is_draining();
        let mut n_in_a_row = 0;
        loop {
            let idle = if is_last_chance { LAST_REQUEST } else { self.local.timeouts.client_keepalive };
            let then = match self.read_head(idle, is_last_chance).await {
                Arrival::Head(n) => {
                    let n_before = self.side.n_written.get();
                    // Boxed: an idle connection, of which there may be many, holds no room for an exchange.
                    let then = Box::pin(self.exchange(n)).await;
                    self.log(n_before);
                    then
                }
                Arrival::Refused(refusal) => Box::pin(self.refuse(refusal)).await,
                Arrival::Ended => return,
            };
            if then == Then::Close {
                return;
            }
            is_last_chance = false;
            n_in_a_row = if self.side.input.is_empty() { 0 } else { n_in_a_row + 1 };
            if n_in_a_row == MOST_IN_A_ROW {
                n_in_a_row = 0;
                tokio::task::yield_now().await;
            }
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

    async fn read_head(&mut self, idle: Duration, waits_in_drain: bool) -> Arrival {
        let Self { local, registered, side, .. } = self;
        let (limits, timeouts) = (local.limits.head(), &local.timeouts);
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::Idle, idle);
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
                match head.look(&mut side.input, &limits) {
                    Ok(Some(n)) => return Poll::Ready(Arrival::Head(n)),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Arrival::Refused(refusal)),
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
                    Poll::Pending
                        if registered.is_draining() && !waits_in_drain && wait.phase() == Phase::Idle =>
                    {
                        return Poll::Ready(Arrival::Ended);
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// One request and its response. The head is the first `n` bytes of the input.
    async fn exchange(&mut self, n: usize) -> Then {
        self.side.shard().n_requests.increment();
        let mut prepared = self.prepare(n, None);
        if let Err(NotPrepared::Unverified(verification)) = prepared {
            let login = verification.run().await;
            prepared = self.prepare(n, Some(login));
        }
        let Prepared { backend, flow, cookie, affinity, about } = match prepared {
            Ok(prepared) => prepared,
            // A login that was decided on is not asked for again.
            Err(NotPrepared::Unverified(_)) => return Then::Close,
            Err(NotPrepared::Refused(refusal)) => return self.refuse(refusal).await,
            Err(NotPrepared::Answered(answer, about, framing)) => {
                let has_body = !matches!(framing, Framing::None | Framing::Length(0));
                let then = if has_body { Then::Close } else { self.then(&about) };
                return self.answer(&answer, &about, then, Vec::new()).await;
            }
        };
        let local = Rc::clone(&self.local);
        let wait = Rc::clone(self.wait());
        let mut front = Http1Front::new(&mut self.side, flow, about.method, &wait, &local.means);
        front.passes_interim = about.version == Version::Http11;
        front.expects_continue = about.expects_continue;
        let cookie = cookie.as_ref().map(Cookie::as_bytes);
        let attempt = Attempt { local: &local, wait: &wait, affinity, cookie, ends: self.ends };
        let sent = attempt.send(backend, &mut front).await;
        let (flow, interim) = front.into_parts();
        match sent {
            Ok(exchange) => self.deliver(exchange, flow, &about, interim).await,
            Err(error) => {
                let is_read = flow.has_source_ended();
                flow.release(&local.means);
                self.fail(error, &about, if is_read { self.then(&about) } else { Then::Close }, interim).await
            }
        }
    }

    fn then(&self, about: &About) -> Then {
        let keeps = about.persistence == Persistence::Keep && !self.registered.is_draining();
        if keeps { Then::Keep } else { Then::Close }
    }
}
