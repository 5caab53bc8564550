//! What a request is for and what is said about it: the policy between a client's protocol and the endpoints.
//!
//! Whatever speaks to a client calls, in this order: [`route`] (which backend), [`before_pick`] (may the request go
//! there; rules of a service that refuse, redirect or answer belong here), [`request_edits`] and [`response_edits`]
//! (what the serializer leaves out of a head and adds to it), then `failover::Attempt::send`. Nothing here reads or
//! writes.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;

use crate::access::{Admit, RequestFacts, Verification, Way};
use crate::edits::{self, Connection};
use crate::error::ProxyError;
use crate::http1::fields::Name;
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Request};
use crate::http1::response::Response;
use crate::http1::serialize::{self, Edits};
use crate::route::without_port;
use crate::stats::Session;
use crate::table::{Backend, Table};
use crate::tls::TlsTable;
use crate::worker::Permit;

/// How a listener leads to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    ServicePort(u16),
    /// By Host and path.
    Hosts,
    /// The same over TLS.
    TlsHosts,
    /// By `X-Marathon-App-Id`.
    AppIds,
}

/// How a client's connection is protected.
#[derive(Clone, Debug)]
pub(crate) enum Protection {
    Plain,
    Tls {
        /// That the client asked for in its handshake, in lower case.
        server_name: Option<Box<str>>,
    },
}

/// A connection as the listener hands it over.
#[derive(Debug)]
pub(crate) struct Accepted<S> {
    pub(crate) stream: S,
    pub(crate) client: SocketAddr,
    /// The port that the client connected to.
    pub(crate) local_port: u16,
    pub(crate) entry: Entry,
    pub(crate) protection: Protection,
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
        Entry::Hosts | Entry::TlsHosts => {
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

/// Whether a request to a virtual host came by a connection that was made for another host: its client may have been
/// shown another certificate, and asked for another of its own.
pub(crate) fn is_misdirected(
    protection: &Protection,
    entry: Entry,
    request: &Request<'_>,
    tls: &TlsTable,
) -> bool {
    let Protection::Tls { server_name } = protection else { return false };
    let host = without_port(text(request.host()));
    entry == Entry::TlsHosts
        && match server_name {
            Some(name) => !name.eq_ignore_ascii_case(host.trim_end_matches('.')),
            None => tls.wants_client_certificates(&host.to_ascii_lowercase()),
        }
}

/// What is no text is the name of nothing.
pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Why a request does not go on to an endpoint.
#[derive(Debug)]
pub(crate) enum Stop {
    Answer(Answer),
    /// Not before this password has been looked at.
    Verify(Verification),
}

/// Answers a request that must not reach an endpoint of the backend that it is for. `login`: what came of looking at
/// its password, when that has been done.
pub(crate) fn before_pick(
    backend: &Backend,
    request: &Request<'_>,
    origin: &Origin,
    login: Option<Admit>,
) -> Result<(), Stop> {
    // RFC 9110 section 7.6.2: it may go no further.
    if request.max_forwards == Some(0) {
        return Err(Stop::Answer(Answer::options()));
    }
    let admission = &backend.labels.admission;
    if admission.is_open() {
        return Ok(());
    }
    let target = target(request);
    let facts = RequestFacts {
        way: match origin.entry {
            Entry::ServicePort(_) => Way::ServicePort,
            Entry::Hosts | Entry::TlsHosts => Way::Hosts,
            Entry::AppIds => Way::AppIds,
        },
        scheme: origin.connection.scheme,
        client: origin.connection.client,
        host: text(request.host()),
        target: &target,
        authorization: request.value_of(b"authorization"),
        forwarded_proto: request.value_of(b"x-forwarded-proto"),
    };
    let decided = match (admission.admit(&facts), login) {
        (Admit::Verify(_), Some(login)) => login,
        (decided, _) => decided,
    };
    match decided {
        Admit::Continue => Ok(()),
        Admit::Verify(verification) => Err(Stop::Verify(verification)),
        Admit::Redirect { status, location } => {
            Err(Stop::Answer(Answer::redirect(status.as_u16(), location)))
        }
        Admit::Challenge(challenge) => Err(Stop::Answer(Answer::challenge(&challenge))),
        Admit::Deny => Err(Stop::Answer(Answer::denied())),
    }
}

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) entry: Entry,
    pub(crate) connection: Connection,
}

