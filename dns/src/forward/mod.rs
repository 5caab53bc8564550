//! Resolves names of other zones through upstream resolvers, so that Waymark can be a node's only resolver.
//!
//! Reading order: `question` (what is asked), `routes` and `system` (who is asked), `race` and `exchange` (how),
//! `stored` and `cache` (what is kept).
//!
//! It never sees a name of a served zone: the handler answers those itself.

mod cache;
mod exchange;
mod question;
mod race;
mod routes;
mod stored;
mod system;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_server::proto::op::{Message, ResponseCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::cache::{Answer, Cache, Flight, State, Unresolved};
pub(crate) use self::question::Foreign;
use self::question::{Key, Spelled};
use self::race::{Timeouts, is_refusal, race};
use self::routes::Routes;
use self::stored::{Age, Stored};
use self::upstream::Upstream;
pub use self::upstream::{LATENCY_BOUNDS_MS, UpstreamStatistics};
use crate::config::Config;
use crate::stats::{Counters, ForwardOutcome, OTHER_ZONE, Source};

/// How long a client waits while there is an answer that is out of date (RFC 8767 section 5).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// So many clients may wait for each question in flight, on average.
const N_WAITING_PER_FLIGHT: usize = 8;
/// Beyond the upstreams' own time: who waits learns the outcome from whoever asks.
const GRACE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Forwarder {
    config: Config,
    /// Where this server listens.
    own: Box<[SocketAddr]>,
    routes: ArcSwap<Routes>,
    cache: Cache,
    in_flight: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    n_loops: AtomicU64,
}

/// A question whose answer is not known yet.
#[derive(Debug)]
pub(crate) struct Pending {
    flight: Flight,
    stale: Option<Arc<Stored>>,
    _waiting: OwnedSemaphorePermit,
}

/// What of a name of another zone is known without asking anybody.
#[derive(Debug)]
pub(crate) struct Prospect {
    pub upstreams: Vec<SocketAddr>,
    pub cached: bool,
}

impl Forwarder {
    pub fn new(config: &Config, own: &[SocketAddr]) -> Self {
        let forwarder = Self {
            config: config.clone(),
            own: own.into(),
            routes: ArcSwap::default(),
            cache: Cache::new(config.cache_bytes, config.serve_stale),
            in_flight: Arc::new(Semaphore::new(config.n_forwards_max)),
            waiting: Arc::new(Semaphore::new(config.n_forwards_max * N_WAITING_PER_FLIGHT)),
            n_loops: AtomicU64::default(),
        };
        forwarder.refresh();
        forwarder
    }

    /// Reads again which resolvers this host uses, unless it was told.
    pub fn refresh(&self) {
        let others = self.config.upstreams.clone().unwrap_or_else(system::resolvers);
        let before = self.routes.load();
        self.routes.store(Arc::new(Routes::new(&self.config, &others, &self.own, &before)));
    }

    /// Everybody who may be asked.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.routes.load().upstreams().iter().map(|upstream| upstream.address).collect()
    }

    pub fn statistics(&self) -> Vec<UpstreamStatistics> {
        self.routes.load().upstreams().iter().map(|upstream| upstream.statistics()).collect()
    }

    pub fn n_loops(&self) -> u64 {
        self.n_loops.load(Ordering::Relaxed)
    }

    /// Answers in the cache, and the bytes that they take.
    pub fn cache_size(&self) -> (usize, usize) {
        self.cache.size()
    }

    pub fn prospect(&self, foreign: &Foreign) -> Prospect {
        let upstreams = self.routes.load().of(&foreign.name).iter().map(|u| u.address).collect();
        let known = self.cache.look_up(&foreign.key());
        Prospect { upstreams, cached: known.answer.is_some_and(|answer| answer.state != State::Stale) }
    }

    /// Appends an answer to `out` if there is one without asking anybody: from the cache, or that it is refused.
    /// Otherwise begins to ask. Never waits.
    ///
    /// To be called on a tokio runtime.
    pub fn begin(
        self: &Arc<Self>,
        foreign: &Foreign,
        counters: &Counters,
        out: &mut Vec<u8>,
    ) -> Option<Pending> {
        let upstreams = Arc::clone(self.routes.load().of(&foreign.name));
        if upstreams.is_empty() {
            fail(foreign, ResponseCode::Refused, counters, out);
            return None;
        }
        let key = foreign.key();
        let known = self.cache.look_up(&key);
        let stale = match known.answer {
            Some(answer) if answer.state != State::Stale => {
                if answer.state == State::Ending && known.flight.is_none() {
                    counters.forwarded(ForwardOutcome::Prefetched);
                    // Without room for it, the answer just ends.
                    let _ = self.take_off(key, upstreams);
                }
                give(&answer.stored, foreign, answer.age, Source::Cache, counters, out);
                return None;
            }
            other => other,
        };
        let flight = match known.flight {
            Some(flight) => {
                if flight.spelled.is_certainly(&foreign.question) {
                    self.found_loop(foreign, &upstreams);
                    counters.forwarded(ForwardOutcome::Looped);
                    fail(foreign, ResponseCode::ServFail, counters, out);
                    return None;
                }
                counters.forwarded(ForwardOutcome::Merged);
                Some(flight)
            }
            None => self.take_off(key, upstreams),
        };
        let waiting = Arc::clone(&self.waiting).try_acquire_owned().ok();
        let (Some(flight), Some(waiting)) = (flight, waiting) else {
            counters.forwarded(ForwardOutcome::Full);
            match stale {
                Some(Answer { stored, age, .. }) => give(&stored, foreign, age, Source::Stale, counters, out),
                None => fail(foreign, ResponseCode::Refused, counters, out),
            }
            return None;
        };
        Some(Pending { flight, stale: stale.map(|answer| answer.stored), _waiting: waiting })
    }

