//! The counters of one frontend, backend or server.
//!
//! Each worker adds to a [`Shard`] of its own (a plain load and store, no contention) and readers sum them. Only what
//! must be true over all workers at every moment, the current sessions, is one shared number. Rates and recent means
//! are made by [`Series::sample`], once a second, away from the request path.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;

use crate::http1::refusal::Refusal;
use crate::http1::response::BadResponse;
use crate::reason::RefusedConnection;

use super::histogram::{Histogram, N_BUCKETS, quantile};
use super::stages::{MeanStages, N_STAGES, Recent, Stage};

/// A counter that one worker writes.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn increment(&self) {
        self.add(1);
    }

    /// Of a count that goes up and down.
    pub fn decrement(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    fn raise_to(&self, n: u64) {
        if n > self.value() {
            self.0.store(n, Relaxed);
        }
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! shard {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One worker's part of a series.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Shard {
            $($(#[$doc])* pub $name: Count,)*
            responses: [Count; 6],
            refusals: ByReason<{ Refusal::COUNT }>,
            bad_responses: ByReason<{ BadResponse::COUNT }>,
            refused_connections: ByReason<{ RefusedConnection::COUNT }>,
            times: Histogram,
            /// By [`Stage`], in microseconds.
            stages: [Count; N_STAGES],
            longest: [Count; N_STAGES],
        }

        /// The sums over all workers.
        #[derive(Clone, Debug, Default)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
            /// By class: 1xx, 2xx, 3xx, 4xx, 5xx, other.
            pub responses: [u64; 6],
            /// Each by the index of its reason.
            pub refusals: [u64; Refusal::COUNT],
            pub bad_responses: [u64; BadResponse::COUNT],
            pub refused_connections: [u64; RefusedConnection::COUNT],
            pub mean_time: Option<Duration>,
            /// The longest of each [`Stage`].
            pub longest: [Duration; N_STAGES],
            /// Half of all response heads came within this time.
            pub p50: Option<Duration>,
            pub p90: Option<Duration>,
            pub p99: Option<Duration>,
            /// 99.9 % of all.
            pub p999: Option<Duration>,
        }

        impl Totals {
            fn of(shards: &[Shard]) -> Self {
                let mut totals = Self::default();
                let mut times = [0; N_BUCKETS];
                for shard in shards {
                    $(totals.$name += shard.$name.value();)*
                    for (sum, count) in totals.responses.iter_mut().zip(&shard.responses) {
                        *sum += count.value();
                    }
                    shard.refusals.add_to(&mut totals.refusals);
                    shard.bad_responses.add_to(&mut totals.bad_responses);
                    shard.refused_connections.add_to(&mut totals.refused_connections);
                    shard.times.add_to(&mut times);
                    for (longest, count) in totals.longest.iter_mut().zip(&shard.longest) {
                        *longest = Duration::from_micros(count.value()).max(*longest);
                    }
                }
                let n_times: u64 = times.iter().sum();
                totals.mean_time = totals.response_micros.checked_div(n_times).map(Duration::from_micros);
                totals.p50 = quantile(&times, 0.5);
                totals.p90 = quantile(&times, 0.9);
                totals.p99 = quantile(&times, 0.99);
                totals.p999 = quantile(&times, 0.999);
                totals
            }
        }
    };
}

shard! {
    /// Connections (frontends) or requests given to it (backends, servers).
    n_sessions,
    n_requests,
    /// From clients towards endpoints.
    bytes_in,
    bytes_out,
    /// Refused by a limit.
    n_denied,
    /// Connections whose TLS handshake failed or took too long.
    n_handshake_failures,
    /// Refused by a service's own rules.
    n_denied_requests,
    /// Requests that are malformed or did not arrive in time.
    n_request_errors,
    n_connect_errors,
    /// Missing, late or malformed responses.
    n_response_errors,
    n_retries,
    /// Requests that went to another server than the first one chosen for them.
    n_redispatches,
    /// Requests that the client gave up.
    n_client_aborts,
    /// Responses that the server broke off.
    n_server_aborts,
    n_connects,
    /// Requests on a connection that had served before.
    n_reuses,
    /// Answered by the balancer itself.
    n_intercepted,
    response_micros,
    /// Requests, or connections in mode tcp, whose stages are known.
    n_timed,
    /// Connections that are kept for the next request.
    n_idle,
    /// Requests that had to wait for room at an endpoint.
    n_queued,
    /// Requests that waited too long.
    n_queue_timeouts,
    /// Requests that found as many waiting as may.
    n_queue_refusals,
}

impl Totals {
    /// 50, 90, 99 and 99.9 %.
    pub fn quantiles(&self) -> [Option<Duration>; 4] {
        [self.p50, self.p90, self.p99, self.p999]
    }
}

/// As HAProxy classes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseClass(usize);

impl ResponseClass {
    pub fn of(status: StatusCode) -> Self {
        Self::of_number(status.as_u16())
    }

    pub fn of_number(status: u16) -> Self {
        let hundreds = usize::from(status / 100);
        Self(if (1..=5).contains(&hundreds) { hundreds - 1 } else { 5 })
    }
}

/// How often each of `N` reasons was the one.
#[derive(Debug)]
struct ByReason<const N: usize>([Count; N]);

impl<const N: usize> Default for ByReason<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Count::default()))
    }
}

