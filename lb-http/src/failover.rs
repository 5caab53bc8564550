//! How a request gets to an endpoint: the pick, the attempt, and the next one when it could not be sent.
//!
//! A request is sent again only when nothing of it was written, or when it has no body, is idempotent and nothing of a
//! response was seen (RFC 9110 section 9.2.2).

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use l4_vip::policy::Policy;
use l4_vip::pool::{Choices, InFlight, Pool};

use crate::body::RequestBody;
use crate::client::{Phase, Wait};
use crate::error::ProxyError;
use crate::headers::Seen;
use crate::stats::{ResponseClass, Session, Shard};
use crate::sticky;
use crate::table::{Backend, Server};
use crate::upstream::UpstreamConnection;
use crate::worker::Local;

/// Attempts end after so many connect time-outs: the client has waited long enough.
const MOST_CONNECT_TIMEOUTS: u32 = 3;
/// A table that changed while all endpoints failed may have better ones; that is looked at this often.
const MOST_TABLES: usize = 3;

pub(crate) struct Attempt<'a> {
    pub(crate) local: &'a Rc<Local>,
    pub(crate) wait: &'a Wait,
    pub(crate) client: IpAddr,
    /// The value of the sticky cookie that came with the request.
    pub(crate) cookie: Option<&'a [u8]>,
}

/// A request that an endpoint has answered, until the end of its response.
pub(crate) struct Exchange {
    local: Rc<Local>,
    backend: Arc<Backend>,
    server: usize,
    in_flight: InFlight,
    _session: Session,
    connection: UpstreamConnection,
    cookie: CookieDue,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CookieDue {
    No,
    Yes,
}

enum Failed {
    /// The request is whole and may go elsewhere.
    Unsent {
        request: Box<Request<RequestBody>>,
        stale: Stale,
        error: ProxyError,
    },
    Final(ProxyError),
}

impl Failed {
    fn unsent(request: Request<RequestBody>, stale: Stale, error: ProxyError) -> Self {
        Self::Unsent { request: Box::new(request), stale, error }
    }
}

/// Whether it failed on a connection that had been idle, which says little about the endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stale {
    No,
    Yes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    IdleOrNew,
    New,
}

