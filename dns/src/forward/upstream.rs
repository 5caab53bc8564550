//! One upstream resolver: how well it has done lately, and what it has done altogether.
//!
//! It asks nothing itself (`exchange` does) and never forbids anything: a bad upstream is only asked last.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exchange::AskError;

/// What is taken for the latency of an upstream that has not answered yet.
const UNKNOWN_LATENCY: Duration = Duration::from_millis(50);
/// What a failure adds to an upstream's latency when upstreams are ranked; each further one in a row doubles it.
const FAILURE_PENALTY: Duration = Duration::from_millis(400);
/// The penalty halves in this time, so that an upstream that has recovered is found out.
const PENALTY_HALF_LIFE: Duration = Duration::from_secs(5);
const MAX_DOUBLINGS: u32 = 5;

/// How long it is remembered whether an upstream takes EDNS; it may be another program by then.
const EDNS_MEMORY: Duration = Duration::from_secs(900);
/// One question that is lost, or takes long to resolve, says nothing about EDNS.
const N_TELLING_SILENCES: u32 = 3;

/// The upper bounds of the latency histogram, in milliseconds; the last place is for all above.
pub const LATENCY_BOUNDS_MS: [u64; 8] = [1, 5, 10, 50, 100, 500, 1000, 5000];

#[derive(Debug)]
pub(crate) struct Upstream {
    pub address: SocketAddr,
    started: Instant,
    /// Smoothed, in microseconds.
    latency_us: AtomicU32,
    /// In a row.
    n_recent_failures: AtomicU32,
    /// Milliseconds since `started`.
    failed_at_ms: AtomicU64,
    took_edns: Remembered,
    refused_edns: Remembered,
    /// In a row: only the question without EDNS was answered.
    n_edns_silences: AtomicU32,
    n_edns_fallbacks: AtomicU64,
    n_answered: AtomicU64,
    n_timeouts: AtomicU64,
    n_refusals: AtomicU64,
    n_errors: AtomicU64,
    latency_sum_us: AtomicU64,
    latencies: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
}

/// What an upstream has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UpstreamStatistics {
    pub address: String,
    pub n_answered: u64,
    pub n_timeouts: u64,
    /// SERVFAIL, REFUSED, FORMERR and NOTIMP.
    pub n_refusals: u64,
    /// It could not be reached, or did not speak DNS.
    pub n_errors: u64,
    /// Questions that were asked again without EDNS.
    pub n_edns_fallbacks: u64,
    /// Smoothed.
    pub latency_ms: f64,
    pub latency_sum_seconds: f64,
    /// Answers by latency, each with all faster ones; the bounds are [`LATENCY_BOUNDS_MS`], and none for the last.
    pub n_within: Vec<u64>,
}