impl<const N: usize> ByReason<N> {
    fn add_to(&self, sums: &mut [u64; N]) {
        for (sum, count) in sums.iter_mut().zip(&self.0) {
            *sum += count.value();
        }
    }
}

impl Shard {
    pub fn refused(&self, refusal: Refusal) {
        self.n_request_errors.increment();
        self.refusals.0[refusal.index()].increment();
    }

    pub fn refused_connection(&self, refused: RefusedConnection) {
        use RefusedConnection::{Http2Error, Http2Flood, ManyOfClient, ManyOfListener, ProxyHeader, Silent};
        match refused {
            ManyOfListener | ManyOfClient => self.n_denied.increment(),
            Silent | ProxyHeader | Http2Error | Http2Flood => self.n_request_errors.increment(),
        }
        self.refused_connections.0[refused.index()].increment();
    }

    pub fn bad_response(&self, bad: BadResponse) {
        self.n_response_errors.increment();
        self.bad_responses.0[bad.index()].increment();
    }

    pub fn responded(&self, class: ResponseClass) {
        self.responses[class.0].increment();
    }

    /// From the request's arrival to the head of its response; `waited` of it for room and for a connection.
    pub fn took(&self, time: Duration, waited: Duration) {
        let micros = time.as_micros() as u64;
        self.response_micros.add(micros);
        self.times.record(micros);
        self.n_timed.increment();
        self.spent(Stage::Response, time.saturating_sub(waited));
    }

    pub fn spent(&self, stage: Stage, time: Duration) {
        let micros = time.as_micros() as u64;
        self.stages[stage as usize].add(micros);
        self.longest[stage as usize].raise_to(micros);
    }
}

#[derive(Debug)]
pub struct Series {
    n_workers: usize,
    /// One for each worker. Made when the first of them counts something: most servers of a large cluster wait for
    /// their first request longer than for their end.
    shards: OnceLock<Box<[Shard]>>,
    n_current: AtomicU32,
    most_current: AtomicU32,
    n_waiting: AtomicU32,
    most_waiting: AtomicU32,
    rates: Rates,
    recent: Recent,
}

/// What the last sampling made of the counters.
#[derive(Debug, Default)]
struct Rates {
    n_sessions: AtomicU64,
    n_requests: AtomicU64,
    sessions_per_sec: AtomicU32,
    most_sessions_per_sec: AtomicU32,
    requests_per_sec: AtomicU32,
    most_requests_per_sec: AtomicU32,
    /// Since the start of sampling, plus one; 0: never.
    last_session_at: AtomicU64,
    now: AtomicU64,
}

impl Series {
    pub fn new(n_workers: usize) -> Arc<Self> {
        Arc::new(Self {
            n_workers: n_workers.max(1),
            shards: OnceLock::new(),
            n_current: AtomicU32::new(0),
            most_current: AtomicU32::new(0),
            n_waiting: AtomicU32::new(0),
            most_waiting: AtomicU32::new(0),
            rates: Rates::default(),
            recent: Recent::default(),
        })
    }

    /// The part that this worker, and nobody else, may add to.
    pub fn of_worker(&self, worker: usize) -> &Shard {
        let make = || (0..self.n_workers).map(|_| Shard::default()).collect();
        &self.shards.get_or_init(make)[worker]
    }

    /// Something was counted.
    pub fn is_used(&self) -> bool {
        self.shards.get().is_some()
    }

