//! The path of a request: from an accepted connection to the last byte of its response.
//!
//! [`serve`] is the seam: it is given a socket and what the listener knows about it, and everything that speaks
//! HTTP/1.1 is behind it. Choosing among endpoints is `failover`'s, connections to them `upstream`'s.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, LOCATION,
    MAX_FORWARDS, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use crate::access::{Admit, RequestFacts, Scheme, Way};
use crate::body::{RequestBody, ResponseBody, UpstreamBody};
use crate::client::{ClientIo, Phase, Registered, Wait};
use crate::config::{DEFAULT_HEADER_COUNT, Limits};
use crate::edits::{self, Forwarding, HeadEdits};
use crate::error::ProxyError;
use crate::failover::{self, Exchange};
use crate::guard::{self, Refusal, Verdict};
use crate::headers::{self, Forwarded, Seen};
use crate::stats::{ResponseClass, Session, Shard};
use crate::sticky;
use crate::table::Backend;
use crate::upgrade;
use crate::worker::{Local, Permit};

/// Why the balancer itself answered.
pub(crate) const REASON: HeaderName = HeaderName::from_static("waymark-reason");
const APP_ID: HeaderName = HeaderName::from_static("x-marathon-app-id");

/// How a listener leads to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    ServicePort(u16),
    /// By Host and path.
    Hosts,
    /// By `X-Marathon-App-Id`.
    AppIds,
}

/// A connection as the listener hands it over.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) client: SocketAddr,
    /// The address that the client connected to.
    pub(crate) local_port: u16,
    pub(crate) entry: Entry,
    pub(crate) session: Session,
    /// Holds the connection's place within the limits.
    pub(crate) permit: Permit,
}

/// How long a connection that was accepted during a drain may take to send its request.
const LAST_REQUEST: Duration = Duration::from_millis(100);

/// What the requests of one connection share.
struct Client {
    local: Rc<Local>,
    entry: Entry,
    address: SocketAddr,
    /// The port that the client connected to.
    local_port: u16,
    forwarded: Forwarded,
    wait: Arc<Wait>,
    frontend: Arc<crate::stats::Series>,
}

pub(crate) fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // Waits are watched by the worker's sweep, which knows more of them than hyper does.
    builder.header_read_timeout(None);
    builder.max_header_size(limits.request_line_bytes + limits.header_bytes);
    // Setting it makes hyper allocate for each request.
    if limits.header_count != DEFAULT_HEADER_COUNT {
        builder.max_headers(limits.header_count);
    }
    builder
}