impl Attempt<'_> {
    pub(crate) async fn send(
        &self,
        mut backend: Arc<Backend>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Exchange), ProxyError> {
        let shard = backend.series.of_worker(self.local.index);
        shard.n_sessions.increment();
        shard.n_requests.increment();
        let series = Arc::clone(&backend.series);
        let mut session = Some(series.begin());
        let mut error = ProxyError::NoEndpoint;
        for _ in 0..MOST_TABLES {
            match self.send_to(&backend, request, &mut session).await {
                Ok(done) => return Ok(done),
                Err(Failed::Final(last)) => {
                    error = last;
                    break;
                }
                Err(Failed::Unsent { request: unsent, error: last, .. }) => {
                    (request, error) = (*unsent, last);
                    let newest =
                        self.local.with_table(|table| table.backend(&backend.service).map(Arc::clone));
                    match newest {
                        Some(newest) if !Arc::ptr_eq(&newest, &backend) => backend = newest,
                        _ => break,
                    }
                }
            }
        }
        series.of_worker(self.local.index).responded(ResponseClass::of(error.status()));
        Err(error)
    }

    async fn send_to(
        &self,
        backend: &Arc<Backend>,
        mut request: Request<RequestBody>,
        session: &mut Option<Session>,
    ) -> Result<(Response<Incoming>, Exchange), Failed> {
        let wanted = self.cookie.and_then(|cookie| backend.server_of_cookie(cookie));
        let of_cookie = wanted.filter(|i| !backend.servers[*i].endpoint.is_ejected());
        let affinity = match backend.labels.balance {
            Policy::Source => {
                let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
                backend.labels.hash_on.of(self.client, target, request.headers())
            }
            _ => None,
        };
        let mut candidates =
            Candidates { next: of_cookie, pool: &backend.pool, affinity, walk: None, wanted: of_cookie };
        let shard = backend.series.of_worker(self.local.index);
        let mut failures = Failures::default();
        loop {
            let failed_idle = failures.again.take();
            let again = failed_idle.is_some();
            let Some(index) =
                failed_idle.or_else(|| candidates.next()).or_else(|| failures.last_resort.take())
            else {
                break;
            };
            if !backend.servers[index].endpoint.is_usable() || failures.is_too_late(self.local) {
                continue;
            }
            if let Some(first) = failures.first {
                shard.n_retries.increment();
                backend.servers[index].series.of_worker(self.local.index).n_retries.increment();
                if first != index {
                    shard.n_redispatches.increment();
                    backend.servers[index].series.of_worker(self.local.index).n_redispatches.increment();
                }
            }
            // After one idle connection turned out to be dead others may be, too.
            let which = if again || failures.first.is_some() { Use::New } else { Use::IdleOrNew };
            match self.try_server(backend, index, request, which).await {
                Ok((response, in_flight, connection)) => {
                    let session = session.take().unwrap_or_else(|| backend.series.begin());
                    let due = backend.is_sticky() && wanted != Some(index);
                    let exchange = Exchange {
                        local: Rc::clone(self.local),
                        backend: Arc::clone(backend),
                        server: index,
                        in_flight,
                        _session: session,
                        connection,
                        cookie: if due { CookieDue::Yes } else { CookieDue::No },
                    };
                    return Ok((response, exchange));
                }
                Err(Failed::Unsent { request: unsent, stale, error }) => {
                    request = *unsent;
                    failures.note(index, stale, wanted, error);
                }
                Err(failed) => return Err(failed),
            }
        }
        Err(Failed::unsent(request, Stale::No, failures.error.unwrap_or(ProxyError::NoEndpoint)))
    }

    async fn try_server(
        &self,
        backend: &Backend,
        index: usize,
        request: Request<RequestBody>,
        which: Use,
    ) -> Result<(Response<Incoming>, InFlight, UpstreamConnection), Failed> {
        let server = &backend.servers[index];
        let in_flight = server.endpoint.begin();
        server.series.saw_current(server.endpoint.n_in_flight());
        let shards = Shards::of(backend, server, self.local.index);
        shards.server.n_sessions.increment();
        let idle = match which {
            Use::IdleOrNew => self.local.upstreams.reuse(&server.endpoint),
            Use::New => None,
        };
        let (mut connection, stale) = match idle {
            Some(idle) => {
                shards.each(|s| s.n_reuses.increment());
                (idle, Stale::Yes)
            }
            None => match self.connect(backend, server, shards).await {
                Some(new) => (new, Stale::No),
                None => return Err(Failed::unsent(request, Stale::No, ProxyError::Connect)),
            },
        };
        let kept = Kept::of(&request, self.local);
        let n_read = connection.n_bytes_read();
        self.wait.enter(request.body().phase());
        let mut failed = match unless_expired(self.wait, connection.sender.try_send_request(request)).await {
            Some(Ok(response)) => {
                shards.server.n_requests.increment();
                if let Some(kept) = kept {
                    kept.forget(self.local);
                }
                return Ok((response, in_flight, connection));
            }
            Some(Err(failed)) => failed,
            None if self.wait.phase() == Phase::RequestBody => {
                return Err(Failed::Final(ProxyError::ClientTimeout));
            }
            None => {
                shards.each(|s| s.n_response_errors.increment());
                return Err(Failed::Final(ProxyError::ServerTimeout));
            }
        };
        if let Some(request) = failed.take_message() {
            return Err(Failed::unsent(request, stale, ProxyError::NoResponse));
        }
        let error = failed.into_error();
        tracing::debug!(backend = %backend.name, server = %server.name, %error, "no response");
        if error.is_user() || error.is_body_write_aborted() {
            return Err(Failed::Final(ProxyError::ClientBody));
        }
        shards.each(|s| s.n_response_errors.increment());
        if error.is_parse() && !error.is_incomplete_message() {
            return Err(Failed::Final(ProxyError::BadResponse));
        }
        match kept {
            Some(kept) if connection.n_bytes_read() == n_read => {
                Err(Failed::unsent(kept.into_request(), stale, ProxyError::NoResponse))
            }
            _ => Err(Failed::Final(ProxyError::NoResponse)),
        }
    }

    async fn connect(
        &self,
        backend: &Backend,
        server: &Server,
        shards: Shards<'_>,
    ) -> Option<UpstreamConnection> {
        shards.each(|s| s.n_connects.increment());
        match self.local.upstreams.connect(backend, server).await {
            Ok(connection) => {
                server.endpoint.connect_succeeded();
                Some(connection)
            }
            Err(error) => {
                tracing::debug!(backend = %backend.name, server = %server.name, %error, "connect failed");
                server.endpoint.connect_failed();
                shards.each(|s| s.n_connect_errors.increment());
                None
            }
        }
    }
}

/// This worker's counters of a backend and one of its servers.
#[derive(Clone, Copy)]
struct Shards<'a> {
    backend: &'a Shard,
    server: &'a Shard,
}