    /// Counts a session as current until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Session {
        self.saw_current(self.n_current.fetch_add(1, Relaxed) + 1);
        Session(Arc::clone(self))
    }

    /// Counts a request as waiting for room until the guard is dropped.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.most_waiting.fetch_max(self.n_waiting.fetch_add(1, Relaxed) + 1, Relaxed);
        Waiting(Arc::clone(self))
    }

    /// For a series whose current sessions somebody else counts (a server's are its endpoint's requests in flight).
    pub fn saw_current(&self, current: u32) {
        if current > self.most_current.load(Relaxed) {
            self.most_current.fetch_max(current, Relaxed);
        }
    }

    pub fn totals(&self) -> Totals {
        self.shards.get().map_or_else(Totals::default, |shards| Totals::of(shards))
    }

    pub fn n_current(&self) -> u32 {
        self.n_current.load(Relaxed)
    }

    pub fn most_current(&self) -> u32 {
        self.most_current.load(Relaxed)
    }

    pub fn n_waiting(&self) -> u32 {
        self.n_waiting.load(Relaxed)
    }

    pub fn most_waiting(&self) -> u32 {
        self.most_waiting.load(Relaxed)
    }

    /// Called once a second by one task; `second` counts the calls.
    pub fn sample(&self, second: u64) {
        let Some(shards) = self.shards.get() else { return };
        let sum = |count: fn(&Shard) -> &Count| shards.iter().map(|s| count(s).value()).sum::<u64>();
        let rate = |total: u64, before: &AtomicU64, rate: &AtomicU32, most: &AtomicU32| {
            let new = total.wrapping_sub(before.swap(total, Relaxed)) as u32;
            rate.store(new, Relaxed);
            most.fetch_max(new, Relaxed);
            new
        };
        let rates = &self.rates;
        let new = rate(
            sum(|s| &s.n_sessions),
            &rates.n_sessions,
            &rates.sessions_per_sec,
            &rates.most_sessions_per_sec,
        );
        rate(
            sum(|s| &s.n_requests),
            &rates.n_requests,
            &rates.requests_per_sec,
            &rates.most_requests_per_sec,
        );
        self.recent.sample(sum(|s| &s.n_timed), self.stages());
        rates.now.store(second, Relaxed);
        if new > 0 {
            rates.last_session_at.store(second + 1, Relaxed);
        }
    }

    fn stages(&self) -> [u64; N_STAGES] {
        let shards = self.shards.get().map_or(&[][..], |shards| shards);
        std::array::from_fn(|stage| shards.iter().map(|s| s.stages[stage].value()).sum())
    }

    /// Of the last thousand requests or so. `None`: there were none.
    pub fn mean_stages(&self) -> Option<MeanStages> {
        let n_timed = self.shards.get()?.iter().map(|s| s.n_timed.value()).sum();
        self.recent.means(n_timed, self.stages())
    }

    /// In the last full second, and the most there has been.
    pub fn sessions_per_sec(&self) -> (u32, u32) {
        (self.rates.sessions_per_sec.load(Relaxed), self.rates.most_sessions_per_sec.load(Relaxed))
    }

    pub fn requests_per_sec(&self) -> (u32, u32) {
        (self.rates.requests_per_sec.load(Relaxed), self.rates.most_requests_per_sec.load(Relaxed))
    }

    /// Seconds since the last session began; `None`: there was none.
    pub fn last_session_secs(&self) -> Option<u64> {
        let at = self.rates.last_session_at.load(Relaxed).checked_sub(1)?;
        Some(self.rates.now.load(Relaxed).saturating_sub(at))
    }
}

/// A session that goes on.
#[derive(Debug)]
pub struct Session(Arc<Series>);

impl Session {
    pub fn series(&self) -> &Arc<Series> {
        &self.0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.n_current.fetch_sub(1, Relaxed);
    }
}

/// A request that waits for room.
#[derive(Debug)]
pub struct Waiting(Arc<Series>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.n_waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_apart_and_readers_see_the_sum() {
        let series = Series::new(2);
        series.of_worker(0).n_requests.add(2);
        series.of_worker(1).n_requests.increment();
        for status in [200, 204, 503, 999] {
            series.of_worker(1).responded(ResponseClass::of(StatusCode::from_u16(status).unwrap()));
        }
        let totals = series.totals();
        assert_eq!((totals.n_requests, totals.responses), (3, [0, 2, 0, 0, 1, 1]));
        assert_eq!(totals.mean_time, None);

        let (first, second) = (series.begin(), series.begin());
        assert_eq!(series.n_current(), 2);
        drop((first, second));
        assert_eq!((series.n_current(), series.most_current()), (0, 2));
    }

    #[test]
    fn rates_are_of_the_last_second() {
        let series = Series::new(1);
        assert_eq!(series.last_session_secs(), None);
        series.of_worker(0).n_sessions.add(5);
        series.sample(10);
        series.sample(11);
        assert_eq!(series.sessions_per_sec(), (0, 5));
        assert_eq!(series.last_session_secs(), Some(1));
    }
}