/// Serves a connection until it ends; a drain lets it end after the request it is at.
pub(crate) async fn serve(local: Rc<Local>, accepted: Accepted, registered: Registered) {
    let Accepted { stream, client: address, local_port, entry, session, permit } = accepted;
    if registered.is_draining() {
        // It was in the backlog: its request is served, if there is one.
        let _ = tokio::time::timeout(LAST_REQUEST, stream.readable()).await;
    }
    let wait = Arc::clone(registered.wait());
    let frontend = Arc::clone(session.series());
    let ip = address.ip().to_canonical();
    let client = Rc::new(Client {
        forwarded: Forwarded {
            client: HeaderValue::try_from(ip.to_string()).expect("an address is printable"),
            port: HeaderValue::from(local_port),
        },
        entry,
        local_port,
        address,
        wait: Arc::clone(&wait),
        frontend: Arc::clone(&frontend),
        local: Rc::clone(&local),
    });
    let io = ClientIo::new(stream, Arc::clone(&wait), session, local.index);
    let service = service_fn(move |request| {
        let client = Rc::clone(&client);
        async move { Ok::<_, Infallible>(client.handle(request).await) }
    });
    let mut connection = local.http1.serve_connection(io, service).with_upgrades();
    let mut told_to_end = false;
    let end = poll_fn(|cx| {
        registered.wake_me(cx.waker());
        let mut polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() && registered.is_draining() && !told_to_end {
            told_to_end = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(cx);
        }
        match polled {
            Poll::Ready(result) => Poll::Ready(result.map(|()| None)),
            Poll::Pending if wait.is_expired() => Poll::Ready(Ok(Some(wait.phase()))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let shard = frontend.of_worker(local.index);
    match end {
        Ok(None) => {}
        Ok(Some(Phase::Head)) => {
            shard.n_request_errors.increment();
            shard.responded(ResponseClass::of(StatusCode::REQUEST_TIMEOUT));
            if let Some(parts) = connection.into_parts() {
                parts.io.say_last(HEAD_TIMED_OUT);
            }
        }
        Ok(Some(phase)) => tracing::debug!(client = %address, ?phase, "client connection timed out"),
        Err(error) => {
            if error.is_parse() {
                shard.n_request_errors.increment();
            }
            tracing::debug!(client = %address, %error, "client connection ended");
        }
    }
    drop(permit);
}

const HEAD_TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

impl Client {
    fn shard(&self) -> &Shard {
        self.frontend.of_worker(self.local.index)
    }

    async fn handle(self: Rc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let started = Instant::now();
        self.shard().n_requests.increment();
        let response = match self.respond(request, started).await {
            Ok(response) => response,
            Err(answer) => {
                self.wait.enter(Phase::Idle);
                self.shard().n_intercepted.increment();
                answer.into_response()
            }
        };
        self.shard().responded(ResponseClass::of(response.status()));
        response
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        started: Instant,
    ) -> Result<Response<ResponseBody>, Answer> {
        let (mut parts, body) = request.into_parts();
        let seen = match guard::check(&parts, self.local.limits.request_line_bytes) {
            Ok(Verdict::Forward(seen)) => seen,
            Ok(Verdict::AnswerOptions) => return Err(Answer::options()),
            Err(refusal) => {
                self.shard().n_request_errors.increment();
                return Err(Answer::refused(refusal));
            }
        };
        let backend = self.route(&parts)?;
        self.admit(&backend, &parts).await?;
        self.wait.heed(&backend.labels.timeouts);
        let edited = (!backend.labels.edits.is_plain()).then(|| Arc::clone(&backend.labels));
        let upgrade = guard::asks_for_upgrade(&parts, seen)
            .then(|| parts.extensions.remove::<hyper::upgrade::OnUpgrade>())
            .flatten();
        let cookie = (seen.has(Seen::COOKIE) && backend.is_sticky())
            .then(|| sticky::take_cookie(&mut parts.headers, backend.labels.cookie.name()))
            .flatten();
        headers::remove_hop_by_hop(&mut parts.headers, seen);
        if seen.has(Seen::EXPECT) {
            // hyper answers it towards the client as soon as the body is wanted.
            parts.headers.remove(EXPECT);
        }
        match &edited {
            Some(labels) => self.edit_request(&labels.edits, &mut parts),
            None => self.forwarded.apply(&mut parts.headers),
        }
        count_down_forwards(&mut parts);
        if upgrade.is_some() {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        let body = if body.is_end_stream() {
            if seen.has(Seen::TRANSFER_ENCODING) {
                parts.headers.remove(TRANSFER_ENCODING);
            }
            RequestBody::Empty
        } else {
            // Transfer-Encoding stays, because hyper gives a GET without any framing no body.
            RequestBody::Streaming { body, wait: Arc::clone(&self.wait) }
        };
        self.wait.enter(body.phase());
        make_origin_form(&mut parts);
        let method = parts.method.clone();
        let request = Request::from_parts(parts, body);

        let attempt = failover::Attempt {
            local: &self.local,
            wait: &self.wait,
            client: self.address.ip(),
            cookie: cookie.as_deref(),
        };
        let (response, exchange) = attempt.send(backend, request).await.map_err(Answer::failed)?;
        let took = started.elapsed();
        let mut response = self.finish(response, exchange, &method, upgrade, took)?;
        if let Some(labels) = edited {
            labels.edits.edit_response(response.headers_mut(), &self.connection());
        }
        Ok(response)
    }

    /// Asks the backend's rules whether the request may go on; `Err`: what is answered instead.
    async fn admit(&self, backend: &Backend, parts: &Parts) -> Result<(), Answer> {
        let admission = &backend.labels.admission;
        if admission.is_open() {
            return Ok(());
        }
        let text = |name: HeaderName| parts.headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let facts = RequestFacts {
            way: match self.entry {
                Entry::ServicePort(_) => Way::ServicePort,
                Entry::Hosts => Way::Hosts,
                Entry::AppIds => Way::AppIds,
            },
            scheme: Scheme::Http,
            client: self.address.ip(),
            host: std::str::from_utf8(text(HOST)).unwrap_or_default(),
            target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
            authorization: parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes),
            forwarded_proto: parts.headers.get(headers::X_FORWARDED_PROTO).map(HeaderValue::as_bytes),
        };
        let decided = match admission.admit(&facts) {
            Admit::Verify(verification) => verification.run().await,
            decided => decided,
        };
        match decided {
            Admit::Continue => Ok(()),
            Admit::Redirect { status, location } => Err(Answer::redirect(status, &location)),
            Admit::Challenge(challenge) => Err(Answer::challenge(&challenge)),
            Admit::Deny => {
                self.shard().n_denied_requests.increment();
                backend.series.of_worker(self.local.index).n_denied_requests.increment();
                Err(Answer::denied())
            }
            Admit::Verify(_) => Err(Answer::denied()),
        }
    }

    fn connection(&self) -> edits::Connection {
        edits::Connection { scheme: Scheme::Http, client: self.address.ip(), local_port: self.local_port }
    }

    fn edit_request(&self, edits: &HeadEdits, parts: &mut Parts) {
        if edits.forwarding == Forwarding::Standard {
            self.forwarded.apply(&mut parts.headers);
        }
        edits.edit_request(&mut parts.headers, &self.connection());
        let target = parts.uri.path_and_query().and_then(|target| edits.rewrite_target(target.as_str()));
        if let Some(target) = target.and_then(|target| Uri::try_from(target).ok()) {
            parts.uri = target;
        }
    }

    fn finish(
        &self,
        response: Response<Incoming>,
        exchange: Exchange,
        method: &Method,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        took: Duration,
    ) -> Result<Response<ResponseBody>, Answer> {
        let (mut parts, body) = response.into_parts();
        let seen = Seen::in_all(&parts.headers);
        if seen.has(Seen::TRANSFER_ENCODING) && !guard::is_framed_once(&parts.headers) {
            exchange.bad_response();
            return Err(Answer::failed(ProxyError::BadResponse));
        }
        exchange.responded(parts.status, took);
        headers::remove_hop_by_hop(&mut parts.headers, seen);
        if seen.has(Seen::TRANSFER_ENCODING) {
            parts.headers.remove(TRANSFER_ENCODING);
        }
        parts.version = Version::HTTP_11;
        exchange.mark(&mut parts.headers, seen, method, parts.status);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), Some(server)) =
                (upgrade, parts.extensions.remove::<hyper::upgrade::OnUpgrade>())
            else {
                exchange.bad_response();
                return Err(Answer::failed(ProxyError::BadResponse));
            };
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
            upgrade::spawn(&self.local, client, server, exchange);
            self.wait.enter(Phase::Idle);
            return Ok(Response::from_parts(parts, ResponseBody::Empty));
        }
        let body = UpstreamBody::new(body, exchange, Arc::clone(&self.wait));
        Ok(Response::from_parts(parts, ResponseBody::Upstream(body)))
    }

    fn route(&self, parts: &Parts) -> Result<Arc<Backend>, Answer> {
        let path = parts.uri.path();
        let text = |name: &HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok());
        self.local.with_table(|table| {
            let index = match self.entry {
                Entry::ServicePort(port) => table
                    .routes
                    .of_port(port)
                    .ok_or_else(|| Answer::no_route(format!("no app has service port {port} any more"))),
                Entry::Hosts => {
                    let host = text(&HOST).unwrap_or_default();
                    let index = table.routes.of_host(host, path);
                    index.ok_or_else(|| {
                        Answer::no_route(format!("no app has the virtual host {host:?} for this path"))
                    })
                }
                Entry::AppIds => match text(&APP_ID) {
                    Some(app) => table
                        .routes
                        .of_app(app)
                        .ok_or_else(|| Answer::no_route(format!("no app {app:?} is served over HTTP"))),
                    None => Err(Answer::no_route("the header X-Marathon-App-Id is missing".to_owned())),
                },
            }?;
            Ok(Arc::clone(&table.backends[index]))
        })
    }
}

