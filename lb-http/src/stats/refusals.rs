//! Refusals by reason, handshakes, queues and latency quantiles, as Prometheus text: what HAProxy's exporter has no
//! names for. The reasons for people, too.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::series::Totals;
use crate::http1::refusal::Refusal;
use crate::http1::response::BadResponse;
use crate::names::{APPID_FRONTEND, HTTP_FRONTEND, HTTPS_FRONTEND};
use crate::plane::Shared;
use crate::reason::RefusedConnection;

const QUANTILES: [&str; 4] = ["0.5", "0.9", "0.99", "0.999"];

type Counter = (&'static str, &'static str, fn(&Totals) -> u64);

/// Of frontends.
const COUNTERS_IN: [Counter; 1] = [(
    "waymark_http_tls_failures_total",
    "Connections whose TLS handshake failed or took too long.",
    |totals| totals.n_handshake_failures,
)];

/// Of backends.
const COUNTERS_OUT: [Counter; 3] = [
    ("waymark_http_queued_requests_total", "Requests that had to wait for room at an instance.", |totals| {
        totals.n_queued
    }),
    ("waymark_http_queue_timeouts_total", "Requests that waited for room too long: 503.", |totals| {
        totals.n_queue_timeouts
    }),
    ("waymark_http_queue_refusals_total", "Requests that found the queue full: 503.", |totals| {
        totals.n_queue_refusals
    }),
];

pub fn own_metrics(shared: &Shared, text: &mut String) {
    let table = shared.table.load();
    let https = shared.serves_https().then_some((HTTPS_FRONTEND, &shared.https_in));
    let fixed =
        [(HTTP_FRONTEND, &shared.http_in), (APPID_FRONTEND, &shared.appid_in)].into_iter().chain(https);
    let fixed = fixed.map(|(name, series)| (name.to_owned(), series.totals()));
    let of_ports = table.backends.iter().map(|b| (b.name.to_string(), b.frontend_totals()));
    let frontends: Vec<(String, Totals)> = fixed.chain(of_ports).collect();
    let backends: Vec<(String, Totals)> =
        table.backends.iter().map(|b| (b.name.to_string(), b.totals())).collect();
    for (counters, proxies) in [(&COUNTERS_IN[..], &frontends), (&COUNTERS_OUT, &backends)] {
        for (metric, help, count) in counters {
            head(text, metric, "counter", help);
            proxies.iter().for_each(|(name, totals)| line(text, metric, name, "", count(totals) as f64));
        }
    }
    for (metric, help, proxies, what) in [
        (
            "waymark_http_refused_requests_total",
            "Requests refused by the balancer.",
            &frontends,
            What::Requests,
        ),
        (
            "waymark_http_refused_connections_total",
            "Connections refused or cut.",
            &frontends,
            What::Connections,
        ),
        ("waymark_http_bad_responses_total", "Responses that were none: 502.", &backends, What::Responses),
    ] {
        head(text, metric, "counter", help);
        for (name, totals) in proxies {
            for (word, n) in what.counted(totals) {
                line(text, metric, name, &format!(",reason=\"{word}\""), n as f64);
            }
        }
    }
    let help = "Time from a request's arrival to its response's head.";
    head(text, "waymark_http_response_seconds", "summary", help);
    for (name, totals) in &backends {
        for (quantile, time) in QUANTILES.iter().zip(totals.quantiles()) {
            if let Some(time) = time {
                let label = format!(",quantile=\"{quantile}\"");
                line(text, "waymark_http_response_seconds", name, &label, time.as_secs_f64());
            }
        }
    }
}

fn head(text: &mut String, metric: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = write!(text, "# HELP {metric} {help}\n# TYPE {metric} {kind}\n");
}

/// What is refused for a reason.
#[derive(Clone, Copy, Debug)]
enum What {
    Requests,
    Connections,
    Responses,
}

impl What {
    fn counted(self, totals: &Totals) -> BTreeMap<&'static str, u64> {
        match self {
            Self::Requests => by_word(Refusal::ALL.iter().map(|r| r.word()), &totals.refusals),
            Self::Connections => {
                by_word(RefusedConnection::ALL.iter().map(|r| r.word()), &totals.refused_connections)
            }
            Self::Responses => by_word(BadResponse::ALL.iter().map(|r| r.word()), &totals.bad_responses),
        }
    }
}

/// Reasons that share a word are one to whoever reads it; only what has happened.
fn by_word(words: impl Iterator<Item = &'static str>, counts: &[u64]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (word, n) in words.zip(counts).filter(|(_, n)| **n > 0) {
        *sums.entry(word).or_default() += n;
    }
    sums
}

/// Everything that was refused, for people; mostly nothing.
pub fn reasons(totals: &Totals) -> String {
    let mut sentences = Vec::new();
    for (name, what) in [
        ("Refused requests", What::Requests),
        ("Refused connections", What::Connections),
        ("Bad responses", What::Responses),
    ] {
        let counted: Vec<String> =
            what.counted(totals).into_iter().map(|(word, n)| format!("{word} {n}")).collect();
        if !counted.is_empty() {
            sentences.push(format!("{name}: {}.", counted.join(", ")));
        }
    }
    sentences.join(" ")
}

/// `label`: nothing, or one with its comma.
fn line(text: &mut String, metric: &str, proxy: &str, label: &str, value: f64) {
    let proxy = proxy.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{metric}{{proxy=\"{proxy}\"{label}}} {value}");
}
