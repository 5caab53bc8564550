//! `/metrics`: Prometheus text. HAProxy's names come from the HTTP plane, `waymark_…` from here and the other planes.

use std::fmt::Write;

use event_watcher::SourceView;
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
    of_sources(&status.sources, &mut text);
    if let Some(watcher) = &admin.sources.watcher {
        of_watcher(watcher, &mut text);
    }
    for (_, plane) in &admin.sources.planes {
        plane.metrics(&mut text);
    }
    text
}

/// One family with a line for each source, and for each of its `words` beside it.
fn of_sources(sources: &[SourceView], text: &mut String) {
    let family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&SourceView) -> Vec<(String, f64)>| {
        let mut family = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for source in sources {
            for (labels, value) in lines(source) {
                // Names of sources are words; app ids are escaped where they are made labels.
                let _ = writeln!(family, "{name}{{source=\"{}\"{labels}}} {value}", source.name);
            }
        }
        family
    };
    let plain = |value: f64| vec![(String::new(), value)];
    let by = |label: &str, counts: &std::collections::BTreeMap<&'static str, u64>| {
        counts.iter().map(|(word, n)| (format!(",{label}=\"{word}\""), *n as f64)).collect::<Vec<_>>()
    };
    let state = |source: &SourceView| match source.freshness {
        Freshness::Unsynced { .. } => "unsynced",
        Freshness::Live => "live",
        Freshness::Stale { .. } => "degraded",
    };
    text.push_str(&family(
        "waymark_sync_state",
        "gauge",
        "1 for the state that the source is in.",
        &|source| {
            let now = state(source);
            let line = |word: &str| (format!(",state=\"{word}\""), f64::from(u8::from(word == now)));
            ["unsynced", "live", "degraded"].map(line).to_vec()
        },
    ));
    text.push_str(&family(
        "waymark_source_age_seconds",
        "gauge",
        "How old what the source holds may be.",
        &|source| match source.freshness {
            Freshness::Stale { since, .. } => plain(since.elapsed().as_secs_f64()),
            Freshness::Live => plain(0.0),
            Freshness::Unsynced { .. } => Vec::new(),
        },
    ));
    text.push_str(&family(
        "waymark_source_degraded",
        "gauge",
        "1, with the cause, while the source is not live.",
        &|source| {
            source.cause.map(|cause| (format!(",cause=\"{}\"", cause.as_str()), 1.0)).into_iter().collect()
        },
    ));
    text.push_str(&family(
        "waymark_source_generation",
        "gauge",
        "Last snapshot that the source changed.",
        &|source| plain(source.generation.0 as f64),
    ));
    text.push_str(&family("waymark_source_apps", "gauge", "Apps that the source has.", &|source| {
        plain(source.n_apps as f64)
    }));
    text.push_str(&family("waymark_last_event_seconds", "gauge", "Time since the last event.", &|source| {
        source.seconds_since_event.map(plain).unwrap_or_default()
    }));
    text.push_str(&family(
        "waymark_last_answer_seconds",
        "gauge",
        "Time since the last good answer.",
        &|source| source.seconds_since_answer.map(plain).unwrap_or_default(),
    ));
    text.push_str(&family(
        "waymark_stream_reconnects_total",
        "counter",
        "Streams lost or not opened, by reason.",
        &|source| by("reason", &source.reconnects),
    ));
    text.push_str(&family(
        "waymark_snapshot_rejected_total",
        "counter",
        "Answers refused as a whole, by reason.",
        &|source| by("reason", &source.rejected),
    ));
    text.push_str(&family(
        "waymark_big_drop_held",
        "gauge",
        "Instances that serve although they are no longer listed.",
        &|source| {
            let line = |(app, n): (&event_watcher::catalog::AppId, &usize)| {
                let app = app.as_str().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                (format!(",app=\"{app}\""), *n as f64)
            };
            source.held.iter().map(line).collect()
        },
    ));
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
