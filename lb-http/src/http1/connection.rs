//! A client's connection, from its first byte to its last: one exchange after the other.
//!
//! One task per connection and no other. It holds memory only while bytes move, reads no further than the request that
//! it is at (what is pipelined waits in the buffer, and beyond that in the kernel), and leaves every wait to the
//! worker's sweep.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use l4_vip::proxy_protocol::Ends;

use super::Framing;
use super::buffer::Buffer;
use super::fields::Name;
use super::flow::{Coding, Flow, FlowError};
use super::front::Http1Front;
use super::refusal::Refusal;
use super::request::{self, Method, Persistence, Request, Version};
use super::response::BadResponse;
use super::scan::{Scan, Scanned};
use super::serialize::{self, Delivery, Edits, Forwarding, Proto};
use super::side::{ClientSide, ClientStream, Side};
use super::tunnel;
use crate::access::{Admit, Scheme, Verification};
use crate::access_log::{Outcome, Record};
use crate::edits;
use crate::error::ProxyError;
use crate::exchange::{CookieDue, Exchange};
use crate::failover::Attempt;
use crate::proxy::{self, Accepted, Answer, Entry, Origin, Protection, Stop, Then};
use crate::stats::ResponseClass;
use crate::sticky::{self, Cookie};
use crate::table::Backend;
use crate::wait::{Phase, Registered, Wait};
use crate::worker::Local;

/// How long a connection that was accepted during a drain may take to send its request.
const LAST_REQUEST: Duration = Duration::from_millis(100);
/// RFC 9112 section 2.2 wants one to be ignored; more than a few are no accident.
const MOST_EMPTY_LINES: u32 = 4;
/// So many pipelined requests are served before others of the worker have their turn.
const MOST_IN_A_ROW: u32 = 16;
/// How long, and for how many bytes, a client that was refused is listened to: a close at once would be a reset, and
/// the client might never see why.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
pub(crate) const FAREWELL_BYTES: usize = 4 << 20;

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

/// A request that is ready to be sent.
struct Prepared {
    backend: Arc<Backend>,
    flow: Flow,
    cookie: Option<Cookie>,
    affinity: Option<u64>,
    about: About,
}

/// What must be known of a request when its head is gone.
#[derive(Clone, Copy)]
struct About {
    method: Method,
    version: Version,
    persistence: Persistence,
    expects_continue: bool,
    wants_websocket: bool,
    started: Instant,
}

enum NotPrepared {
    Refused(Refusal),
    Answered(Answer, About, Framing),
    /// The head is still there, to be prepared again.
    Unverified(Verification),
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
        let mut head = HeadReader { scan: Scan::default(), n_empty_lines: 0, first_line: None };
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

