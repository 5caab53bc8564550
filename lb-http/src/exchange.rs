//! One request at one endpoint: sent while it still comes, answered by a head, interim ones passed on.
//!
//! This is the seam between a client's protocol and the endpoints: whatever speaks to the client (HTTP/1.1, HTTP/2) is
//! a [`Front`], `failover::Attempt` finds it an endpoint, and the [`Exchange`] that comes of it holds the typed head of
//! the response and the connection that the body is read from. Endpoints are always spoken to in HTTP/1.1.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use l4_vip::proxy_protocol::Ends;

use crate::edits;
use crate::error::ProxyError;
use crate::http1::chunked::Decoder;
use crate::http1::flow::{Coding, FlowError};
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Persistence};
use crate::http1::response::{BadResponse, Response};
use crate::http1::scan::{HeadLimits, Scan, Scanned};
use crate::http1::serialize::{self, Delivery};
use crate::http1::side::Side;
use crate::proxy;
use crate::queue::Place;
use crate::stats::{ResponseClass, Session, Shard, Stage};
use crate::sticky;
use crate::table::{Backend, Server};
use crate::upstream::Upstream;
use crate::wait::{Phase, Wait};
use crate::worker::Local;

/// A request on its way, whatever protocol it came by.
pub(crate) trait Front {
    fn method(&self) -> Method;

    /// Of the client's connection, for endpoints that want to be told.
    fn ends(&self) -> Ends;

    /// Sends more of the request; ready when all of it is sent.
    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut Upstream) -> Poll<Result<(), FlowError>>;

    /// Everything that was sent can be sent again.
    fn is_whole(&self) -> bool;

    /// Of a request that is whole: begins again.
    fn rewind(&mut self);

    /// More of the body is wanted of the client, and does not come.
    fn lacks_body(&mut self) -> bool;

    /// Has a 1xx to pass on; `head` are its bytes.
    fn interim(&mut self, response: &Response, head: &[u8]);

    /// Passes on what it has. An error means that the client is gone, and is looked for while there is nothing.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection to the endpoint broke, or was closed, before a byte of the response.
    Connection,
    Proxy(ProxyError),
}

impl From<BadResponse> for Failure {
    fn from(bad: BadResponse) -> Self {
        Self::Proxy(ProxyError::BadResponse(bad))
    }
}

/// Sends a request and reads the head of its response, which is then the connection's.
pub(crate) struct Call<'a, F> {
    pub(crate) front: &'a mut F,
    pub(crate) upstream: &'a mut Upstream,
    pub(crate) local: &'a Local,
    pub(crate) wait: &'a Wait,
    /// The longest that the endpoint may take.
    pub(crate) server_head: Duration,
    pub(crate) is_sent: bool,
    pub(crate) scan: Scan,
    pub(crate) n_interim: u32,
}

impl<F: Front> Call<'_, F> {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.is_sent {
            self.poll_send(cx)?;
        }
        if let Poll::Ready(done) = self.poll_head(cx) {
            return Poll::Ready(done);
        }
        if let Poll::Ready(Err(_)) = self.front.poll_client(cx) {
            return Poll::Ready(Err(Failure::Proxy(ProxyError::ClientGone)));
        }
        if self.wait.is_expired() {
            return Poll::Ready(Err(Failure::Proxy(self.timed_out())));
        }
        Poll::Pending
    }

    fn timed_out(&mut self) -> ProxyError {
        if self.is_sent || !self.front.lacks_body() {
            return ProxyError::ServerTimeout;
        }
        ProxyError::Refused(if self.wait.is_all_over() { Refusal::Time } else { Refusal::BodyTime })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        match self.front.poll_send(cx, self.upstream) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            // It may have answered before it closed.
            Poll::Ready(Err(FlowError::Write(error))) => {
                tracing::debug!(%error, "the endpoint does not take the request");
            }
            Poll::Ready(Err(error)) => return Err(Failure::Proxy(client_error(&error))),
        }
        self.is_sent = true;
        self.wait.enter(Phase::ServerHead, self.server_head);
        Ok(())
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        // As for requests: what is longer is not understood.
        let limits = self.local.limits.head();
        loop {
            if let Some(response) = self.head(&limits)? {
                if !response.is_interim() {
                    self.upstream.response = response;
                    return Poll::Ready(Ok(()));
                }
                self.n_interim += 1;
                if self.n_interim > self.local.limits.interim_responses {
                    return Poll::Ready(Err(BadResponse::ManyInterim.into()));
                }
                let n = response.head_bytes;
                self.front.interim(&response, &self.upstream.input.filled()[..n]);
                self.local.fields.set(response.fields);
                self.upstream.input.consume(n);
                self.scan = Scan::default();
                continue;
            }
            if self.upstream.input.is_full() {
                self.upstream.input.grow(limits.head_bytes(), &self.local.means.spare);
            }
            match ready!(self.upstream.poll_fill(cx, &self.local.means.spare)) {
                Ok(1..) => {}
                Ok(0) | Err(_) if self.upstream.n_read() == 0 => {
                    return Poll::Ready(Err(Failure::Connection));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(Failure::Proxy(ProxyError::NoResponse))),
            }
        }
    }

    /// The head, when it is whole.
    fn head(&mut self, limits: &HeadLimits) -> Result<Option<Response>, BadResponse> {
        let bytes = self.upstream.input.filled();
        let (method, local) = (self.front.method(), self.local);
        let parse = |bytes| Response::parse(bytes, method, local.fields.take());
        if bytes.is_empty() {
            return Ok(None);
        }
        // Mostly all of it comes at once, and need not be searched for its end.
        if self.scan.is_new()
            && let Some(response) = parse(bytes).ok().filter(|response| limits.admit(&response.extent()))
        {
            return Ok(Some(response));
        }
        loop {
            match self.scan.advance(bytes, limits)? {
                Scanned::FirstLine(_) => {}
                Scanned::Head(n) => return parse(&bytes[..n]).map(Some),
                Scanned::Partial if is_begin_of_head(bytes) => return Ok(None),
                Scanned::Partial => return Err(BadResponse::StatusLine),
            }
        }
    }
}

