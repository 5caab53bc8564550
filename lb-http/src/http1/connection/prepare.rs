//! A request's head, from the bytes in the buffer to what goes to an endpoint (see `outbound`).
//!
//! Nothing waits here, and nothing is sent.

use std::sync::Arc;
use std::time::Instant;

use super::Connection;
use crate::access::{Admit, Verification};
use crate::http1::Framing;
use crate::http1::chunked::Decoder;
use crate::http1::flow::{Coding, Flow};
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Persistence, Request, Version};
use crate::http1::side::ClientStream;
use crate::outbound::Outbound;
use crate::proxy::{Answer, Stop};
use crate::sticky::Cookie;
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
        let is_admitted =
            |request: &Request<'_>| known.is_some() || local.limits.head().admit(&request.extent());
        let request = match Request::parse(known.map_or(bytes, |n| &bytes[..n]), &mut fields) {
            Ok(request) if is_admitted(&request) => request,
            Err(refusal) if known.is_some() => {
                local.fields.set(fields);
                return Err(NotPrepared::Refused(refusal));
            }
            _ => {
                local.fields.set(fields);
                return Err(NotPrepared::Unscanned);
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
        let hop_names = if framing == Framing::Chunked { request.hop_names() } else { Vec::new() };
        let (outbound, record) = self.client.outbound(local, self.side.shard(), &request, login);
        (self.status, self.record) = (0, record);
        local.fields.set(fields);
        if let Err(Stop::Verify(verification)) = outbound {
            return Err(NotPrepared::Unverified(verification));
        }
        self.side.input.consume(n);
        let Outbound { backend, cookie, affinity, head } = outbound.map_err(|stop| match stop {
            Stop::Answer(answer) => NotPrepared::Answered(answer, about, framing),
            Stop::Verify(verification) => NotPrepared::Unverified(verification),
        })?;
        let coding = if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
        let mut flow = Flow::new(framing, coding, head);
        flow.decode_with(|| Decoder::new(self.local.limits.chunk_extension_bytes, hop_names));
        if let Err(bad) = flow.take_along(&mut self.side.input) {
            flow.release(&self.local.means);
            return Err(NotPrepared::Refused(bad.into()));
        }
        if self.side.input.is_empty() {
            self.side.input.release(&self.local.means.spare);
        }
        Ok(Prepared { backend, flow, cookie, affinity, about })
    }
}
