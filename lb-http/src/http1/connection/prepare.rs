//! A request's head, from the bytes in the buffer to what goes to an endpoint: parsed, routed, admitted, written anew.
//!
//! Nothing waits here, and nothing is sent.

use std::sync::Arc;
use std::time::Instant;

use super::Connection;
use crate::access::{Admit, Verification};
use crate::edits;
use crate::http1::Framing;
use crate::http1::fields::Name;
use crate::http1::flow::{Coding, Flow};
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Persistence, Request, Version};
use crate::http1::serialize::{self, Edits, Forwarding, Proto};
use crate::http1::side::ClientStream;
use crate::proxy::{self, Answer, Origin, Protection, Stop};
use crate::sticky::{self, Cookie};
use crate::table::Backend;

/// A request that is ready to be sent.
pub(super) struct Prepared {
    pub(super) backend: Arc<Backend>,
    pub(super) flow: Flow,
    pub(super) cookie: Option<Cookie>,
    pub(super) affinity: Option<u64>,
    pub(super) about: About,
}

/// What must be known of a request when its head is gone.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) persistence: Persistence,
    pub(super) expects_continue: bool,
    pub(super) wants_websocket: bool,
    pub(super) started: Instant,
}

pub(super) enum NotPrepared {
    /// What has come does not begin with a whole head, or with none that may go on: its lines will tell.
    Unscanned,
    Refused(Refusal),
    Answered(Answer, About, Framing),
    /// The head is still there, to be prepared again.
    Unverified(Verification),
}

impl<S: ClientStream> Connection<S> {
    /// `known` is the head's length, if it has been scanned.
    pub(super) fn prepare(
        &mut self,
        known: Option<usize>,
        login: Option<Admit>,
    ) -> Result<Prepared, NotPrepared> {
        let local = &self.local;
        let mut fields = local.fields.take();
        let bytes = self.side.input.filled();
        let parsed = match known {
            Some(n) => Request::parse(&bytes[..n], &mut fields).map_err(NotPrepared::Refused),
            None => Request::parse(bytes, &mut fields)
                .ok()
                .filter(|request| local.limits.head().admit(&request.extent()))
                .ok_or(NotPrepared::Unscanned),
        };
        let request = match parsed {
            Ok(request) => request,
            Err(not_prepared) => {
                local.fields.set(fields);
                return Err(not_prepared);
            }
        };
        let n = request.extent().head_bytes;
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
}
