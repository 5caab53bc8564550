//! `/metrics`: Prometheus text. HAProxy's names come from the HTTP plane, `waymark_…` from here and the other planes.

use std::fmt::Write;

use event_watcher::publish::Freshness;

use super::Admin;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn render(admin: &Admin) -> String {
    let status = admin.status();
    let mut text = String::with_capacity(4096);
    let mut gauge = |name: &str, help: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    };
    let (live, age) = match status.freshness {
        Freshness::Live => (1, 0.0),
        Freshness::Stale { since, .. } => (0, since.elapsed().as_secs_f64()),
        Freshness::Unsynced { .. } => (0, admin.started.elapsed().as_secs_f64()),
    };
    gauge("waymark_generation", "Number of the published snapshot.", status.generation.to_string());
    gauge("waymark_sync_live", "1 while the scheduler's event stream is live.", live.to_string());
    gauge(
        "waymark_sync_age_seconds",
        "Time since the last sign of life of the scheduler, 0 while live.",
        age.to_string(),
    );
    gauge(
        "waymark_ready",
        "1 once every plane has applied the first sync.",
        u8::from(status.ready).to_string(),
    );
    gauge("waymark_apps", "Apps in the snapshot.", status.n_apps.to_string());
    gauge("waymark_instances", "Instances in the snapshot.", status.n_instances.to_string());
    gauge("waymark_vips", "Virtual IPs in the snapshot.", status.n_vips.to_string());
    gauge("waymark_problems", "Problems with input.", status.problems.len().to_string());
    gauge("waymark_uptime_seconds", "Time since the start.", status.uptime_seconds.to_string());
    text.push_str("# HELP waymark_applied_generation Generation that the plane has applied.\n");
    text.push_str("# TYPE waymark_applied_generation gauge\n");
    for plane in &status.planes {
        let name = plane.name.as_str();
        let _ = writeln!(text, "waymark_applied_generation{{plane=\"{name}\"}} {}", plane.applied);
    }
    if let Some(watcher) = &admin.sources.watcher {
        of_watcher(watcher, &mut text);
    }
    for (_, plane) in &admin.sources.planes {
        plane.metrics(&mut text);
    }
    text
}

fn of_watcher(watcher: &event_watcher::Handle, text: &mut String) {
    let Ok(serde_json::Value::Object(counters)) = serde_json::to_value(watcher.stats()) else { return };
    for (name, value) in counters {
        let name = name.trim_start_matches("n_");
        let _ = write!(
            text,
            "# TYPE waymark_watcher_{name}_total counter\nwaymark_watcher_{name}_total {value}\n"
        );
    }
}