impl Upstream {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            started: Instant::now(),
            latency_us: AtomicU32::new(UNKNOWN_LATENCY.as_micros() as u32),
            n_recent_failures: AtomicU32::default(),
            failed_at_ms: AtomicU64::default(),
            took_edns: Remembered::default(),
            refused_edns: Remembered::default(),
            n_edns_silences: AtomicU32::default(),
            n_edns_fallbacks: AtomicU64::default(),
            n_answered: AtomicU64::default(),
            n_timeouts: AtomicU64::default(),
            n_refusals: AtomicU64::default(),
            n_errors: AtomicU64::default(),
            latency_sum_us: AtomicU64::default(),
            latencies: Default::default(),
        }
    }

    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Ordering::Relaxed).into())
    }

    /// What it is ranked by, the least first: its latency, and a penalty for failures that fades.
    pub fn cost(&self) -> Duration {
        let n_failures = self.n_recent_failures.load(Ordering::Relaxed);
        if n_failures == 0 {
            return self.latency();
        }
        let penalty = FAILURE_PENALTY * 2_u32.pow((n_failures - 1).min(MAX_DOUBLINGS));
        let since = self.now_ms().saturating_sub(self.failed_at_ms.load(Ordering::Relaxed));
        let halvings = since as f64 / PENALTY_HALF_LIFE.as_millis() as f64;
        self.latency() + penalty.mul_f64(0.5_f64.powf(halvings))
    }

    pub fn answered(&self, latency: Duration) {
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        // As TCP smooths its round trips (RFC 6298): one eighth of the news.
        let old = self.latency_us.load(Ordering::Relaxed);
        let first = self.n_answered.fetch_add(1, Ordering::Relaxed) == 0;
        let new = if first { us } else { old - old / 8 + us / 8 };
        self.latency_us.store(new, Ordering::Relaxed);
        self.n_recent_failures.store(0, Ordering::Relaxed);
        self.latency_sum_us.fetch_add(us.into(), Ordering::Relaxed);
        let ms = u64::from(us).div_ceil(1000);
        let place = LATENCY_BOUNDS_MS.iter().position(|bound| ms <= *bound);
        self.latencies[place.unwrap_or(LATENCY_BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.n_refusals.fetch_add(1, Ordering::Relaxed);
        self.failed();
    }

    pub fn gave_no_answer(&self, error: &AskError) {
        let counter = if matches!(error, AskError::Elapsed(_)) { &self.n_timeouts } else { &self.n_errors };
        counter.fetch_add(1, Ordering::Relaxed);
        self.failed();
    }

    fn failed(&self) {
        self.n_recent_failures.fetch_add(1, Ordering::Relaxed);
        self.failed_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub fn may_take_edns(&self) -> bool {
        !self.refused_edns.is_fresh(self.now_ms())
    }

    pub fn is_known_to_take_edns(&self) -> bool {
        self.took_edns.is_fresh(self.now_ms())
    }

    pub fn took_edns(&self) {
        self.took_edns.remember(self.now_ms());
        self.n_edns_silences.store(0, Ordering::Relaxed);
    }

    pub fn asked_again_without_edns(&self) {
        self.n_edns_fallbacks.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused_edns(&self) {
        self.refused_edns.remember(self.now_ms());
    }

    pub fn kept_silent_about_edns(&self) {
        if self.n_edns_silences.fetch_add(1, Ordering::Relaxed) + 1 >= N_TELLING_SILENCES {
            self.n_edns_silences.store(0, Ordering::Relaxed);
            self.refused_edns();
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub fn statistics(&self) -> UpstreamStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut n_within = 0;
        UpstreamStatistics {
            address: self.address.to_string(),
            n_answered: read(&self.n_answered),
            n_timeouts: read(&self.n_timeouts),
            n_refusals: read(&self.n_refusals),
            n_errors: read(&self.n_errors),
            n_edns_fallbacks: read(&self.n_edns_fallbacks),
            latency_ms: self.latency().as_secs_f64() * 1e3,
            latency_sum_seconds: read(&self.latency_sum_us) as f64 / 1e6,
            n_within: self
                .latencies
                .iter()
                .map(|n| {
                    n_within += read(n);
                    n_within
                })
                .collect(),
        }
    }
}

/// Something that an upstream did, until [`EDNS_MEMORY`] later: in milliseconds since it is known, 0 for never.
#[derive(Debug, Default)]
struct Remembered(AtomicU64);

impl Remembered {
    fn remember(&self, now_ms: u64) {
        self.0.store(now_ms.max(1), Ordering::Relaxed);
    }

    fn is_fresh(&self, now_ms: u64) -> bool {
        let at_ms = self.0.load(Ordering::Relaxed);
        at_ms > 0 && now_ms.saturating_sub(at_ms) < EDNS_MEMORY.as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_cost_until_they_are_answered_for() {
        let upstream = Upstream::new(([127, 0, 0, 1], 53).into());
        assert_eq!(upstream.cost(), UNKNOWN_LATENCY);
        upstream.answered(Duration::from_millis(8));
        assert_eq!(upstream.cost(), Duration::from_millis(8));
        upstream.refused();
        let once = upstream.cost();
        upstream.refused();
        assert!(once > Duration::from_millis(300) && upstream.cost() > once * 3 / 2);
        upstream.answered(Duration::from_millis(8));
        assert_eq!(upstream.cost(), Duration::from_millis(8));
        let statistics = upstream.statistics();
        assert_eq!((statistics.n_answered, statistics.n_refusals), (2, 2));
        assert_eq!(statistics.n_within, [0, 0, 2, 2, 2, 2, 2, 2, 2]);
    }
    #[test]
    fn edns_is_given_up_for_a_while_and_for_a_reason() {
        let upstream = Upstream::new(([127, 0, 0, 1], 53).into());
        for _ in 1..N_TELLING_SILENCES {
            upstream.kept_silent_about_edns();
        }
        assert!(upstream.may_take_edns() && !upstream.is_known_to_take_edns());
        upstream.took_edns();
        upstream.kept_silent_about_edns();
        assert!(upstream.may_take_edns() && upstream.is_known_to_take_edns());
        for _ in 1..N_TELLING_SILENCES {
            upstream.kept_silent_about_edns();
        }
        assert!(!upstream.may_take_edns());
        let forgotten = EDNS_MEMORY.as_millis() as u64 + 1;
        assert!(upstream.refused_edns.is_fresh(forgotten - 1));
        assert!(!upstream.refused_edns.is_fresh(upstream.now_ms() + forgotten));
    }
}