/// Path and query.
fn target(request: &Request<'_>) -> Cow<'static, str> {
    let (begin, rest) = request.path_and_query();
    let mut target: Vec<u8> = begin.into_iter().collect();
    target.extend_from_slice(rest);
    Cow::Owned(String::from_utf8(target).unwrap_or_default())
}

/// What the request has in common with those that should go to the same endpoint, for policies that go by it.
pub(crate) fn affinity(backend: &Backend, request: &Request<'_>, client: IpAddr) -> Option<u64> {
    if !backend.labels.balance.is_keyed() {
        return None;
    }
    backend.labels.hash_on.of(client, &target(request), |name| request.value_of(name))
}

/// What the backend's service wants changed in the head of a request.
pub(crate) struct RequestEdits {
    pub(crate) edits: Edits,
    pub(crate) target: Option<String>,
    pub(crate) forwarding: edits::Forwarding,
}

/// `None`: nothing.
pub(crate) fn request_edits(
    backend: &Backend,
    request: &Request<'_>,
    connection: &Connection,
) -> Option<RequestEdits> {
    let wanted = &backend.labels.edits;
    (!wanted.is_plain()).then(|| RequestEdits {
        edits: wanted.of_request(connection),
        target: wanted.rewrite_target(&target(request)),
        forwarding: wanted.forwarding,
    })
}

/// The same for its responses.
pub(crate) fn response_edits(
    backend: &Backend,
    response: &Response,
    head: &[u8],
    connection: &Connection,
) -> Cow<'static, Edits> {
    let wanted = &backend.labels.edits;
    if wanted.is_plain() {
        return Cow::Borrowed(Edits::NONE);
    }
    let location = response.fields.iter().find(|f| f.name_in(head).eq_ignore_ascii_case(b"location"));
    Cow::Owned(wanted.of_response(connection, location.map(|f| f.value_in(head))))
}

/// A response of the balancer itself.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// A word for programs: why the balancer itself answered.
    reason: &'static str,
    text: String,
    /// A line that says more, with its CR LF.
    line: Vec<u8>,
}

/// Whether the client may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
}

const METHODS: &[u8] = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl Answer {
    fn new(status: u16, reason: &'static str, text: String) -> Self {
        Self { status, reason, text, line: Vec::new() }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self::new(refusal.status(), "request-refused", refusal.to_string())
    }

    /// `None`: there is nobody to tell.
    pub(crate) fn failed(error: ProxyError) -> Option<Self> {
        Some(Self::new(error.status()?, error.word(), error.to_string()))
    }

    /// RFC 9110 section 15.5.20: the client may ask again on another connection.
    pub(crate) fn misdirected(host: &str) -> Self {
        let text = format!("this connection was not made for the host {host:?}");
        Self::new(421, "misdirected", text)
    }

    fn no_route(text: String) -> Self {
        Self::new(503, "no-route", text)
    }

    fn options() -> Self {
        Self::new(200, "max-forwards", String::new())
    }

    fn redirect(status: u16, location: String) -> Self {
        let mut line = Vec::new();
        serialize::line(&mut line, b"location", location.as_bytes());
        Self { line, ..Self::new(status, "redirect", location) }
    }

    fn challenge(challenge: &str) -> Self {
        let mut line = Vec::new();
        serialize::line(&mut line, b"www-authenticate", challenge.as_bytes());
        Self { line, ..Self::new(401, "login", "this service asks for a user and a password".to_owned()) }
    }

    fn denied() -> Self {
        Self::new(403, "address-denied", "this service does not let your address in".to_owned())
    }

    /// A service's rules turned the client away.
    pub(crate) fn is_denial(&self) -> bool {
        self.status == 403
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
        out.extend_from_slice(&self.line);
        out.extend_from_slice(connection);
        serialize::number_line(out, b"content-length", body.len() as u64);
        out.extend_from_slice(b"\r\n");
        if method != Method::Head {
            out.extend_from_slice(body.as_bytes());
        }
    }
}
