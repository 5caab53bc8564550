//! The HTTP server of the stats address: connections, their limits, and which path gets which answer.
//!
//! The answers themselves are made by the modules beside it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_watcher::Command;
use event_watcher::catalog::{AppId, Generation};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lb_http::stats::ResponseClass;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Admin, events, guard, haproxy, metrics, page, vips};

pub type Answer = BoxBody<Bytes, Infallible>;

/// Far more than people and scrapers need; beyond it, connections wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest long poll; clients ask again.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// After a failed accept (no file descriptor left, mostly), before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The one path that takes a command.
const SYNC: &str = "/api/sync";

/// No script, style or image but our own; the page cannot be framed; no type is guessed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Serves until the planes have drained.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let listen = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let closing = admin.sources.closing.clone();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the stats address cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        let session = admin.sources.haproxy.as_ref().map(|haproxy| {
            haproxy.stats_series().of_worker(0).n_sessions.increment();
            haproxy.stats_series().begin()
        });
        tokio::spawn(async move {
            let closing = admin.sources.closing.clone();
            let service = service_fn(move |request| {
                let admin = Arc::clone(&admin);
                async move {
                    let response = answer(&admin, &request, listen, peer).await;
                    count(&admin, &response);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let mut graceful = false;
            loop {
                tokio::select! {
                    // A client that broke off is its own business.
                    _ = connection.as_mut() => break,
                    () = closing.cancelled(), if !graceful => {
                        graceful = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
            drop((permit, session));
        });
    }
}

/// The control thread is the only one that serves here, so it has the only shard to itself.
fn count(admin: &Admin, response: &Response<Answer>) {
    let Some(haproxy) = &admin.sources.haproxy else { return };
    let shard = haproxy.stats_series().of_worker(0);
    shard.n_requests.increment();
    shard.n_intercepted.increment();
    shard.responded(ResponseClass::of(response.status()));
    shard.bytes_out.add(hyper::body::Body::size_hint(response.body()).lower());
}

async fn answer(
    admin: &Arc<Admin>,
    request: &Request<Incoming>,
    listen: SocketAddr,
    peer: SocketAddr,
) -> Response<Answer> {
    let is_command = *request.method() == Method::POST && request.uri().path() == SYNC;
    let allowed = match is_command {
        true => guard::check_command(request.headers(), peer),
        false => guard::check(
            request.method(),
            request.uri().path(),
            request.headers(),
            listen,
            admin.sources.signals,
        ),
    };
    let mut response = match allowed {
        Ok(()) if is_command => sync(admin, request.uri().query().unwrap_or_default()),
        Ok(()) => route(admin, request).await,
        Err(refusal) => refuse(refusal.status, refusal.reason),
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = if guard::is_signal(request.uri().path()) { "POST" } else { "GET, HEAD" };
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    }
    if *request.method() == Method::HEAD {
        let length = hyper::body::Body::size_hint(response.body()).exact();
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        *response.body_mut() = Full::default().boxed();
    }
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn route(admin: &Arc<Admin>, request: &Request<Incoming>) -> Response<Answer> {
    let query = request.uri().query();
    let word = |key: &str| parameter(query.unwrap_or_default(), key);
    match request.uri().path() {
        "/" => page::answer(admin),
        "/page.css" => asset("text/css; charset=utf-8", page::CSS),
        "/page.js" => asset("text/javascript; charset=utf-8", page::JS),
        "/favicon.svg" | "/favicon.ico" => asset("image/svg+xml", page::ICON),
        "/metrics" => text(metrics::CONTENT_TYPE, metrics::render(admin)),
        "/livez" => text("text/plain; charset=utf-8", "ok\n"),
        "/readyz" => ready(admin, word("max-stale")),
        "/api/status" => status(admin, word("after"), word("wait")).await,
        "/api/apps" => json(&admin.apps(word("id").map(|id| AppId::new(&id)).as_ref())),
        "/api/vips" => json(&admin.vips()),
        "/v1/vips" => vips::dcos_net(admin, request.headers()),
        "/api/routes" => match &admin.sources.haproxy {
            Some(haproxy) => text("application/json", haproxy.routes()),
            None => refuse(StatusCode::NOT_FOUND, "the HTTP plane is not enabled"),
        },
        "/api/events" => events::answer(admin, query.unwrap_or_default()),
        "/_haproxy_getconfig" => text("text/plain; charset=utf-8", admin.sources.config.clone()),
        "/api/routes/explain" => explain(admin, query.unwrap_or_default()),
        "/_mlb_signal/hup" => {
            if let Some(watcher) = &admin.sources.watcher {
                watcher.command(Command::Resync);
            }
            text("text/plain; charset=utf-8", "Sent SIGHUP signal to marathon-lb")
        }
        // Marathon-LB loads the last configuration again; here the last table is the one that serves.
        "/_mlb_signal/usr1" => text("text/plain; charset=utf-8", "Sent SIGUSR1 signal to marathon-lb"),
        path => {
            let of_haproxy = admin.sources.haproxy.as_ref().and_then(|h| haproxy::answer(&**h, path, query));
            of_haproxy.unwrap_or_else(|| refuse(StatusCode::NOT_FOUND, "no such page; / is the overview"))
        }
    }
}

/// `url=…`, and `app=…` for a request by app id.
fn explain(admin: &Admin, query: &str) -> Response<Answer> {
    let Some(haproxy) = &admin.sources.haproxy else {
        return refuse(StatusCode::NOT_FOUND, "the HTTP plane is not enabled");
    };
    let url = parameter(query, "url").and_then(|url| url::Url::parse(&url).ok());
    let Some(url) = url.filter(|url| url.has_host()) else {
        return refuse(StatusCode::BAD_REQUEST, "url is no URL with a host; write it as http://HOST/PATH");
    };
    text("application/json", haproxy.explain(&url, parameter(query, "app").as_deref()))
}

fn parameter(query: &str, key: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == key).map(|(_, value)| value.into_owned())
}

/// With `after=G` waits until every plane has applied a generation after G, at most for `wait` (`10s`).
async fn status(admin: &Admin, after: Option<String>, wait: Option<String>) -> Response<Answer> {
    if let Some(after) = after {
        let Ok(after) = after.parse::<u64>() else {
            return refuse(StatusCode::BAD_REQUEST, "after is no generation number");
        };
        let wait = wait.as_deref().unwrap_or("0s");
        let Ok(wait) = humantime::parse_duration(wait) else {
            return refuse(StatusCode::BAD_REQUEST, "wait is no duration; write it as 10s");
        };
        let mut applied = admin.sources.applied.clone();
        let next = Generation(after.saturating_add(1));
        // Running out of time is an answer, too: the state as it is.
        let waited = tokio::time::timeout(wait.min(MAX_WAIT), applied.reached(next));
        tokio::select! {
            _ = waited => {}
            () = admin.sources.closing.cancelled() => {}
        }
    }
    json(&admin.status())
}

/// Has everything read again, with `accept` whatever is missing.
fn sync(admin: &Admin, query: &str) -> Response<Answer> {
    let Some(watcher) = &admin.sources.watcher else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "nothing is watched");
    };
    let accept = query.split('&').any(|word| matches!(word, "accept" | "accept=1"));
    watcher.command(if accept { Command::Believe } else { Command::Resync });
    json(&watcher.sources())
}

/// With `max-stale=60s`, what is served must not be older than that.
fn ready(admin: &Admin, max_stale: Option<String>) -> Response<Answer> {
    let max_stale = match max_stale.as_deref().map(humantime::parse_duration) {
        Some(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "max-stale is no duration; write it as 60s"),
        Some(Ok(limit)) => Some(limit),
        None => None,
    };
    if admin.is_ready() {
        let age = admin.age();
        return match max_stale {
            Some(limit) if age.is_none_or(|age| age > limit) => {
                let age = age.map_or(0, |age| age.as_secs());
                refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("what is served is {age} s old"))
            }
            _ => text("text/plain; charset=utf-8", "ready\n"),
        };
    }
    let reason = match admin.sources.stopping.is_cancelled() {
        true => "stopping",
        false => "waiting for the first sync to be applied by every plane",
    };
    refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn json(value: &impl Serialize) -> Response<Answer> {
    match serde_json::to_vec(value) {
        Ok(bytes) => text("application/json", bytes),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written as JSON")
        }
    }
}

pub fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn asset(content_type: &'static str, body: &'static str) -> Response<Answer> {
    let mut response = text(content_type, Bytes::from_static(body.as_bytes()));
    // A newer binary brings newer ones, so they are asked for again.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

pub fn refuse(status: StatusCode, reason: &str) -> Response<Answer> {
    let mut response = text("text/plain; charset=utf-8", format!("{reason}\n"));
    *response.status_mut() = status;
    response
}