    fn prepare(&mut self, n: usize, login: Option<Admit>) -> Result<Prepared, NotPrepared> {
        let local = &self.local;
        let mut fields = local.fields.take();
        let head = &self.side.input.filled()[..n];
        let request = match Request::parse(head, &mut fields) {
            Ok(request) => request,
            Err(refusal) => {
                local.fields.set(fields);
                return Err(NotPrepared::Refused(refusal));
            }
        };
        let about = About {
            method: request.method(),
            version: request.version(),
            persistence: request.persistence,
            expects_continue: request.expects_continue,
            wants_websocket: request.wants_websocket,
            started: Instant::now(),
        };
        let framing = request.framing;
        let request_id = local.request_ids.next();
        let is_misdirected = matches!(self.protection, Protection::Tls { .. })
            && local.with_tls(|tls| proxy::is_misdirected(&self.protection, self.entry, &request, tls));
        let routed = match is_misdirected {
            true => Err(Answer::misdirected(proxy::text(request.host()))),
            false => local.with_table(|table| proxy::route(table, self.entry, &request)),
        };
        let origin = Origin { entry: self.entry, connection: self.origin };
        let allowed = routed.map_err(Stop::Answer).and_then(|backend| {
            match proxy::before_pick(&backend, &request, &origin, login) {
                Ok(()) => Ok(backend),
                Err(stop) => {
                    if matches!(&stop, Stop::Answer(answer) if answer.is_denial()) {
                        self.side.shard().n_denied_requests.increment();
                        backend.series.of_worker(local.index).n_denied_requests.increment();
                    }
                    Err(stop)
                }
            }
        });
        self.status = 0;
        self.record = local
            .access_log
            .as_ref()
            .and_then(|log| log.record(self.origin.client, &request, allowed.as_deref().ok(), &request_id));
        let prepared = allowed.map(|backend| {
            let mut cookies = local.scratch.take();
            cookies.clear();
            let cookie = (backend.is_sticky() && request.has(Name::Cookie))
                .then(|| {
                    let name = backend.labels.cookie.name();
                    sticky::take_cookie(request.values(Name::Cookie), name, &mut cookies)
                })
                .flatten();
            let has_changed = cookie.is_some() || !cookies.is_empty();
            let edits = proxy::request_edits(&backend, &request, &self.origin);
            let is_ours = edits.as_ref().is_none_or(|e| e.forwarding == edits::Forwarding::Standard);
            let forwarding = Forwarding {
                lines: if is_ours { &self.lines } else { b"" },
                proto: match self.protection {
                    Protection::Plain => Proto::OfClient,
                    Protection::Tls { .. } => Proto::Ours,
                },
                target: edits.as_ref().and_then(|e| e.target.as_deref()).map(str::as_bytes),
                request_id: &request_id,
                cookies: has_changed.then_some(&*cookies),
                edits: edits.as_ref().map_or(Edits::NONE, |e| &e.edits),
            };
            let mut out = local.means.spare.output();
            serialize::request(&mut out, &request, &forwarding);
            local.scratch.set(cookies);
            let affinity = proxy::affinity(&backend, &request, self.origin.client);
            (backend, cookie, affinity, out)
        });
        local.fields.set(fields);
        if let Err(Stop::Verify(verification)) = prepared {
            return Err(NotPrepared::Unverified(verification));
        }
        self.side.input.consume(n);
        let (backend, cookie, affinity, out) = prepared.map_err(|stop| match stop {
            Stop::Answer(answer) => NotPrepared::Answered(answer, about, framing),
            Stop::Verify(verification) => NotPrepared::Unverified(verification),
        })?;
        let coding = if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
        let mut flow = Flow::new(framing, coding, out);
        if flow.take_along(&mut self.side.input).is_err() {
            flow.release(&self.local.means);
            return Err(NotPrepared::Refused(Refusal::Chunk));
        }
        if self.side.input.is_empty() {
            self.side.input.release(&self.local.means.spare);
        }
        Ok(Prepared { backend, flow, cookie, affinity, about })
    }

    fn then(&self, about: &About) -> Then {
        let keeps = about.persistence == Persistence::Keep && !self.registered.is_draining();
        if keeps { Then::Keep } else { Then::Close }
    }

