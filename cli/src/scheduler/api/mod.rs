//! The HTTP API: connections, who is let in, and which path leads where.
//!
//! Not here: what an operation does (`core::operations`).

mod about;
pub mod apps;
mod dcos;
mod deployments;
mod group_update;
mod groups;
mod metrics;
mod pods;
pub mod reply;
mod request;
mod selector;
mod stream;
mod tasks;
mod view;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, EXPIRES, HeaderMap, HeaderName, HeaderValue, PRAGMA};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::reply::{Body, Reply};
use self::request::{Reach, Target, is_addressed_to_us, is_cross_site};
use super::Config;
use super::core::Refusal;
use super::core::operations::Conflict;
use super::driver::Handle;

/// Open connections, event streams included.
const MAX_CONNECTIONS: usize = 1024;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients are near; a body that takes longer holds one of the connections for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every request is answered with.
#[derive(Debug)]
pub struct Context {
    pub handle: Handle,
    pub address: SocketAddr,
    pub config: Arc<Config>,
    /// Names this scheduler to the command line of DC/OS, which remembers clusters by it.
    pub cluster_id: String,
    pub started: std::time::Instant,
}

/// One request, read completely.
struct Call {
    method: Method,
    target: Target,
    headers: HeaderMap,
    body: Bytes,
    remote: SocketAddr,
    /// As the client wrote it.
    path: String,
}

