//! One stream: its request through guard, routing and endpoint, and the response that it gets.
//!
//! What is decided about a request is `outbound`'s and `proxy`'s; how its endpoint is found, `failover`'s.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;

use super::front::Http2Front;
use super::head::{self, BodyOf};
use super::side::{Part, StreamSide};
use super::{Active, Shared};
use crate::access::{Admit, Verification};
use crate::access_log::{Outcome, Record};
use crate::error::ProxyError;
use crate::exchange::Exchange;
use crate::failover::Attempt;
use crate::http1::Framing;
use crate::http1::connection::{FAREWELL, FAREWELL_BYTES};
use crate::http1::flow::{Coding, Flow, FlowError};
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Request};
use crate::http1::response::BadResponse;
use crate::http1::scan::{Scan, Scanned};
use crate::http1::side::Side;
use crate::outbound::Outbound;
use crate::proxy::{Answer, Stop};
use crate::stats::ResponseClass;
use crate::sticky::Cookie;
use crate::wait::{Phase, Registered, Wait};
use crate::worker::Local;

pub(super) struct Stream {
    active: Active,
    registered: Registered,
    side: StreamSide,
    head: Parts,
    record: Option<Box<Record>>,
    /// Of the response.
    status: u16,
}

/// What must be known of a request when its head is gone.
#[derive(Clone, Copy)]
struct About {
    method: Method,
    expects_continue: bool,
    started: Instant,
}

struct Prepared {
    outbound: Outbound,
    framing: Framing,
    about: About,
}

enum NotPrepared {
    Refused(Refusal),
    Answered(Answer, Method),
    Unverified(Verification),
}

/// How a response ended, by who ended it.
enum End {
    Whole,
    Client,
    Server,
}

