//! `waymark dns lookup --trace`: which app, instance or upstream an answer comes from, and what keeps a name from
//! having one.
//!
//! The running Waymark explains; this prints.

use std::time::Duration;

use serde_json::Value;

use crate::args::StatsArgs;
use crate::commands::stats::StatsClient;
use crate::failure::Failure;
use crate::output;

/// Explaining looks at every app and every name.
const TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(stats: &StatsArgs, name: &str, record_type: &str, json: bool) -> Result<(), Failure> {
    let status = StatsClient::new(stats)?.get("api/status").await?;
    let address = status["addresses"]["dns_http"].as_str().ok_or_else(|| {
        Failure::new("this Waymark has no DNS HTTP API to ask")
            .hint("start it with --dns-http-listen ADDRESS")
    })?;
    let mut url = url::Url::parse(&format!("http://{address}/v1/explain"))
        .map_err(|e| Failure::chain("the status names no usable DNS HTTP API", &e))?;
    url.query_pairs_mut().append_pair("name", name).append_pair("type", record_type);
    let failed = |e: reqwest::Error| Failure::chain(format!("cannot ask {address}"), &e);
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(failed)?;
    let response = client.get(url).send().await.map_err(failed)?;
    if !response.status().is_success() {
        let reason = response.text().await.unwrap_or_default();
        return Err(Failure::usage(format!("{name} {record_type}: {}", reason.trim())));
    }
    let explanation: Value = response.json().await.map_err(failed)?;
    if json {
        output::print_json(&explanation)?;
    } else {
        output::print(&text(&explanation))?;
    }
    match explanation["rcode"].as_str() {
        Some("NXDOMAIN" | "SERVFAIL" | "REFUSED") => {
            Err(Failure::new(format!("{name} {record_type}: {}", words(&explanation["rcode"]))))
        }
        _ => Ok(()),
    }
}

fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn text(explanation: &Value) -> String {
    let mut text = format!(
        "{} {}: {} (from {})\n",
        words(&explanation["name"]),
        words(&explanation["type"]),
        words(&explanation["rcode"]),
        words(&explanation["source"]),
    );
    let mut line = |what: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {what:<12} {value}\n"));
        }
    };
    let list = |key: &str| explanation[key].as_array().into_iter().flatten();
    for answer in list("answers") {
        line("answer", &words(answer));
    }
    for (what, key) in [("zone", "zone"), ("stands for", "stands_for")] {
        line(what, explanation[key].as_str().unwrap_or_default());
    }
    line("generation", &words(&explanation["generation"]));
    for origin in list("origins") {
        let said = |key: &str| origin[key].as_str().map(|value| format!("{key} {value}"));
        let who: Vec<String> = ["vip", "app", "instance", "cluster"].into_iter().filter_map(said).collect();
        let data: Vec<String> = origin["data"].as_array().into_iter().flatten().map(words).collect();
        let data = if data.is_empty() { String::new() } else { format!("{}: ", data.join(", ")) };
        line("from", &format!("{}: {data}{}", who.join(", "), words(&origin["state"])));
    }
    for upstream in list("upstreams") {
        line("upstream", &words(upstream));
    }
    for reason in list("reasons") {
        line("why", &words(reason));
    }
    for name in list("nearest") {
        line("there is", &words(name));
    }
    text
}