pub async fn serve(listener: TcpListener, context: Context, cancel: CancellationToken) {
    let context = Arc::new(context);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, remote)) => {
                    connections.spawn(converse(stream, remote, context.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection to the scheduler");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn converse(stream: TcpStream, remote: SocketAddr, context: Arc<Context>) {
    // An event is one small write; it must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    // Ends the connection from within, when its client does not read what it asked for.
    let closing = CancellationToken::new();
    let for_requests = closing.clone();
    let service = hyper::service::service_fn(move |request| {
        let (context, closing) = (context.clone(), for_requests.clone());
        async move { Ok::<_, Infallible>(respond(request, remote, &context, closing).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::debug!(%error, %remote, "a connection to the scheduler ended");
            }
        }
        () = closing.cancelled() => {}
    }
}

async fn respond(
    request: Request<Incoming>,
    remote: SocketAddr,
    context: &Context,
    closing: CancellationToken,
) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    let mut response = match admit(request, remote, context).await {
        Ok(call) if is_event_stream(&call) => {
            let remote = remote.ip().to_string();
            let opened = stream::open(&call.target, &call.headers, remote, &context.handle, closing).await;
            opened.unwrap_or_else(|| Reply::from(Refusal::Stopping).into_response())
        }
        Ok(call) => answer(call, context).await.into_response(),
        Err(refusal) => refusal.into_response(),
    };
    if is_head {
        *response.body_mut() = http_body_util::Either::Left(Default::default());
    }
    let headers = response.headers_mut();
    let leader = HeaderValue::from_str(&format!("http://{}", context.address));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(EXPIRES, HeaderValue::from_static("0"));
    headers.insert(HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Ok(leader) = leader {
        headers.insert(HeaderName::from_static("x-marathon-leader"), leader);
    }
    response
}

fn is_event_stream(call: &Call) -> bool {
    call.method == Method::GET && call.target.segments == ["v2", "events"]
}

/// Turns away what is not meant for this server, and reads the body of what is.
async fn admit(request: Request<Incoming>, remote: SocketAddr, context: &Context) -> Result<Call, Reply> {
    let (head, body) = request.into_parts();
    let reach = if context.config.listen.ip().is_loopback() { Reach::Loopback } else { Reach::Network };
    if !is_addressed_to_us(&head.headers, &context.config.names, reach) {
        let message = "This scheduler does not answer to the name in the Host header";
        return Err(Reply::message(StatusCode::MISDIRECTED_REQUEST, message));
    }
    if !context.config.access.admits(&head.headers) {
        let scheme = match &context.config.access.credentials {
            Some(_) => "Basic realm=\"Mesosphere\"",
            None => "Bearer realm=\"Mesosphere\"",
        };
        let mut reply = Reply::message(StatusCode::UNAUTHORIZED, "Invalid username or password.");
        reply.headers.push((http::header::WWW_AUTHENTICATE, scheme.to_owned()));
        return Err(reply);
    }
    let mutates = !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if mutates && is_cross_site(&head.headers) {
        let message = "Changes are not accepted from pages of other sites";
        return Err(Reply::message(StatusCode::FORBIDDEN, message));
    }
    let too_long = || {
        let message = format!("The body is longer than {} bytes", context.config.body_bytes);
        Reply::message(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    // A length that is declared is refused before any of it is awaited.
    if body.size_hint().lower() > context.config.body_bytes as u64 {
        return Err(too_long());
    }
    let limited = Limited::new(body, context.config.body_bytes);
    let body = match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_long()),
        Ok(Err(_)) => return Err(Reply::message(StatusCode::BAD_REQUEST, "The body could not be read")),
        Err(_) => return Err(Reply::message(StatusCode::REQUEST_TIMEOUT, "The body did not come in time")),
    };
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // What a form of any page may send must not pass for JSON.
    if !body.is_empty() && content_type.is_some_and(|t| !t.to_ascii_lowercase().contains("json")) {
        let message = "The body must be sent as application/json";
        return Err(Reply::message(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(Call {
        target: Target::of(&head.uri),
        path: head.uri.path().to_owned(),
        method: head.method,
        headers: head.headers,
        body,
        remote,
    })
}

async fn answer(call: Call, context: &Context) -> Reply {
    let segments: Vec<String> = call.target.segments.clone();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let mutates = !matches!(call.method, Method::GET | Method::HEAD);
    let result = match segments.as_slice() {
        ["v2", "apps", rest @ ..] => apps::answer(&call, rest, context).await,
        ["v2", "tasks", rest @ ..] => tasks::answer(&call, rest, context).await,
        ["v2", "deployments", rest @ ..] => deployments::answer(&call, rest, context).await,
        ["v2", "queue", rest @ ..] => deployments::answer_queue(&call, rest, context).await,
        ["v2", "groups", rest @ ..] => groups::answer(&call, rest, context).await,
        ["v2", "pods", rest @ ..] => pods::answer(&call, rest, context).await,
        ["v2", "pods::status"] => pods::answer(&call, &["::status"], context).await,
        ["waymark", "v1", "tasks", task, "logs", stream] => tasks::log(&call, task, stream, context).await,
        other => match dcos::answer(&call, other, context).await.filter(|_| !mutates) {
            Some(answer) => answer,
            None => Ok(about::answer(&call, other, context).await),
        },
    };
    let reply = result.unwrap_or_else(|failure| failure.into_reply(&call));
    match context.handle.store_failure().filter(|_| mutates && reply.status.is_success()) {
        Some(why) => {
            let message = format!("The change is in effect but could not be stored: {why}");
            Reply::message(StatusCode::INTERNAL_SERVER_ERROR, &message)
        }
        None => reply,
    }
}

/// Why a request has no good answer.
enum Failure {
    Refused(Refusal),
    /// Not one of the API's paths.
    NoSuchPath,
    NoSuchMethod,
    /// The body is no JSON; carries the parser's message.
    NotJson(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Refused(refusal)
    }
}

impl Failure {
    fn into_reply(self, call: &Call) -> Reply {
        match self {
            Failure::Refused(refusal) => refusal.into(),
            Failure::NoSuchPath => not_found(&call.path),
            Failure::NoSuchMethod => {
                Reply::message(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed")
            }
            Failure::NotJson(details) => Reply::json(&json!({"message": "Invalid JSON", "details": details}))
                .with_status(StatusCode::BAD_REQUEST),
        }
    }
}

fn not_found(path: &str) -> Reply {
    Reply::message(StatusCode::NOT_FOUND, &format!("URI not found: {path}"))
}

type Answer = Result<Reply, Failure>;

impl Call {
    fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| Failure::NotJson(error.to_string()))
    }

    /// The body, or an empty object when there is none.
    fn json_or_empty(&self) -> Result<Value, Failure> {
        if self.body.is_empty() { Ok(json!({})) } else { self.json() }
    }

    /// The name that the client knows this server by.
    fn host(&self) -> String {
        let host = self.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        host.unwrap_or("localhost").to_owned()
    }

    fn conflict(&self, force_default: Conflict) -> Conflict {
        if self.target.flag_or("force", force_default == Conflict::Override) {
            Conflict::Override
        } else {
            Conflict::Refuse
        }
    }

    /// How much the client wants each type: `Accept` holds one of the wildcards or names.
    fn accepts(&self, content_type: &str) -> bool {
        let values = self.headers.get_all(http::header::ACCEPT).iter();
        let mut types = values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
        types.any(|t| t.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case(content_type)))
    }
}

/// The answer of work on the core, or what there is to say when it has stopped.
fn settled(answer: Option<Answer>) -> Answer {
    answer.unwrap_or(Err(Failure::Refused(Refusal::Stopping)))
}
