//! How long requests spent waiting, connecting and being answered: means over the latest of them, as HAProxy has them.
//!
//! Workers only add up; the latest are told from the others by [`Recent::sample`], once a second.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// HAProxy's averages are over as many.
const N_RECENT: u64 = 1024;

pub(super) const N_STAGES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For room at an endpoint.
    Queue,
    /// To an endpoint; a request on a connection that was there spends nothing.
    Connect,
    /// From then to the head of the response.
    Response,
    /// From a request's arrival to the end of its response; in mode tcp, of a connection.
    Total,
}

/// By [`Stage`].
pub type MeanStages = [Duration; N_STAGES];

/// One task samples; whoever shows statistics on its thread reads.
#[derive(Debug, Default)]
pub(super) struct Recent {
    seen: Sums,
    /// Of those seen, the latest: never many more than [`N_RECENT`].
    latest: Sums,
}

#[derive(Debug, Default)]
struct Sums {
    n: AtomicU64,
    micros: [AtomicU64; N_STAGES],
}

impl Recent {
    /// Takes in what has come since the last time, and forgets as many of the oldest, as if all of them were equal.
    pub(super) fn sample(&self, n: u64, micros: [u64; N_STAGES]) {
        let (n_latest, sums) = self.with_news(n, &micros);
        let keep = |sum: u64| match n_latest > N_RECENT {
            true => (u128::from(sum) * u128::from(N_RECENT) / u128::from(n_latest)) as u64,
            false => sum,
        };
        self.latest.n.store(n_latest.min(N_RECENT), Relaxed);
        self.seen.n.store(n, Relaxed);
        for stage in 0..N_STAGES {
            self.latest.micros[stage].store(keep(sums[stage]), Relaxed);
            self.seen.micros[stage].store(micros[stage], Relaxed);
        }
    }

    pub(super) fn means(&self, n: u64, micros: [u64; N_STAGES]) -> Option<MeanStages> {
        let (n, sums) = self.with_news(n, &micros);
        (n > 0).then(|| sums.map(|sum| Duration::from_micros(sum / n)))
    }

    fn with_news(&self, n: u64, micros: &[u64; N_STAGES]) -> (u64, [u64; N_STAGES]) {
        let news = |total: u64, seen: &AtomicU64| total.wrapping_sub(seen.load(Relaxed));
        let n = self.latest.n.load(Relaxed) + news(n, &self.seen.n);
        let sum = |stage: usize| {
            self.latest.micros[stage].load(Relaxed) + news(micros[stage], &self.seen.micros[stage])
        };
        (n, std::array::from_fn(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_requests_count() {
        let recent = Recent::default();
        let micros = |response: u64| [0, 0, response, 0];
        let mean =
            |n, sum| recent.means(n, micros(sum)).map(|means| means[Stage::Response as usize].as_micros());
        assert_eq!(mean(0, 0), None);
        assert_eq!(mean(2, 300), Some(150), "those that no sample has seen count");
        recent.sample(1024, micros(1024 * 100));
        assert_eq!(mean(1024, 1024 * 100), Some(100));
        // As many again that took ten times as long: half of what is remembered.
        recent.sample(2048, micros(1024 * 100 + 1024 * 1000));
        assert_eq!(mean(2048, 1024 * 1100), Some(550));
        for more in 1..=10 {
            recent.sample(2048 + 1024 * more, micros(1024 * 1100 + 1024 * 1000 * more));
        }
        let old = mean(2048 + 10240, 1024 * 11100).unwrap();
        assert!((995..=1000).contains(&old), "{old}: the others are as good as forgotten");
    }
}