    /// Waits for what `begin` began and appends the answer, in any case: SERVFAIL when nobody knows.
    pub async fn finish(&self, pending: Pending, foreign: &Foreign, counters: &Counters, out: &mut Vec<u8>) {
        let Pending { mut flight, stale, _waiting } = pending;
        let patience = match stale {
            Some(_) => STALE_PATIENCE,
            None => self.config.forward_timeout + GRACE,
        };
        let resolved = match timeout(patience, flight.resolution.wait_for(Option::is_some)).await {
            Ok(Ok(resolution)) => resolution.clone().and_then(Result::ok),
            // Whoever asked has stopped, or takes too long.
            Ok(Err(_)) | Err(_) => None,
        };
        match (resolved, stale) {
            (Some(stored), None) => {
                counters.forwarded(ForwardOutcome::Answered);
                give(&stored, foreign, Age::Seconds(0), Source::Upstream, counters, out);
            }
            (Some(stored), Some(_)) if !is_refusal(stored.code) => {
                counters.forwarded(ForwardOutcome::Answered);
                give(&stored, foreign, Age::Seconds(0), Source::Upstream, counters, out);
            }
            (_, Some(stored)) => {
                counters.forwarded(ForwardOutcome::Failed);
                give(&stored, foreign, Age::Stale(cache::STALE_TTL), Source::Stale, counters, out);
            }
            (None, None) => {
                counters.forwarded(ForwardOutcome::Failed);
                fail(foreign, ResponseCode::ServFail, counters, out);
            }
        }
    }

    /// Both at once.
    pub async fn answer(self: &Arc<Self>, foreign: &Foreign, counters: &Counters, out: &mut Vec<u8>) {
        if let Some(pending) = self.begin(foreign, counters, out) {
            self.finish(pending, foreign, counters, out).await;
        }
    }

    /// Begins to ask, in a task of its own: a client that goes away takes nothing from others who wait. `None`: too
    /// much is in flight.
    fn take_off(self: &Arc<Self>, key: Key, upstreams: Arc<[Arc<Upstream>]>) -> Option<Flight> {
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok()?;
        let question = key.clone();
        let spelled = Arc::new(Spelled::new(key, self.config.udp_payload_bytes));
        let (flight, pilot) = match self.cache.take_off(Arc::clone(&spelled)) {
            Ok(both) => both,
            Err(flight) => return Some(flight),
        };
        let timeouts = Timeouts { pair: self.config.upstream_timeout, total: self.config.forward_timeout };
        let forwarder = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            let message = race(&upstreams, spelled, timeouts).await;
            let stored = message.and_then(Stored::new).filter(|stored| stored.is_about(question.question()));
            let stored = stored.map(Arc::new).ok_or(Unresolved);
            forwarder.cache.land(pilot, stored);
        });
        Some(flight)
    }

    /// Our own question came back: an upstream asks us in turn.
    fn found_loop(&self, foreign: &Foreign, upstreams: &[Arc<Upstream>]) {
        let n = self.n_loops.fetch_add(1, Ordering::Relaxed);
        // Once says it; a loop brings one with every query.
        if n.is_power_of_two() || n == 0 {
            let addresses: Vec<String> = upstreams.iter().map(|u| u.address.to_string()).collect();
            tracing::warn!(
                upstreams = addresses.join(", "),
                name_bytes = foreign.name.len(),
                "an upstream resolver forwards to this server: its queries are failed; name other upstreams"
            );
        }
    }
}

/// Appends what a client gets when an upstream answers so. False: the answer cannot be used.
pub(crate) fn relay(answer: Message, foreign: &Foreign, out: &mut Vec<u8>) -> bool {
    let stored = Stored::new(answer).filter(|stored| stored.is_about(foreign.key().question()));
    if let Some(stored) = &stored {
        stored.write(foreign, Age::Seconds(0), out);
    }
    stored.is_some()
}

fn give(
    stored: &Stored,
    foreign: &Foreign,
    age: Age,
    source: Source,
    counters: &Counters,
    out: &mut Vec<u8>,
) {
    stored.write(foreign, age, out);
    counters.answered(stored.code, OTHER_ZONE, source);
}

fn fail(foreign: &Foreign, code: ResponseCode, counters: &Counters, out: &mut Vec<u8>) {
    foreign.reply(out).finish(code);
    counters.answered(code, OTHER_ZONE, Source::None);
}