    /// Gives the client the response; `up` is what is left of the request, `out` of interim responses.
    async fn deliver(&mut self, mut exchange: Exchange, mut up: Flow, about: &About, out: Vec<u8>) -> Then {
        let took = about.started.elapsed();
        if let Some(record) = &mut self.record {
            record.server = Some(exchange.server().name.to_string());
        }
        if exchange.response.status == 101 {
            if !about.wants_websocket || !exchange.response.switches_to_websocket() {
                let error = ProxyError::BadResponse(BadResponse::Switch);
                exchange.bad_response();
                return self.fail(error, about, self.then(about), out).await;
            }
            exchange.responded(took);
            return self.tunnel(exchange, out).await;
        }
        let is_read = up.has_source_ended();
        let mut is_sent = up.is_written();
        let framing = exchange.response.framing;
        let is_11 = about.version == Version::Http11;
        let ends_with_connection = !is_11 && matches!(framing, Framing::Chunked | Framing::UntilClose);
        let then = if is_read && !ends_with_connection { self.then(about) } else { Then::Close };
        let coding = match framing {
            Framing::Chunked | Framing::UntilClose if is_11 => Coding::Chunked,
            _ => Coding::Plain,
        };
        let mut out = if out.capacity() == 0 { self.local.means.spare.output() } else { out };
        let connection = connection_line(then, about.version);
        write_response(&mut out, &exchange, about, coding, connection, &self.origin);
        exchange.consume_head();
        let mut down = Flow::new(framing, coding, out);
        if down.take_along(&mut exchange.upstream.input).is_err() {
            exchange.bad_response();
            let error = ProxyError::BadResponse(BadResponse::Chunk);
            return self.fail(error, about, then, Vec::new()).await;
        }
        exchange.responded(took);
        self.responds(exchange.response.status);
        let Self { local, registered, side, .. } = self;
        let (wait, means) = (registered.wait(), &local.means);
        let limit = exchange.backend.labels.timeouts.server.unwrap_or(local.timeouts.server_body_idle);
        wait.enter(Phase::ResponseBody, limit);
        let mut is_taken = true;
        let end = poll_fn(|cx| {
            if !is_sent {
                match up.poll(cx, side, &mut exchange.upstream, wait, means) {
                    Poll::Pending => {}
                    Poll::Ready(Err(FlowError::Cut | FlowError::BadChunk(_) | FlowError::Read(_))) => {
                        return Poll::Ready(End::Client);
                    }
                    Poll::Ready(result) => (is_sent, is_taken) = (true, result.is_ok()),
                }
            }
            match down.poll(cx, &mut exchange.upstream, side, wait, means) {
                Poll::Ready(Ok(())) => Poll::Ready(End::Whole),
                Poll::Ready(Err(FlowError::Write(_))) => Poll::Ready(End::Client),
                Poll::Ready(Err(_)) => Poll::Ready(End::Server),
                Poll::Pending if wait.is_expired() => Poll::Ready(End::Server),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        up.release(means);
        down.release(means);
        match end {
            End::Whole if is_sent && is_taken => exchange.ended(),
            End::Whole => {}
            End::Client => exchange.given_up(),
            End::Server => exchange.broken(),
        }
        match end {
            End::Whole if then == Then::Keep => Then::Keep,
            End::Whole => {
                if !is_read || !self.side.input.is_empty() {
                    self.farewell().await;
                }
                Then::Close
            }
            End::Client | End::Server => {
                if ends_with_connection {
                    self.side.stream.cut();
                }
                Then::Close
            }
        }
    }

    async fn tunnel(&mut self, exchange: Exchange, mut out: Vec<u8>) -> Then {
        let edits =
            proxy::response_edits(&exchange.backend, &exchange.response, exchange.head(), &self.origin);
        let delivery = Delivery {
            coding: Coding::Plain,
            connection: b"Connection: upgrade\r\nUpgrade: websocket\r\n",
            lines: &[],
            edits: &edits,
        };
        serialize::response(&mut out, &exchange.response, exchange.head(), &delivery);
        self.responds(exchange.response.status);
        let wait = self.registered.wait();
        wait.limit_all(None);
        let limit = exchange.backend.labels.timeouts.tunnel.unwrap_or(self.local.timeouts.tunnel_idle);
        wait.enter(Phase::Tunnel, limit);
        tunnel::run(&mut self.side, exchange, out, wait, &self.local.means).await;
        Then::Close
    }

    async fn refuse(&mut self, refusal: Refusal) -> Then {
        self.side.shard().refused(refusal);
        // Whatever its method was, what it would have been to it is unknown: a body does no harm, as this is the last.
        let about = About {
            method: Method::Other,
            version: Version::Http11,
            persistence: Persistence::Close,
            expects_continue: false,
            wants_websocket: false,
            started: Instant::now(),
        };
        self.answer(&Answer::refused(refusal), &about, Then::Close, Vec::new()).await
    }

    async fn fail(&mut self, error: ProxyError, about: &About, then: Then, out: Vec<u8>) -> Then {
        let Some(answer) = Answer::failed(error) else { return Then::Close };
        if let ProxyError::Refused(refusal) = error {
            self.side.shard().refused(refusal);
        }
        self.answer(&answer, about, if error.is_of_client() { Then::Close } else { then }, out).await
    }

    /// Says what the balancer itself has to say, after what is left in `out`.
    async fn answer(&mut self, answer: &Answer, about: &About, then: Then, mut out: Vec<u8>) -> Then {
        self.side.shard().n_intercepted.increment();
        self.responds(answer.status);
        answer.write(&mut out, about.method, connection_line(then, about.version));
        let Self { local, registered, side, .. } = self;
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::ResponseBody, local.timeouts.server_body_idle);
        let mut n_written = 0;
        let is_said = poll_fn(|cx| {
            while n_written < out.len() {
                match side.poll_write(cx, &out[n_written..]) {
                    Poll::Ready(Ok(n)) => n_written += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending if wait.is_expired() => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            side.poll_flush(cx).map(|result| result.is_ok())
        })
        .await;
        if !is_said {
            return Then::Close;
        }
        if then == Then::Close {
            self.farewell().await;
        }
        then
    }

    /// Ends this direction and reads what the client still sends, so that it gets to see the response.
    async fn farewell(&mut self) {
        let Self { local, registered, side, .. } = self;
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::Farewell, FAREWELL);
        let (mut has_ended, mut n_bytes) = (false, 0);
        poll_fn(|cx| {
            while !has_ended {
                has_ended = match side.poll_end(cx) {
                    Poll::Ready(result) => result.is_ok(),
                    Poll::Pending if wait.is_expired() => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                };
                if !has_ended {
                    return Poll::Ready(());
                }
            }
            while !side.has_ended && n_bytes < FAREWELL_BYTES && !wait.is_expired() {
                side.input.release(&local.means.spare);
                match ready!(side.poll_fill(cx, &local.means.spare)) {
                    Ok(n) => n_bytes += n,
                    Err(_) => break,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// How a response ended, by who ended it.
enum End {
    Whole,
    Client,
    Server,
}

/// Finds a request's head in what has come.
struct HeadReader {
    scan: Scan,
    n_empty_lines: u32,
    /// Its length, while it has not been looked at.
    first_line: Option<usize>,
}

impl HeadReader {
    fn look(
        &mut self,
        input: &mut Buffer,
        limits: &super::scan::HeadLimits,
    ) -> Result<Option<usize>, Refusal> {
        while self.scan.is_new() {
            match input.filled() {
                [b'\r', b'\n', ..] if self.n_empty_lines < MOST_EMPTY_LINES => {
                    self.n_empty_lines += 1;
                    input.consume(2);
                }
                [] | [b'\r'] => return Ok(None),
                [first, ..] if super::grammar::is_token_byte(*first) => break,
                _ => return Err(Refusal::RequestLine),
            }
        }
        loop {
            match self.scan.advance(input.filled(), limits)? {
                Scanned::FirstLine(n) => self.first_line = Some(n),
                Scanned::Head(n) => return Ok(Some(n)),
                Scanned::Partial => {
                    if let Some(n) = self.first_line.take() {
                        request::check_first_line(&input.filled()[..n])?;
                    }
                    return Ok(None);
                }
            }
        }
    }
}

/// What must be said about the connection's future: nothing, when the version's default holds.
fn connection_line(then: Then, version: Version) -> &'static [u8] {
    match (then, version) {
        (Then::Close, _) => b"Connection: close\r\n",
        (Then::Keep, Version::Http10) => b"Connection: keep-alive\r\n",
        (Then::Keep, Version::Http11) => b"",
    }
}

fn write_response(
    out: &mut Vec<u8>,
    exchange: &Exchange,
    about: &About,
    coding: Coding,
    connection: &[u8],
    origin: &edits::Connection,
) {
    let (response, head) = (&exchange.response, exchange.head());
    let mut lines: [&[u8]; 4] = [b""; 4];
    if let Some(cookie) = exchange.server().cookie.as_ref().filter(|_| exchange.cookie == CookieDue::Yes) {
        lines[..3].copy_from_slice(&[b"Set-Cookie: ", cookie.set.as_bytes(), b"\r\n"]);
        if sticky::must_be_private(response, head, about.method) {
            lines[3] = b"Cache-Control: private\r\n";
        }
    }
    let edits = proxy::response_edits(&exchange.backend, response, head, origin);
    let delivery = Delivery { coding, connection, lines: &lines, edits: &edits };
    serialize::response(out, response, head, &delivery);
}
