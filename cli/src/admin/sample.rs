//! Counters of the endpoints, read once a second, and the rates between two readings.
//!
//! The planes only count; what is per second is known here alone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::{InstanceId, VipKey};
use tokio::time::Instant;

use super::plane::Which;
use super::{Admin, EndpointSample};

const INTERVAL: Duration = Duration::from_secs(1);
/// Share of the newest reading in the smoothed rate: steady to read, and there within a few seconds.
const SMOOTHING: f64 = 0.5;

type Key = (InstanceId, SocketAddr, Option<VipKey>);

#[derive(Debug)]
struct Reading {
    at: Instant,
    taken: Taken,
    /// Of endpoints that were used.
    per_sec: HashMap<Key, (u64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Never,
    Before,
}

/// The last reading.
#[derive(Debug)]
pub struct Samples(ArcSwap<Reading>);

impl Default for Samples {
    fn default() -> Self {
        let (at, taken) = (Instant::now(), Taken::Never);
        Self(ArcSwap::from_pointee(Reading { at, taken, per_sec: HashMap::new() }))
    }
}

impl Samples {
    pub fn per_sec(&self, sample: &EndpointSample) -> f64 {
        let rate = self.0.load().per_sec.get(&key(sample)).map_or(0.0, |(_, rate)| *rate);
        // Below what one event in 100 s makes, it is history.
        if rate < 0.01 { 0.0 } else { rate }
    }

    fn take(&self, samples: impl Iterator<Item = EndpointSample>, now: Instant) {
        let last = self.0.load();
        let elapsed = now.duration_since(last.at).as_secs_f64();
        if elapsed == 0.0 {
            return;
        }
        let rate = |sample: EndpointSample| {
            let key = key(&sample);
            // Who was not used at the last reading had counted nothing.
            let unknown = if last.taken == Taken::Never { sample.n_total } else { 0 };
            let (n_before, rate_before) = last.per_sec.get(&key).copied().unwrap_or((unknown, 0.0));
            let rate = sample.n_total.saturating_sub(n_before) as f64 / elapsed;
            (key, (sample.n_total, SMOOTHING * rate + (1.0 - SMOOTHING) * rate_before))
        };
        let per_sec = samples.map(rate).collect();
        self.0.store(Arc::new(Reading { at: now, taken: Taken::Before, per_sec }));
    }
}

fn key(sample: &EndpointSample) -> Key {
    (sample.instance.clone(), sample.address, sample.vip.clone())
}

pub async fn keep_sampling(admin: Arc<Admin>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = admin.sources.closing.cancelled() => return,
        }
        let mut samples = Vec::new();
        for (_, plane) in &admin.sources.planes {
            plane.endpoints(Which::Used, &mut |sample| samples.push(sample));
        }
        admin.samples.take(samples.into_iter(), Instant::now());
        super::events::publish_page(&admin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(n_total: u64) -> EndpointSample {
        EndpointSample {
            instance: InstanceId::new("i"),
            address: "127.0.0.1:1".parse().unwrap(),
            vip: None,
            n_in_flight: 0,
            n_total,
            n_failures: 0,
            bytes_in: 0,
            bytes_out: 0,
            latency: None,
            ejected: false,
        }
    }

    #[test]
    fn rates_come_from_two_readings_and_fade() {
        let samples = Samples::default();
        let start = samples.0.load().at;
        let at = |seconds| start + Duration::from_secs(seconds);
        samples.take([sample(1000)].into_iter(), at(1));
        assert_eq!(samples.per_sec(&sample(0)), 0.0, "what was counted before the first look has no rate");
        samples.take([sample(1100)].into_iter(), at(2));
        assert_eq!(samples.per_sec(&sample(0)), 50.0);
        samples.take([sample(1200)].into_iter(), at(3));
        assert_eq!(samples.per_sec(&sample(0)), 75.0);
        for second in 4..30 {
            samples.take([sample(1200)].into_iter(), at(second));
        }
        assert_eq!(samples.per_sec(&sample(0)), 0.0);
    }
}
