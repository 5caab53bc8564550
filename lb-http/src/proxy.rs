//! What a request is for and what is said about it: the policy between a client's protocol and the endpoints.
//!
//! Whatever speaks to a client calls, in this order: [`route`] (which backend), [`before_pick`] (may the request go there;
//! rules of a service that refuse, redirect or answer belong here), [`request_edits`] and [`response_edits`] (what the
//! serializer leaves out of a head and adds to it), then `failover::Attempt::send`. Nothing here reads or writes.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::error::ProxyError;
use crate::http1::fields::Name;
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Request};
use crate::http1::serialize::{self, Edits};
use crate::stats::Session;
use crate::table::{Backend, Table};
use crate::worker::Permit;

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
pub(crate) struct Accepted<S> {
    pub(crate) stream: S,
    pub(crate) client: SocketAddr,
    /// The port that the client connected to.
    pub(crate) local_port: u16,
    pub(crate) entry: Entry,
    pub(crate) session: Session,
    /// Holds the connection's place within the limits.
    pub(crate) permit: Permit,
}

/// The backend that a request is for.
pub(crate) fn route(table: &Table, entry: Entry, request: &Request<'_>) -> Result<Arc<Backend>, Answer> {
    let index = match entry {
        Entry::ServicePort(port) => table
            .routes
            .of_port(port)
            .ok_or_else(|| Answer::no_route(format!("no app has service port {port} any more"))),
        Entry::Hosts => {
            let (host, path) = (text(request.host()), text(request.path()));
            table.routes.of_host(host, path).ok_or_else(|| {
                Answer::no_route(format!("no app has the virtual host {host:?} for this path"))
            })
        }
        Entry::AppIds => match request.values(Name::XMarathonAppId).next().map(text) {
            Some(app) => table
                .routes
                .of_app(app)
                .ok_or_else(|| Answer::no_route(format!("no app {app:?} is served over HTTP"))),
            None => Err(Answer::no_route("the header X-Marathon-App-Id is missing".to_owned())),
        },
    }?;
    Ok(Arc::clone(&table.backends[index]))
}

/// What is no text is the name of nothing.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Answers a request that must not reach an endpoint of the backend that it is for.
pub(crate) fn before_pick(_backend: &Backend, request: &Request<'_>) -> Result<(), Answer> {
    match request.max_forwards {
        // RFC 9110 section 7.6.2: it may go no further.
        Some(0) => Err(Answer::options()),
        _ => Ok(()),
    }
}

/// What the backend's service wants changed in the heads of its requests.
pub(crate) fn request_edits(_backend: &Backend) -> &Edits {
    Edits::NONE
}

/// The same for its responses.
pub(crate) fn response_edits(_backend: &Backend) -> &Edits {
    Edits::NONE
}

/// A response of the balancer itself.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// A word for programs: why the balancer itself answered.
    reason: &'static str,
    text: String,
}

/// Whether the client may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
}

const METHODS: &[u8] = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl Answer {
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { status: refusal.status(), reason: "request-refused", text: refusal.to_string() }
    }

    /// `None`: there is nobody to tell.
    pub(crate) fn failed(error: ProxyError) -> Option<Self> {
        Some(Self { status: error.status()?, reason: error.word(), text: error.to_string() })
    }

    fn no_route(text: String) -> Self {
        Self { status: 503, reason: "no-route", text }
    }

    fn options() -> Self {
        Self { status: 200, reason: "max-forwards", text: String::new() }
    }

    /// Appends it as a client gets it; without its body to HEAD.
    pub(crate) fn write(&self, out: &mut Vec<u8>, method: Method, connection: &[u8]) {
        let words = StatusCode::from_u16(self.status).ok().and_then(|s| s.canonical_reason());
        let status = format!("{} {}", self.status, words.unwrap_or_default());
        let body = match &*self.text {
            "" => String::new(),
            text => format!("{status}: {text}\n"),
        };
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_bytes());
        out.extend_from_slice(b"\r\n");
        serialize::line(out, b"waymark-reason", self.reason.as_bytes());
        serialize::line(out, b"content-type", b"text/plain; charset=utf-8");
        if matches!(self.status, 200 | 405) {
            serialize::line(out, b"allow", METHODS);
        }
        out.extend_from_slice(connection);
        serialize::number_line(out, b"content-length", body.len() as u64);
        out.extend_from_slice(b"\r\n");
        if method != Method::Head {
            out.extend_from_slice(body.as_bytes());
        }
    }
}
