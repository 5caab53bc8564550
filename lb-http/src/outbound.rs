//! From a request that the guard let in to what goes to an endpoint: routed, admitted, its head written anew.
//!
//! The same for whatever protocol the request came by. Nothing waits here, and nothing is sent.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::access::{Admit, Scheme};
use crate::access_log::Record;
use crate::edits;
use crate::http1::fields::Name;
use crate::http1::request::Request;
use crate::http1::serialize::{self, Edits, Forwarding, Proto};
use crate::proxy::{self, Answer, Entry, Origin, Protection, Stop};
use crate::request_id::RequestId;
use crate::stats::Shard;
use crate::sticky::{self, Cookie};
use crate::table::Backend;
use crate::worker::Local;

/// Of what every request is told about its client, mostly: more, when the client speaks TLS or comes by IPv6.
const LINES_BYTES: usize = 64;

/// What the requests of a client's connection have in common.
pub(crate) struct Client {
    pub(crate) origin: Origin,
    protection: Protection,
    /// What every request is told about the client.
    lines: Vec<u8>,
}

/// A request that may go to an endpoint.
pub(crate) struct Outbound {
    pub(crate) backend: Arc<Backend>,
    pub(crate) cookie: Option<Cookie>,
    pub(crate) affinity: Option<u64>,
    pub(crate) head: Vec<u8>,
}

impl Client {
    pub(crate) fn new(client: SocketAddr, local_port: u16, entry: Entry, protection: Protection) -> Self {
        let (scheme, proto): (_, &[u8]) = match protection {
            Protection::Plain => (Scheme::Http, b""),
            Protection::Tls { .. } => (Scheme::Https, b"X-Forwarded-Proto: https\r\n"),
        };
        let address = client.ip().to_canonical();
        let mut lines = Vec::with_capacity(LINES_BYTES);
        serialize::address_line(&mut lines, b"X-Forwarded-For", address);
        serialize::number_line(&mut lines, b"X-Forwarded-Port", local_port.into());
        lines.extend_from_slice(proto);
        let connection = edits::Connection { scheme, client: address, local_port };
        Self { origin: Origin { entry, connection }, protection, lines }
    }

    /// `login`: what came of looking at the request's password, when that has been done. The record is there when the
    /// request is to be logged.
    pub(crate) fn outbound(
        &self,
        local: &Local,
        frontend: &Shard,
        request: &Request<'_>,
        login: Option<Admit>,
    ) -> (Result<Outbound, Stop>, Option<Box<Record>>) {
        let request_id = local.request_ids.next();
        let allowed = self.route(local, request).map_err(Stop::Answer).and_then(|backend| {
            match proxy::before_pick(&backend, request, &self.origin, login) {
                Ok(()) => Ok(backend),
                Err(stop) => {
                    if matches!(&stop, Stop::Answer(answer) if answer.is_denial()) {
                        frontend.n_denied_requests.increment();
                        backend.series.of_worker(local.index).n_denied_requests.increment();
                    }
                    Err(stop)
                }
            }
        });
        let log = local.access_log.as_ref();
        let client = self.origin.connection.client;
        let record = log.and_then(|log| log.record(client, request, allowed.as_deref().ok(), &request_id));
        (allowed.map(|backend| self.write(local, backend, request, &request_id)), record)
    }

    fn route(&self, local: &Local, request: &Request<'_>) -> Result<Arc<Backend>, Answer> {
        let entry = self.origin.entry;
        let is_misdirected = matches!(self.protection, Protection::Tls { .. })
            && local.with_tls(|tls| proxy::is_misdirected(&self.protection, entry, request, tls));
        match is_misdirected {
            true => Err(Answer::misdirected(proxy::text(request.host()))),
            false => local.with_table(|table| proxy::route(table, entry, request)),
        }
    }

    fn write(
        &self,
        local: &Local,
        backend: Arc<Backend>,
        request: &Request<'_>,
        request_id: &RequestId,
    ) -> Outbound {
        let mut cookies = local.scratch.take();
        cookies.clear();
        let cookie = (backend.is_sticky() && request.has(Name::Cookie))
            .then(|| {
                let name = backend.labels.cookie.name();
                sticky::take_cookie(request.values(Name::Cookie), name, &mut cookies)
            })
            .flatten();
        let has_changed = cookie.is_some() || !cookies.is_empty();
        let edits = proxy::request_edits(&backend, request, &self.origin.connection);
        let is_ours = edits.as_ref().is_none_or(|e| e.forwarding == edits::Forwarding::Standard);
        let forwarding = Forwarding {
            lines: if is_ours { &self.lines } else { b"" },
            proto: match self.protection {
                Protection::Plain => Proto::OfClient,
                Protection::Tls { .. } => Proto::Ours,
            },
            target: edits.as_ref().and_then(|e| e.target.as_deref()).map(str::as_bytes),
            request_id,
            cookies: has_changed.then_some(&*cookies),
            edits: edits.as_ref().map_or(Edits::NONE, |e| &e.edits),
        };
        let mut head = local.means.spare.output();
        serialize::request(&mut head, request, &forwarding);
        local.scratch.set(cookies);
        let affinity = proxy::affinity(&backend, request, self.origin.connection.client);
        Outbound { backend, cookie, affinity, head }
    }
}
