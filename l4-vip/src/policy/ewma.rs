//! Peak EWMA: a moving average of connect times that believes bad news at once and good news slowly.
//!
//! Finagle's rule. It reads no clock: moments are durations since some common beginning.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What was observed this long ago counts a third (1/e) of what is observed now.
const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint that was never measured but has something in flight costs, per connection in flight: more than
/// anything measured, so that a new endpoint gets one connection to be measured by, then waits for the result.
const UNMEASURED_NANOS: f64 = 1e15;

/// Two relaxed atomics; writers that meet lose one observation.
#[derive(Debug, Default)]
pub(crate) struct PeakEwma {
    /// Nanoseconds, as the bits of an `f64`. 0: never measured.
    nanos: AtomicU64,
    /// When it was observed last, in nanoseconds.
    at_nanos: AtomicU64,
}

impl PeakEwma {
    pub(crate) fn observe(&self, took: Duration, now: Duration) {
        let (average, at) = self.load();
        let took = (took.as_nanos() as f64).max(1.0);
        let next = if took > average {
            took
        } else {
            let kept = kept(now.saturating_sub(at));
            average * kept + took * (1.0 - kept)
        };
        self.nanos.store(next.to_bits(), Relaxed);
        self.at_nanos.store(now.as_nanos() as u64, Relaxed);
    }

    /// What one more connection costs, for comparison with other endpoints. An average that nobody refreshed decays,
    /// so that a slow endpoint is tried again.
    pub(crate) fn cost(&self, n_in_flight: u32, now: Duration) -> f64 {
        let (average, at) = self.load();
        let n_in_flight = f64::from(n_in_flight);
        if average == 0.0 {
            return UNMEASURED_NANOS * n_in_flight;
        }
        average * kept(now.saturating_sub(at)) * (n_in_flight + 1.0)
    }

    /// As of the last observation.
    pub(crate) fn average(&self) -> Option<Duration> {
        let (average, _) = self.load();
        (average > 0.0).then(|| Duration::from_nanos(average as u64))
    }

    fn load(&self) -> (f64, Duration) {
        (f64::from_bits(self.nanos.load(Relaxed)), Duration::from_nanos(self.at_nanos.load(Relaxed)))
    }
}

fn kept(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn bad_news_counts_at_once_and_good_news_slowly() {
        let ewma = PeakEwma::default();
        ewma.observe(MS, seconds(1));
        assert_eq!(ewma.average(), Some(MS));
        ewma.observe(100 * MS, seconds(1));
        assert_eq!(ewma.average(), Some(100 * MS));
        ewma.observe(MS, seconds(2));
        let after_a_second = ewma.average().unwrap();
        assert!(after_a_second > 85 * MS && after_a_second < 95 * MS, "{after_a_second:?}");
        for n in 3..60 {
            ewma.observe(MS, seconds(n));
        }
        assert!(ewma.average().unwrap() < 3 * MS);
    }

    #[test]
    fn cost_grows_with_what_is_in_flight_and_fades() {
        let ewma = PeakEwma::default();
        ewma.observe(10 * MS, seconds(1));
        assert!(ewma.cost(3, seconds(1)) > ewma.cost(1, seconds(1)));
        assert!((ewma.cost(1, seconds(1)) / ewma.cost(0, seconds(1)) - 2.0).abs() < 1e-9);
        assert!(ewma.cost(0, seconds(31)) < ewma.cost(0, seconds(1)) / 15.0);
    }

    #[test]
    fn a_new_endpoint_gets_one_connection_to_be_measured_by() {
        let (new, known) = (PeakEwma::default(), PeakEwma::default());
        known.observe(MS, seconds(1));
        assert!(new.cost(0, seconds(1)) < known.cost(0, seconds(1)));
        assert!(new.cost(1, seconds(1)) > known.cost(100, seconds(1)));
    }

    /// Two endpoints, one slowing down: picks by cost leave it within a few connections and come back in time.
    #[test]
    fn picks_leave_a_slow_endpoint_and_come_back() {
        let endpoints = [PeakEwma::default(), PeakEwma::default()];
        let mut picked = [[0; 2]; 3];
        for step in 0_u32..30_000 {
            let now = step * 10 * MS;
            let phase = (step / 10_000) as usize;
            let better = usize::from(endpoints[1].cost(0, now) < endpoints[0].cost(0, now));
            let slow = phase == 1 && better == 0;
            endpoints[better].observe(if slow { 200 * MS } else { MS + step % 3 * MS / 10 }, now);
            picked[phase][better] += 1;
        }
        assert!(picked[0].iter().all(|n| *n > 200), "{picked:?}");
        assert!(picked[1][0] < 20, "{picked:?}");
        assert!(picked[2].iter().all(|n| *n > 200), "{picked:?}");
    }
}