/// The form for a server; the authority is in Host, which the guard has compared.
fn make_origin_form(parts: &mut Parts) {
    parts.version = Version::HTTP_11;
    if parts.uri.scheme().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

fn count_down_forwards(parts: &mut Parts) {
    if parts.method != Method::OPTIONS {
        return;
    }
    if let Some(left) = parts.headers.get(MAX_FORWARDS).and_then(|v| v.to_str().ok()?.parse::<u32>().ok()) {
        parts.headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
}

/// A response of the balancer itself.
struct Answer {
    status: StatusCode,
    /// A word for programs.
    reason: &'static str,
    text: String,
    closes: Closes,
    /// A header that says more.
    header: Option<(HeaderName, HeaderValue)>,
}

#[derive(PartialEq, Eq)]
enum Closes {
    No,
    Yes,
}

impl Answer {
    fn refused(refusal: Refusal) -> Self {
        Self {
            status: refusal.status,
            reason: "request-refused",
            text: refusal.reason.to_owned(),
            closes: Closes::Yes,
            header: None,
        }
    }

    fn new(status: StatusCode, reason: &'static str, text: String) -> Self {
        Self { status, reason, text, closes: Closes::No, header: None }
    }

    fn no_route(text: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-route", text)
    }

    fn options() -> Self {
        Self::new(StatusCode::OK, "max-forwards", String::new())
    }

    fn redirect(status: StatusCode, location: &str) -> Self {
        let answer = Self::new(status, "redirect", location.to_owned());
        Self { header: HeaderValue::from_str(location).ok().map(|value| (LOCATION, value)), ..answer }
    }

    fn challenge(challenge: &str) -> Self {
        let text = "this service asks for a user and a password".to_owned();
        let answer = Self::new(StatusCode::UNAUTHORIZED, "login", text);
        Self { header: HeaderValue::from_str(challenge).ok().map(|v| (WWW_AUTHENTICATE, v)), ..answer }
    }

    fn denied() -> Self {
        let text = "this service does not let your address in".to_owned();
        Self::new(StatusCode::FORBIDDEN, "address-denied", text)
    }

    fn failed(error: ProxyError) -> Self {
        let reason = match error {
            ProxyError::Connect => "connect-failed",
            ProxyError::NoEndpoint => "no-endpoint",
            ProxyError::NoResponse => "no-response",
            ProxyError::BadResponse => "bad-response",
            ProxyError::ServerTimeout => "response-timeout",
            ProxyError::ClientTimeout => "request-timeout",
            ProxyError::ClientBody => "request-body",
        };
        let closes = if error.is_of_client() { Closes::Yes } else { Closes::No };
        Self { closes, ..Self::new(error.status(), reason, error.to_string()) }
    }

    fn into_response(self) -> Response<ResponseBody> {
        let text = match self.status {
            StatusCode::OK => String::new(),
            status => format!("{status}: {}\n", self.text),
        };
        let mut response = Response::new(ResponseBody::Text(Bytes::from(text)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(REASON, HeaderValue::from_static(self.reason));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if self.closes == Closes::Yes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::OK || self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        response
    }
}
