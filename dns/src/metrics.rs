//! The counters in Prometheus text format.
//!
//! Nothing is counted here.

use std::fmt::{Display, Write};

use crate::forward::LATENCY_BOUNDS_MS;
use crate::stats::Statistics;

pub(crate) fn write(statistics: &Statistics, text: &mut String) {
    let mut metrics = Metrics(text);
    let transports = [
        ("udp", statistics.n_queries_udp),
        ("tcp", statistics.n_queries_tcp),
        ("https", statistics.n_queries_https),
    ];
    metrics.counters("queries", "transport", transports);
    metrics.counters("queries_by_type", "type", of(&statistics.n_queries_by_type));
    metrics.counters("answers", "rcode", of(&statistics.n_answers_by_rcode));
    metrics.counters("answers_by_source", "source", of(&statistics.n_answers_by_source));
    metrics.head("answers_by_zone_total", "counter");
    for (zone, rcodes) in &statistics.n_answers_by_zone {
        for (rcode, n) in rcodes {
            metrics.line(format_args!("answers_by_zone_total{{zone=\"{zone}\",rcode=\"{rcode}\"}}"), n);
        }
    }
    metrics.counters("dropped", "reason", of(&statistics.n_dropped));
    metrics.counters("forwarded", "outcome", of(&statistics.n_forwarded));
    for (name, n) in [
        ("truncated_total", statistics.n_truncated),
        ("rate_limit_slipped_total", statistics.n_slipped),
        ("tcp_connections_total", statistics.n_tcp_connections),
        ("tcp_evicted_total", statistics.n_tcp_evicted),
        ("forward_loops_total", statistics.n_loops),
        ("vip_waits_expired_total", statistics.n_vip_waits_expired),
    ] {
        metrics.head(name, "counter");
        metrics.line(name, n);
    }
    for (name, n) in [
        ("names", statistics.n_names as u64),
        ("serial", statistics.serial.into()),
        ("cached_answers", statistics.n_cached as u64),
        ("cache_bytes", statistics.cache_bytes as u64),
    ] {
        metrics.head(name, "gauge");
        metrics.line(name, n);
    }
    metrics.upstreams(statistics);
}

fn of<'a>(
    map: &'a std::collections::BTreeMap<&'static str, u64>,
) -> impl IntoIterator<Item = (&'static str, u64)> + 'a {
    map.iter().map(|(name, n)| (*name, *n))
}

struct Metrics<'t>(&'t mut String);

impl Metrics<'_> {
    fn head(&mut self, name: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# TYPE waymark_dns_{name} {kind}");
    }

    fn line(&mut self, name: impl Display, value: impl Display) {
        let _ = writeln!(self.0, "waymark_dns_{name} {value}");
    }

    fn counters(&mut self, name: &str, label: &str, values: impl IntoIterator<Item = (&'static str, u64)>) {
        self.head(&format!("{name}_total"), "counter");
        for (value, n) in values {
            self.line(format_args!("{name}_total{{{label}=\"{value}\"}}"), n);
        }
    }

    fn upstreams(&mut self, statistics: &Statistics) {
        self.head("upstream_failures_total", "counter");
        for upstream in &statistics.upstreams {
            let address = &upstream.address;
            for (reason, n) in [
                ("timeout", upstream.n_timeouts),
                ("refused", upstream.n_refusals),
                ("error", upstream.n_errors),
            ] {
                let name =
                    format_args!("upstream_failures_total{{upstream=\"{address}\",reason=\"{reason}\"}}");
                self.line(name, n);
            }
        }
        self.head("upstream_edns_fallbacks_total", "counter");
        for upstream in &statistics.upstreams {
            let name = format_args!("upstream_edns_fallbacks_total{{upstream=\"{}\"}}", upstream.address);
            self.line(name, upstream.n_edns_fallbacks);
        }
        self.head("upstream_latency_seconds", "histogram");
        for upstream in &statistics.upstreams {
            let address = &upstream.address;
            let bounds = LATENCY_BOUNDS_MS.iter().map(|ms| (*ms as f64 / 1e3).to_string());
            for (bound, n) in bounds.chain(["+Inf".to_owned()]).zip(&upstream.n_within) {
                let name =
                    format_args!("upstream_latency_seconds_bucket{{upstream=\"{address}\",le=\"{bound}\"}}");
                self.line(name, n);
            }
            self.line(
                format_args!("upstream_latency_seconds_sum{{upstream=\"{address}\"}}"),
                upstream.latency_sum_seconds,
            );
            self.line(
                format_args!("upstream_latency_seconds_count{{upstream=\"{address}\"}}"),
                upstream.n_answered,
            );
        }
    }
}