impl<'a> Shards<'a> {
    fn of(backend: &'a Backend, server: &'a Server, worker: usize) -> Self {
        Self { backend: backend.series.of_worker(worker), server: server.series.of_worker(worker) }
    }

    fn each(self, count: impl Fn(&Shard)) {
        count(self.backend);
        count(self.server);
    }
}

/// The server of the cookie, then the pool's proposals. The pool is not asked, and takes no turn, before it is needed.
struct Candidates<'a> {
    next: Option<usize>,
    wanted: Option<usize>,
    pool: &'a Pool,
    affinity: Option<u64>,
    walk: Option<Choices<'a>>,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(wanted) = self.next.take() {
            return Some(wanted);
        }
        let walk = self.walk.get_or_insert_with(|| self.pool.pick(self.affinity));
        walk.map(|choice| choice.index).find(|index| Some(*index) != self.wanted)
    }
}

/// What has failed so far for one request.
#[derive(Default)]
struct Failures {
    first: Option<usize>,
    /// To be tried on a new connection at once: the server of the client's session.
    again: Option<usize>,
    /// To be tried on a new connection when all others have failed.
    last_resort: Option<usize>,
    began: Option<Instant>,
    error: Option<ProxyError>,
}

impl Failures {
    fn note(&mut self, index: usize, stale: Stale, wanted: Option<usize>, error: ProxyError) {
        if stale == Stale::Yes {
            if wanted == Some(index) {
                self.again = Some(index);
            } else {
                self.last_resort = Some(index);
            }
        }
        self.first.get_or_insert(index);
        self.began.get_or_insert_with(Instant::now);
        self.error = Some(error);
    }

    fn is_too_late(&self, local: &Local) -> bool {
        self.began.is_some_and(|began| began.elapsed() > local.timeouts.connect * MOST_CONNECT_TIMEOUTS)
    }
}

/// A request without a body, to be sent again when the first sending leaves no trace. A list of fields, because a map
/// of headers costs several times as much to copy, and nearly every copy is thrown away.
struct Kept {
    method: Method,
    uri: Uri,
    fields: Fields,
}

/// Reused by one request after the other.
pub(crate) type Fields = Vec<(HeaderName, HeaderValue)>;

impl Kept {
    /// `None`: it must not be sent again.
    fn of(request: &Request<RequestBody>, local: &Local) -> Option<Self> {
        if !request.body().is_empty() || !request.method().is_idempotent() {
            return None;
        }
        let mut fields = local.spare_fields.take().unwrap_or_default();
        fields.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        Some(Self { method: request.method().clone(), uri: request.uri().clone(), fields })
    }

    fn forget(mut self, local: &Local) {
        self.fields.clear();
        local.spare_fields.set(Some(self.fields));
    }

    fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        for (name, value) in self.fields {
            request.headers_mut().append(name, value);
        }
        request
    }
}

async fn unless_expired<F: Future>(wait: &Wait, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if wait.is_expired() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl Exchange {
    fn server(&self) -> &Server {
        &self.backend.servers[self.server]
    }

    /// Of the service, when it has one of its own.
    pub(crate) fn tunnel_timeout(&self) -> Option<Duration> {
        self.backend.labels.timeouts.tunnel
    }

    fn shards(&self) -> Shards<'_> {
        Shards::of(&self.backend, self.server(), self.local.index)
    }

    pub(crate) fn responded(&self, status: StatusCode, took: Duration) {
        self.shards().each(|shard| {
            shard.responded(ResponseClass::of(status));
            shard.took(took);
        });
    }

    /// Gives the client its cookie when it has no valid one.
    pub(crate) fn mark(&self, headers: &mut HeaderMap, seen: Seen, method: &Method, status: StatusCode) {
        if self.cookie == CookieDue::Yes {
            sticky::insert(headers, &self.server().set_cookie, seen, method, status);
        }
    }

    pub(crate) fn bad_response(self) {
        self.shards().each(|s| {
            s.n_response_errors.increment();
            s.responded(ResponseClass::of(StatusCode::BAD_GATEWAY));
        });
    }

    /// The response has ended as it should.
    pub(crate) fn ended(self) {
        self.local.upstreams.give_back(self.in_flight.endpoint(), self.connection);
    }

    /// The endpoint broke the response off.
    pub(crate) fn broken(self) {
        self.shards().each(|s| s.n_server_aborts.increment());
    }

    /// The client left before the end.
    pub(crate) fn given_up(self) {
        self.shards().each(|s| s.n_client_aborts.increment());
    }
}