/// What speaks another protocol may say little and then wait.
fn is_begin_of_head(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(is, must)| is == must)
}

/// What a request's flow failed with, when it was not the endpoint.
pub(crate) fn client_error(error: &FlowError) -> ProxyError {
    match error {
        FlowError::BadChunk(bad) => ProxyError::Refused((*bad).into()),
        FlowError::Cut => ProxyError::Refused(Refusal::BodyCut),
        FlowError::Read(_) | FlowError::Write(_) => ProxyError::ClientGone,
    }
}

/// A request that an endpoint has answered, until the end of its response.
pub(crate) struct Exchange {
    pub(crate) local: Rc<Local>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) server: usize,
    pub(crate) place: Place,
    pub(crate) _session: Session,
    /// Before the request was sent: for room and for a connection.
    pub(crate) waited: Duration,
    pub(crate) upstream: Box<Upstream>,
    pub(crate) cookie: CookieDue,
}

/// Whether the client is to be given a cookie, because it had no valid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CookieDue {
    No,
    Yes,
}

impl Exchange {
    pub(crate) fn server(&self) -> &Server {
        &self.backend.servers[self.server]
    }

    pub(crate) fn response(&self) -> &Response {
        &self.upstream.response
    }

    /// The bytes of the response's head, before they are consumed.
    pub(crate) fn head(&self) -> &[u8] {
        &self.upstream.input.filled()[..self.response().head_bytes]
    }

    /// For its body, if that is chunked; asked before the head is consumed.
    pub(crate) fn decoder(&self) -> Decoder {
        let hop_names = self.response().hop_names(self.head());
        Decoder::new(self.local.limits.chunk_extension_bytes, hop_names)
    }

    /// Writes the head as a client gets it. `connection`: what it is told about its connection.
    pub(crate) fn write_head(
        &self,
        out: &mut Vec<u8>,
        method: Method,
        coding: Coding,
        connection: &[u8],
        origin: &edits::Connection,
    ) {
        let (response, head) = (self.response(), self.head());
        let mut lines: [&[u8]; 4] = [b""; 4];
        if let Some(cookie) = self.server().cookie.as_ref().filter(|_| self.cookie == CookieDue::Yes) {
            lines[..3].copy_from_slice(&[b"Set-Cookie: ", cookie.set.as_bytes(), b"\r\n"]);
            if sticky::must_be_private(response, head, method) {
                lines[3] = b"Cache-Control: private\r\n";
            }
        }
        let edits = proxy::response_edits(&self.backend, response, head, origin);
        let delivery = Delivery { coding, connection, lines: &lines, edits: &edits };
        serialize::response(out, response, head, &delivery);
    }

    /// The head has been used: what follows is the body.
    pub(crate) fn consume_head(&mut self) {
        let Upstream { input, response, .. } = &mut *self.upstream;
        input.consume(response.head_bytes);
        self.local.fields.set(std::mem::take(&mut response.fields));
    }

    fn each_shard(&self, count: impl Fn(&Shard)) {
        count(self.backend.series.of_worker(self.local.index));
        count(self.server().series.of_worker(self.local.index));
    }

    pub(crate) fn responded(&self, took: Duration) {
        let class = ResponseClass::of_number(self.response().status);
        self.each_shard(|shard| {
            shard.responded(class);
            shard.took(took, self.waited);
        });
    }

    /// All of it, from the request's arrival to the response's last byte.
    pub(crate) fn lasted(&self, time: Duration) {
        self.each_shard(|shard| shard.spent(Stage::Total, time));
    }

    pub(crate) fn bad_response(self, bad: BadResponse) {
        self.each_shard(|s| {
            s.bad_response(bad);
            s.responded(ResponseClass::of(StatusCode::BAD_GATEWAY));
        });
    }

    /// Request and response have ended as they should.
    pub(crate) fn ended(self) {
        if self.response().persistence == Persistence::Keep {
            let endpoint = self.place.endpoint();
            self.local.upstreams.give_back(endpoint, self.upstream, &self.local.means.spare);
        }
    }

    /// The endpoint broke the response off.
    pub(crate) fn broken(self) {
        self.each_shard(|s| s.n_server_aborts.increment());
    }

    /// The client left before the end.
    pub(crate) fn given_up(self) {
        self.each_shard(|s| s.n_client_aborts.increment());
    }
}
