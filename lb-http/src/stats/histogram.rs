//! A histogram of times, small enough to have one per backend and worker.
//!
//! Four buckets an octave: a quantile is at most 19 % too high, never too low.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Times below 16 µs are one bucket; the last bucket (about 67 s) holds everything above.
const FIRST_OCTAVE: u32 = 4;
const N_OCTAVES: usize = 22;
const PER_OCTAVE: usize = 4;
pub(super) const N_BUCKETS: usize = N_OCTAVES * PER_OCTAVE + 1;

/// Written by one worker, read by anyone.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU32; N_BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; N_BUCKETS])
    }
}

impl Histogram {
    pub(super) fn record(&self, micros: u64) {
        let bucket = &self.0[bucket(micros)];
        bucket.store(bucket.load(Relaxed).wrapping_add(1), Relaxed);
    }

    pub(super) fn add_to(&self, sums: &mut [u64; N_BUCKETS]) {
        for (sum, bucket) in sums.iter_mut().zip(&self.0) {
            *sum += u64::from(bucket.load(Relaxed));
        }
    }
}

fn bucket(micros: u64) -> usize {
    let octave = micros.max(1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let quarter = (micros >> (octave - 2)) as usize & (PER_OCTAVE - 1);
    ((octave - FIRST_OCTAVE) as usize * PER_OCTAVE + quarter + 1).min(N_BUCKETS - 1)
}

/// The smallest time that is above everything in the bucket.
fn upper_micros(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else { return 1 << FIRST_OCTAVE };
    let (octave, quarter) = (above / PER_OCTAVE, above % PER_OCTAVE);
    (PER_OCTAVE + quarter + 1) as u64 * (1 << FIRST_OCTAVE) / PER_OCTAVE as u64 * (1 << octave)
}

/// The time that `share` (0 to 1) of all were below. `None`: nothing was recorded.
pub(super) fn quantile(sums: &[u64; N_BUCKETS], share: f64) -> Option<Duration> {
    let total: u64 = sums.iter().sum();
    let wanted = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    for (bucket, sum) in sums.iter().enumerate() {
        seen += sum;
        if seen >= wanted {
            return Some(Duration::from_micros(upper_micros(bucket)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_a_bucket_that_ends_above_it_and_near() {
        for micros in (0..2000).chain([10_000, 123_456, 1_000_000, 59_000_000]) {
            let upper = upper_micros(bucket(micros));
            assert!(upper > micros, "{micros}");
            assert!(upper <= 16.max(micros + micros / 4 + 1), "{micros} in a bucket up to {upper}");
        }
        assert_eq!(bucket(u64::MAX), N_BUCKETS - 1);
    }

    #[test]
    fn quantiles() {
        let histogram = Histogram::default();
        let mut sums = [0; N_BUCKETS];
        assert_eq!(quantile(&sums, 0.5), None);
        for micros in 1..=1000 {
            histogram.record(micros);
        }
        histogram.add_to(&mut sums);
        let (half, most) = (quantile(&sums, 0.5).unwrap(), quantile(&sums, 0.99).unwrap());
        assert!((500..=640).contains(&half.as_micros()), "{half:?}");
        assert!((990..=1280).contains(&most.as_micros()), "{most:?}");
    }
}
