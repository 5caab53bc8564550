//! How a request gets to an endpoint: the pick, the attempt, and the next one when it could not be sent.
//!
//! A request is sent again only when nothing of it was written, or when it is idempotent, all of it is still here and
//! nothing of a response was seen (RFC 9110 section 9.2.2).

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use l4_vip::pool::{Choices, Pool};
use l4_vip::proxy_protocol;

use crate::error::ProxyError;
use crate::exchange::{Call, CookieDue, Exchange, Failure, Front};
use crate::http1::scan::Scan;
use crate::labels::WhenFull;
use crate::queue::{Full, Place};
use crate::stats::{ResponseClass, Session, Shard, Stage};
use crate::table::{Backend, Server};
use crate::upstream::{Certainty, ConnectError, Upstream};
use crate::wait::{Phase, Wait};
use crate::worker::Local;

/// Attempts end after so many connect time-outs: the client has waited long enough.
const MOST_CONNECT_TIMEOUTS: u32 = 3;
/// A table that changed while all endpoints failed may have better ones; that is looked at this often.
const MOST_TABLES: usize = 3;

/// When no endpoint accepts, they are asked again after each of these pauses, within the time-out for connecting: an
/// instance that restarts is back by then, mostly. HAProxy makes three turn-arounds of a second with Marathon-LB's
/// `retries 3`.
const TURN_AROUNDS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1200),
];

/// A request that waited, and whose endpoint then failed it, waits this often.
const MOST_WAITS: usize = 3;

pub(crate) struct Attempt<'a> {
    pub(crate) local: &'a Rc<Local>,
    pub(crate) wait: &'a Wait,
    /// What the request has in common with those that should go to the same endpoint, for policies that go by it.
    pub(crate) affinity: Option<u64>,
    /// The value of the sticky cookie that came with the request.
    pub(crate) cookie: Option<&'a [u8]>,
    /// For room and for connections, so far.
    pub(crate) waited: Cell<Duration>,
}

enum Failed {
    /// The request is whole and may go elsewhere.
    Unsent {
        stale: Stale,
        error: ProxyError,
    },
    Final(ProxyError),
}

/// Whether it failed on a connection that had been idle, which says little about the endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stale {
    No,
    Yes,
}

/// Whether an endpoint was passed over because it had as many requests as it may.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rooms {
    Free,
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    IdleOrNew,
    New,
}

