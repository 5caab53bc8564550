//! `/metrics` as JSON and for Prometheus: Marathon's names for what Marathon counts.
//!
//! Not here: metrics of the data planes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use crate::scheduler::core::Core;
use crate::scheduler::core::statistics::TaskCounts;

/// The format that Marathon has had since 1.7.
const FORMAT_VERSION: &str = "3.0.0";

#[derive(Debug)]
pub struct Metrics {
    gauges: BTreeMap<&'static str, f64>,
    counters: BTreeMap<&'static str, u64>,
}

impl Metrics {
    pub fn of(core: &Core, started: Instant) -> Self {
        let counts = TaskCounts::of(core.run_specs().flat_map(|state| state.instances.values()));
        let n_waiting: usize = core.run_specs().map(|state| state.scheduled.len()).sum();
        let seconds = started.elapsed().as_secs_f64();
        let gauges = [
            ("marathon.apps.active.gauge", core.live_apps().count() as f64),
            ("marathon.pods.active.gauge", core.live_pods().count() as f64),
            ("marathon.groups.active.gauge", core.groups.len().max(1) as f64),
            ("marathon.deployments.active.gauge", core.deployments.len() as f64),
            ("marathon.instances.running.gauge", counts.running.into()),
            ("marathon.instances.staged.gauge", counts.staged.into()),
            ("marathon.instances.healthy.gauge", counts.healthy.into()),
            ("marathon.instances.unhealthy.gauge", counts.unhealthy.into()),
            ("marathon.instances.inflight-launches.gauge", n_waiting as f64),
            ("marathon.http.event-streams.active.gauge", core.hub.n_subscribers() as f64),
            ("marathon.leadership.duration.gauge.seconds", seconds),
            ("marathon.uptime.gauge.seconds", seconds),
        ];
        let counters = [
            ("marathon.http.event-streams.slow-closed.counter", core.hub.n_slow_closed()),
            ("marathon.http.event-streams.events.counter", core.hub.n_published()),
        ];
        Self { gauges: gauges.into(), counters: counters.into() }
    }

    pub fn json(&self) -> Value {
        let gauges: BTreeMap<_, _> =
            self.gauges.iter().map(|(name, value)| (name, json!({"value": value}))).collect();
        let counters: BTreeMap<_, _> =
            self.counters.iter().map(|(name, count)| (name, json!({"count": count}))).collect();
        json!({"version": FORMAT_VERSION, "gauges": gauges, "counters": counters, "histograms": {},
            "meters": {}, "timers": {}})
    }

    /// Prometheus' text format; dots and dashes become `_`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let values = self.gauges.iter().map(|(name, value)| (name, "gauge", value.to_string()));
        let counts = self.counters.iter().map(|(name, count)| (name, "counter", count.to_string()));
        for (name, kind, value) in values.chain(counts) {
            let name = name.replace(['.', '-'], "_");
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}
