//! Refused requests by reason, and latency quantiles, as Prometheus text: what HAProxy's exporter has no names for.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::series::Totals;
use crate::http1::refusal::Refusal;
use crate::names::{APPID_FRONTEND, HTTP_FRONTEND, HTTPS_FRONTEND};
use crate::plane::Shared;

const QUANTILES: [&str; 4] = ["0.5", "0.9", "0.99", "0.999"];

pub fn own_metrics(shared: &Shared, text: &mut String) {
    let table = shared.table.load();
    let fixed = [
        (HTTP_FRONTEND, &shared.http_in),
        (HTTPS_FRONTEND, &shared.https_in),
        (APPID_FRONTEND, &shared.appid_in),
    ];
    let fixed = fixed.map(|(name, series)| (name.to_owned(), series.totals()));
    let of_ports = table.backends.iter().map(|b| (b.name.to_string(), b.frontend_totals()));
    let frontends: Vec<(String, Totals)> = fixed.into_iter().chain(of_ports).collect();
    text.push_str(
        "# HELP waymark_http_refused_requests_total Requests refused by the balancer, by reason.\n",
    );
    text.push_str("# TYPE waymark_http_refused_requests_total counter\n");
    for (name, totals) in &frontends {
        for (word, n) in by_word(totals) {
            line(text, "waymark_http_refused_requests_total", name, &format!(",reason=\"{word}\""), n as f64);
        }
    }
    text.push_str("# HELP waymark_http_tls_failures_total TLS handshakes that failed or took too long.\n");
    text.push_str("# TYPE waymark_http_tls_failures_total counter\n");
    for (name, totals) in frontends.iter().filter(|(_, totals)| totals.n_handshake_failures > 0) {
        line(text, "waymark_http_tls_failures_total", name, "", totals.n_handshake_failures as f64);
    }
    text.push_str(
        "# HELP waymark_http_response_seconds Time from a request's arrival to its response's head.\n",
    );
    text.push_str("# TYPE waymark_http_response_seconds summary\n");
    for backend in &table.backends {
        let totals = backend.totals();
        for (quantile, time) in QUANTILES.iter().zip(totals.quantiles()) {
            if let Some(time) = time {
                let label = format!(",quantile=\"{quantile}\"");
                line(text, "waymark_http_response_seconds", &backend.name, &label, time.as_secs_f64());
            }
        }
    }
}

/// Reasons that share a word are one to whoever reads it; only what has happened.
fn by_word(totals: &Totals) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (refusal, n) in Refusal::ALL.iter().zip(totals.refusals).filter(|(_, n)| *n > 0) {
        *sums.entry(refusal.word()).or_default() += n;
    }
    sums
}

/// `label` begins with a comma, or is empty.
fn line(text: &mut String, metric: &str, proxy: &str, label: &str, value: f64) {
    let proxy = proxy.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{metric}{{proxy=\"{proxy}\"{label}}} {value}");
}