impl Attempt<'_> {
    pub(crate) async fn send(
        &self,
        backend: &Arc<Backend>,
        front: &mut impl Front,
    ) -> Result<Exchange, ProxyError> {
        let shard = backend.series.of_worker(self.local.index);
        shard.n_sessions.increment();
        shard.n_requests.increment();
        let mut session = Some(backend.series.begin());
        // Given to it while the table changed.
        let mut granted = None;
        let mut newer = None;
        let mut n_tables = 1;
        let mut turn_arounds = TURN_AROUNDS.into_iter();
        let mut failures = Failures::default();
        let error = loop {
            let backend = newer.as_ref().unwrap_or(backend);
            match self.send_to(backend, front, &mut session, &mut granted, &mut failures).await {
                Ok(exchange) => return Ok(exchange),
                Err(Failed::Final(error)) => break error,
                Err(Failed::Unsent { error: last, .. }) => {
                    let newest =
                        || self.local.with_table(|table| table.backend(&backend.service).map(Arc::clone));
                    let is_newer = |newest: &Arc<Backend>| !Arc::ptr_eq(newest, backend);
                    let mut found = newest().filter(is_newer);
                    if found.is_none() {
                        // Only for who said no at once: the others have been waited for.
                        let limit = backend.labels.timeouts.connect.unwrap_or(self.local.timeouts.connect);
                        let is_worth_while = |pause: &Duration| {
                            last == ProxyError::Connect && failures.elapsed() + *pause < limit
                        };
                        let Some(pause) = turn_arounds.next().filter(is_worth_while) else { break last };
                        if let Err(ended) = Box::pin(self.turn_around(backend, pause, front)).await {
                            break ended.unwrap_or(last);
                        }
                        found = newest().filter(is_newer);
                    }
                    if found.is_some() {
                        n_tables += 1;
                        failures = Failures::default();
                        newer = found;
                    }
                    if n_tables > MOST_TABLES {
                        break last;
                    }
                }
            }
        };
        match error.status() {
            Some(status) => shard.responded(ResponseClass::of_number(status)),
            None => shard.n_client_aborts.increment(),
        }
        Err(error)
    }

    async fn send_to(
        &self,
        backend: &Arc<Backend>,
        front: &mut impl Front,
        session: &mut Option<Session>,
        granted: &mut Option<Place>,
        failures: &mut Failures,
    ) -> Result<Exchange, Failed> {
        let wanted = self.cookie.and_then(|cookie| backend.server_of_cookie(cookie));
        let of_cookie = wanted.filter(|i| !backend.servers[*i].endpoint.is_ejected());
        let mut candidates = Candidates {
            next: of_cookie,
            pool: &backend.pool,
            affinity: self.affinity,
            walk: None,
            wanted: of_cookie,
        };
        let shard = backend.series.of_worker(self.local.index);
        let mut n_waits = 0;
        let mut rooms = Rooms::Free;
        loop {
            let mut again = false;
            let (index, place) = match granted.take() {
                Some(place) => match backend.server_of(place.endpoint()) {
                    Some(index) if place.endpoint().is_usable() => (index, place),
                    Some(_) => continue,
                    None => {
                        *granted = Some(place);
                        break;
                    }
                },
                None => {
                    let failed_idle = failures.again.take();
                    again = failed_idle.is_some();
                    let next =
                        failed_idle.or_else(|| candidates.next()).or_else(|| failures.last_resort.take());
                    let Some(index) = next else {
                        if rooms == Rooms::Free || n_waits == MOST_WAITS || failures.is_too_late(self.local) {
                            break;
                        }
                        n_waits += 1;
                        *granted = Box::pin(self.wait_for_room(backend, None, front)).await?;
                        if granted.is_none() {
                            break;
                        }
                        continue;
                    };
                    let endpoint = &backend.servers[index].endpoint;
                    if !endpoint.is_usable() || failures.is_too_late(self.local) {
                        continue;
                    }
                    let capacity = &backend.labels.capacity;
                    if capacity.per_endpoint.is_none() {
                        (index, Place::begin(endpoint))
                    } else if let Some(place) = backend.queue.enter(endpoint) {
                        (index, place)
                    } else {
                        rooms = Rooms::Full;
                        if of_cookie == Some(index) && capacity.when_full == WhenFull::Wait {
                            *granted = Box::pin(self.wait_for_room(backend, Some(index), front)).await?;
                        }
                        continue;
                    }
                }
            };
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
            match self.try_server(backend, index, front, which).await {
                Ok(upstream) => {
                    let due = backend.is_sticky() && wanted != Some(index);
                    return Ok(Exchange {
                        local: Rc::clone(self.local),
                        backend: Arc::clone(backend),
                        server: index,
                        place,
                        waited: self.waited.get(),
                        _session: session.take().unwrap_or_else(|| backend.series.begin()),
                        upstream,
                        cookie: if due { CookieDue::Yes } else { CookieDue::No },
                    });
                }
                Err(Failed::Unsent { stale, error }) => failures.note(index, stale, wanted, error),
                Err(failed) => return Err(failed),
            }
        }
        Err(Failed::Unsent { stale: Stale::No, error: failures.error.unwrap_or(ProxyError::NoEndpoint) })
    }

    /// Waits for an endpoint that may come back. An error: it is not worth while any more; `None`: for no new reason.
    async fn turn_around(
        &self,
        backend: &Backend,
        pause: Duration,
        front: &mut impl Front,
    ) -> Result<(), Option<ProxyError>> {
        // So many may wait for room, or for this: a dead app does not hold everybody's connections.
        if backend.series.n_waiting() >= backend.labels.capacity.queue {
            return Err(None);
        }
        let _waiting = backend.series.wait();
        self.wait.enter(Phase::Connect, pause);
        poll_fn(|cx| {
            if let Poll::Ready(Err(_)) = front.poll_client(cx) {
                return Poll::Ready(Err(Some(ProxyError::ClientGone)));
            }
            match self.wait.is_expired() {
                true if self.wait.is_all_over() => Poll::Ready(Err(None)),
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// `None`: there is no room to wait for that endpoint, or nothing to wait for any more.
    async fn wait_for_room(
        &self,
        backend: &Backend,
        wanted: Option<usize>,
        front: &mut impl Front,
    ) -> Result<Option<Place>, Failed> {
        let capacity = &backend.labels.capacity;
        let shard = backend.series.of_worker(self.local.index);
        let wanted = wanted.map(|index| &backend.servers[index]);
        // As in HAProxy: a server's own line, or that of the backend.
        let counted = wanted.map_or(&backend.series, |server| &server.series);
        let endpoint = wanted.map(|server| &server.endpoint);
        let mut turn = match backend.queue.wait(&backend.pool, endpoint, capacity.queue, counted) {
            Ok(turn) => turn,
            Err(Full) if wanted.is_some() => return Ok(None),
            Err(Full) => {
                shard.n_queue_refusals.increment();
                return Err(Failed::Final(ProxyError::QueueFull));
            }
        };
        let began = Instant::now();
        self.wait.enter(Phase::Queue, capacity.queue_timeout);
        let waited = poll_fn(|cx| {
            if let Poll::Ready(place) = turn.poll(cx) {
                return Poll::Ready(Ok(place));
            }
            if let Poll::Ready(Err(_)) = front.poll_client(cx) {
                return Poll::Ready(Err(ProxyError::ClientGone));
            }
            if self.wait.is_expired() { Poll::Ready(Err(ProxyError::QueueTimeout)) } else { Poll::Pending }
        });
        let waited = waited.await;
        let took = began.elapsed();
        self.waited.set(self.waited.get() + took);
        let shards = [Some(shard), wanted.map(|server| server.series.of_worker(self.local.index))];
        for shard in shards.into_iter().flatten() {
            shard.n_queued.increment();
            shard.spent(Stage::Queue, took);
            if matches!(waited, Err(ProxyError::QueueTimeout)) {
                shard.n_queue_timeouts.increment();
                // HAProxy counts it there.
                shard.n_connect_errors.increment();
            }
        }
        waited.map_err(Failed::Final)
    }

    async fn try_server(
        &self,
        backend: &Backend,
        index: usize,
        front: &mut impl Front,
        which: Use,
    ) -> Result<Box<Upstream>, Failed> {
        let server = &backend.servers[index];
        server.series.saw_current(server.endpoint.n_in_flight());
        let shards = Shards::of(backend, server, self.local.index);
        shards.server.n_sessions.increment();
        let is_idempotent = front.method().is_idempotent();
        let idle = match which {
            // A connection that was announced is its client's alone.
            Use::IdleOrNew if backend.labels.proxy_protocol.send.is_some() => None,
            Use::IdleOrNew => {
                let certainty =
                    if is_idempotent && front.is_whole() { Certainty::Known } else { Certainty::Asked };
                self.local.upstreams.reuse(&server.endpoint, certainty, backend.labels.server_tls.as_ref())
            }
            Use::New => None,
        };
        let (mut upstream, stale) = match idle {
            Some(idle) => {
                shards.each(|s| s.n_reuses.increment());
                (idle, Stale::Yes)
            }
            // Boxed, because most requests have no need of it.
            None => match Box::pin(self.connect(backend, server, front, shards)).await {
                Ok(new) => (new, Stale::No),
                Err(error) => return Err(Failed::Unsent { stale: Stale::No, error }),
            },
        };
        let (own, timeouts) = (&backend.labels.timeouts, &self.local.timeouts);
        self.wait.enter(Phase::RequestBody, own.client.unwrap_or(timeouts.client_body_idle));
        let mut call = Call {
            front: &mut *front,
            upstream: &mut upstream,
            local: self.local,
            wait: self.wait,
            server_head: own.server.unwrap_or(timeouts.server_head),
            is_sent: false,
            scan: Scan::default(),
            n_interim: 0,
        };
        let failure = match poll_fn(|cx| call.poll(cx)).await {
            Ok(()) => {
                shards.server.n_requests.increment();
                return Ok(upstream);
            }
            Err(failure) => failure,
        };
        let error = match failure {
            Failure::Connection => ProxyError::NoResponse,
            Failure::Proxy(error) => error,
        };
        tracing::debug!(backend = %backend.name, server = %server.name, %error, "no response");
        let is_again_possible =
            front.is_whole() && upstream.n_read() == 0 && (is_idempotent || upstream.n_written() == 0);
        if matches!(error, ProxyError::NoResponse) && is_again_possible {
            front.rewind();
            if stale == Stale::No {
                shards.each(|s| s.n_response_errors.increment());
            }
            return Err(Failed::Unsent { stale, error });
        }
        match error {
            ProxyError::BadResponse(bad) => shards.each(|s| s.bad_response(bad)),
            error if error.is_of_client() => {}
            _ => shards.each(|s| s.n_response_errors.increment()),
        }
        Err(Failed::Final(error))
    }

    async fn connect(
        &self,
        backend: &Backend,
        server: &Server,
        front: &impl Front,
        shards: Shards<'_>,
    ) -> Result<Box<Upstream>, ProxyError> {
        shards.each(|s| s.n_connects.increment());
        let limit = backend.labels.timeouts.connect.unwrap_or(self.local.timeouts.connect);
        self.wait.enter(Phase::Connect, limit);
        let version = backend.labels.proxy_protocol.send;
        let greeting = version.map_or_else(Vec::new, |v| proxy_protocol::header(v, &front.ends()));
        let began = Instant::now();
        let address = server.endpoint.address.ip();
        let tls = backend.labels.server_tls.as_ref();
        let tls = tls.map(|tls| self.local.with_tls(|table| table.to_server(tls, address)));
        let connected = match tls {
            // It would have to be believed, or spoken to in plain text.
            Some(None) => Err(ProxyError::Handshake),
            tls => {
                let connecting = self.local.upstreams.connect(backend, server, &greeting, tls.flatten());
                match self.wait.unless_expired(connecting).await {
                    Some(Ok(connection)) => Ok(connection),
                    Some(Err(error)) => {
                        tracing::debug!(backend = %backend.name, server = %server.name, %error, "no connection");
                        Err(match error {
                            ConnectError::Tcp(_) => ProxyError::Connect,
                            ConnectError::Tls(_) => ProxyError::Handshake,
                        })
                    }
                    None => Err(ProxyError::ConnectTimeout),
                }
            }
        };
        let took = began.elapsed();
        self.waited.set(self.waited.get() + took);
        match connected {
            Ok(_) => {
                server.endpoint.connect_succeeded();
                shards.each(|s| s.spent(Stage::Connect, took));
            }
            Err(_) => {
                server.endpoint.connect_failed();
                shards.each(|s| s.n_connect_errors.increment());
            }
        }
        connected
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

    /// Since the first of them.
    fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}