impl Stream {
    pub(super) fn new(
        shared: &Rc<Shared>,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Self {
        let (head, body) = request.into_parts();
        let side = StreamSide::new(body, respond, Arc::clone(&shared.frontend), shared.local.index);
        let registered = shared.registered.another();
        Self { active: shared.begin_stream(), registered, side, head, record: None, status: 0 }
    }

    pub(super) async fn serve(mut self) {
        self.registered.wake_this_task().await;
        self.exchange().await;
        if let (Some(record), Some(log)) = (self.record.take(), &self.local().access_log) {
            log.write(*record, Outcome { status: self.status, n_bytes: self.side.n_written.get() });
        }
        if !self.side.has_ended() {
            self.farewell().await;
        }
    }

    fn local(&self) -> &Rc<Local> {
        &self.active.0.local
    }

    fn wait(&self) -> &Rc<Wait> {
        self.registered.wait()
    }

    /// The client gets a response with this status.
    fn responds(&mut self, status: u16) {
        self.status = status;
        self.side.shard().responded(ResponseClass::of_number(status));
    }

    async fn exchange(&mut self) {
        let local = Rc::clone(self.local());
        let wait = Rc::clone(self.wait());
        wait.limit_all(local.timeouts.request);
        self.side.shard().n_requests.increment();
        let body = if self.side.has_ended() { BodyOf::Nothing } else { BodyOf::Stream };
        let mut text = local.means.spare.output();
        head::write_request(&mut text, &self.head, body);
        self.side.count_read(text.len());
        let mut prepared = self.prepare(&text, None);
        if let Err(NotPrepared::Unverified(verification)) = prepared {
            let login = Box::pin(verification.run()).await;
            prepared = self.prepare(&text, Some(login));
        }
        local.means.spare.put_output(text);
        let Prepared { outbound, framing, about } = match prepared {
            Ok(prepared) => prepared,
            // A login that was decided on is not asked for again.
            Err(NotPrepared::Unverified(_)) => return,
            Err(NotPrepared::Refused(refusal)) => {
                self.side.shard().refused(refusal);
                let client = self.active.0.client.origin.connection.client;
                self.record = local.access_log.as_ref().and_then(|log| log.refused(client));
                let method =
                    if self.head.method == http::Method::HEAD { Method::Head } else { Method::Other };
                return Box::pin(self.answer(&Answer::refused(refusal), method)).await;
            }
            Err(NotPrepared::Answered(answer, method)) => {
                return Box::pin(self.answer(&answer, method)).await;
            }
        };
        let Outbound { backend, cookie, affinity, head } = outbound;
        let mut flow = match framing {
            Framing::Chunked => Flow::new(Framing::UntilClose, Coding::Chunked, head),
            framing => Flow::new(framing, Coding::Plain, head),
        };
        let spare = &local.means.spare;
        let along = poll_fn(|cx| Poll::Ready(flow.poll_along(cx, &mut self.side, &wait, spare))).await;
        if along.is_err() {
            return flow.release(&local.means);
        }
        let mut front = Http2Front {
            side: &mut self.side,
            flow,
            method: about.method,
            ends: self.active.0.ends,
            wait: &wait,
            means: &local.means,
            expects_continue: about.expects_continue,
        };
        let cookie = cookie.as_ref().map(Cookie::as_bytes);
        let attempt = Attempt { local: &local, wait: &wait, affinity, cookie, waited: Cell::default() };
        let sent = attempt.send(&backend, &mut front).await;
        let mut flow = front.flow;
        match sent {
            Ok(exchange) => self.deliver(exchange, flow, &about).await,
            Err(error) => {
                flow.release(&local.means);
                Box::pin(self.fail(error, about.method)).await;
            }
        }
        self.side.input.release(&local.means.spare);
    }

    /// `text` is the head as the guard reads it.
    fn prepare(&mut self, text: &[u8], login: Option<Admit>) -> Result<Prepared, NotPrepared> {
        let shared = &self.active.0;
        let local = &shared.local;
        let mut fields = local.fields.take();
        let parsed = Request::parse(text, &mut fields).map(Request::of_http2).map_err(NotPrepared::Refused);
        let prepared = parsed.and_then(|request| {
            if !local.limits.head().admit(&request.extent()) {
                return Err(NotPrepared::Refused(too_large(text, local)));
            }
            let about = About {
                method: request.method(),
                expects_continue: request.expects_continue,
                started: Instant::now(),
            };
            let (outbound, record) = shared.client.outbound(local, self.side.shard(), &request, login);
            self.record = record;
            match outbound {
                Ok(outbound) => Ok(Prepared { outbound, framing: request.framing, about }),
                Err(Stop::Answer(answer)) => Err(NotPrepared::Answered(answer, about.method)),
                Err(Stop::Verify(verification)) => Err(NotPrepared::Unverified(verification)),
            }
        });
        local.fields.set(fields);
        prepared
    }

    /// Gives the client the response; `up` is what is left of the request.
    async fn deliver(&mut self, mut exchange: Exchange, mut up: Flow, about: &About) {
        let took = about.started.elapsed();
        if let Some(record) = &mut self.record {
            record.server = Some(exchange.server().name.to_string());
        }
        let local = Rc::clone(self.local());
        let means = &local.means;
        let mut text = Vec::with_capacity(exchange.head().len() + 256);
        let origin = &self.active.0.client.origin.connection;
        exchange.write_head(&mut text, about.method, Coding::Plain, b"", origin);
        let n_bytes = text.len();
        // HTTP/2 switches to nothing (RFC 9113 section 8.6).
        let head = match exchange.response().status {
            101 => Err(BadResponse::Switch),
            status => head::response(status, &Bytes::from(text)),
        };
        let mut down = Flow::new(exchange.response().framing, Coding::Plain, means.spare.output());
        down.decode_with(|| exchange.decoder());
        exchange.consume_head();
        let along = down.take_along(&mut exchange.upstream.input).map_err(|_| BadResponse::Chunk);
        let (head, _) = match head.and_then(|head| along.map(|()| head)) {
            Ok(head) => head,
            Err(bad) => {
                exchange.bad_response(bad);
                return Box::pin(self.fail(ProxyError::BadResponse(bad), about.method)).await;
            }
        };
        exchange.responded(took);
        self.responds(exchange.response().status);
        let wait = Rc::clone(self.wait());
        let limit = exchange.backend.labels.timeouts.server.unwrap_or(local.timeouts.server_body_idle);
        wait.enter(Phase::ResponseBody, limit);
        let mut is_sent = up.is_written();
        let mut is_taken = true;
        let is_all = is_sent && down.has_source_ended() && down.trailer().is_empty();
        let end = if is_all {
            self.say(head, n_bytes, down.rest()).await
        } else if self.side.send_head(head, n_bytes, Part::Some).is_err() {
            End::Client
        } else {
            let side = &mut self.side;
            poll_fn(|cx| {
                if !is_sent {
                    match up.poll(cx, side, &mut *exchange.upstream, &wait, means) {
                        Poll::Pending => {}
                        Poll::Ready(Err(FlowError::Cut | FlowError::BadChunk(_) | FlowError::Read(_))) => {
                            return Poll::Ready(End::Client);
                        }
                        Poll::Ready(result) => (is_sent, is_taken) = (true, result.is_ok()),
                    }
                }
                match down.poll(cx, &mut *exchange.upstream, side, &wait, means) {
                    Poll::Ready(Ok(())) => match side.end(down.trailer()) {
                        Ok(()) => Poll::Ready(End::Whole),
                        Err(_) => Poll::Ready(End::Client),
                    },
                    Poll::Ready(Err(FlowError::Write(_))) => Poll::Ready(End::Client),
                    Poll::Ready(Err(_)) => Poll::Ready(End::Server),
                    Poll::Pending if side.poll_gone(cx).is_ready() => Poll::Ready(End::Client),
                    Poll::Pending if wait.is_expired() => {
                        let is_of_server = down.lacks_source(&exchange.upstream.input);
                        Poll::Ready(if is_of_server { End::Server } else { End::Client })
                    }
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        up.release(means);
        down.release(means);
        exchange.lasted(about.started.elapsed());
        match end {
            End::Whole if is_sent && is_taken => exchange.ended(),
            End::Whole => {}
            End::Client => exchange.given_up(),
            End::Server => {
                self.side.cut();
                exchange.broken();
            }
        }
    }

    async fn fail(&mut self, error: ProxyError, method: Method) {
        let Some(answer) = Answer::failed(error) else { return };
        if let ProxyError::Refused(refusal) = error {
            self.side.shard().refused(refusal);
        }
        self.answer(&answer, method).await;
    }

    /// Says what the balancer itself has to say.
    async fn answer(&mut self, answer: &Answer, method: Method) {
        self.side.shard().n_intercepted.increment();
        self.responds(answer.status);
        let mut text = Vec::new();
        answer.write(&mut text, method, b"");
        let text = Bytes::from(text);
        let Ok((head, n_bytes)) = head::response(answer.status, &text) else { return self.side.cut() };
        self.wait().limit_all(None);
        self.wait().enter(Phase::ResponseBody, self.local().timeouts.server_body_idle);
        if let End::Server = self.say(head, n_bytes, &text[n_bytes..]).await {
            self.side.cut();
        }
    }

    /// Sends a response of which everything is here.
    async fn say(&mut self, head: http::Response<()>, n_bytes: usize, body: &[u8]) -> End {
        let part = if body.is_empty() { Part::Last } else { Part::Some };
        if self.side.send_head(head, n_bytes, part).is_err() {
            return End::Client;
        }
        let (side, wait) = (&mut self.side, self.registered.wait());
        let mut n_sent = 0;
        poll_fn(|cx| {
            while n_sent < body.len() {
                match side.poll_send(cx, &body[n_sent..], Part::Last) {
                    Poll::Ready(Ok(n)) => n_sent += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(End::Client),
                    Poll::Pending if wait.is_expired() => return Poll::Ready(End::Client),
                    Poll::Pending => return Poll::Pending,
                }
                wait.touch();
            }
            Poll::Ready(End::Whole)
        })
        .await
    }

    /// Reads what the client still sends: one whose stream is reset meanwhile may never look at the response.
    async fn farewell(&mut self) {
        let (side, wait) = (&mut self.side, self.registered.wait());
        wait.limit_all(None);
        wait.enter(Phase::Farewell, FAREWELL);
        let mut n_bytes = 0;
        poll_fn(|cx| {
            while n_bytes < FAREWELL_BYTES && !wait.is_expired() {
                match side.poll_drop(cx) {
                    Poll::Ready(Ok(n @ 1..)) => n_bytes += n,
                    Poll::Ready(_) => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Which limit the head of a request is above.
fn too_large(text: &[u8], local: &Local) -> Refusal {
    let mut scan = Scan::default();
    let limits = local.limits.head();
    loop {
        match scan.advance(text, &limits) {
            Ok(Scanned::FirstLine(_)) => {}
            Ok(_) => return Refusal::LongHead,
            Err(error) => return error.into(),
        }
    }
}
