//! `waymark status` and `waymark events`: what a running Waymark knows, and what changes.
//!
//! Both only print what the stats address says. `top` reads the same event stream.

use reqwest::Response;
use serde_json::Value;

use super::stats::StatsClient;
use super::vip;
use crate::args::ListArgs;
use crate::failure::Failure;
use crate::output::{self, Style, Table};

/// Longest event line that is kept; the server's own are far shorter.
const MAX_LINE_BYTES: usize = 1 << 20;

pub async fn run(args: &ListArgs) -> Result<(), Failure> {
    let status = StatsClient::new(&args.stats)?.get("api/status").await?;
    if args.json {
        return output::print_json(&status);
    }
    let style = Style::of_stdout();
    let freshness = &status["freshness"];
    let state = match freshness["state"].as_str() {
        Some("live") => style.green("live"),
        Some("stale") => style.yellow(&format!(
            "stale for {:.0} s: {}",
            freshness["age_seconds"].as_f64().unwrap_or(0.0),
            freshness["reason"].as_str().unwrap_or("-"),
        )),
        _ => style.red(&format!("not synced: {}", freshness["reason"].as_str().unwrap_or("-"))),
    };
    let mut text = format!("scheduler   {state}\n");
    text.push_str(&format!("generation  {}\n", status["generation"]));
    text.push_str(&format!(
        "serving     {}, {}, {}\n",
        counted(&status["n_apps"], "app"),
        counted(&status["n_instances"], "instance"),
        counted(&status["n_vips"], "VIP")
    ));
    text.push_str(&format!(
        "ready       {}\n\n",
        if status["ready"] == true { style.green("yes") } else { style.red("no") }
    ));
    text.push_str(&sources(&status["sources"], style));
    text.push('\n');
    let mut planes = Table::new(&["PLANE", "APPLIED"]);
    for plane in status["planes"].as_array().into_iter().flatten() {
        planes.row([plane["name"].as_str().unwrap_or("-").to_owned(), plane["applied"].to_string()]);
    }
    text.push_str(&planes.render(style));
    text.push_str(&vip::about_plane(&status["vip_plane"], style));
    if let Some(addresses) = status["addresses"].as_object() {
        let mut table = Table::new(&["LISTENS", "AT"]);
        for (name, address) in addresses {
            let at = match address {
                Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                other => other.as_str().unwrap_or("-").to_owned(),
            };
            table.row([name.clone(), at]);
        }
        text.push('\n');
        text.push_str(&table.render(style));
    }
    for problem in status["problems"].as_array().into_iter().flatten() {
        let part = |key: &str| problem[key].as_str().unwrap_or_default();
        let line = format!("{} {}: {}", part("app"), part("at"), part("what"));
        text.push_str(&format!("\n{} {}", style.yellow("problem:"), line.trim()));
        if !part("hint").is_empty() {
            text.push_str(&format!("\n  {}", style.dim(part("hint"))));
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let printable: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\x1b')).collect();
    output::print(&printable)
}

/// One line for each scheduler and file, and what is held of whom.
pub(super) fn sources(sources: &Value, style: Style) -> String {
    let mut table =
        Table::new(&["SOURCE", "STATE", "GENERATION", "APPS", "EVENT", "ANSWER", "REJECTED", "HELD"]);
    let mut held_apps = String::new();
    for source in sources.as_array().into_iter().flatten() {
        let freshness = &source["freshness"];
        let state = match (freshness["state"].as_str(), freshness["age_seconds"].as_f64()) {
            (Some("stale"), Some(age)) => {
                format!("stale {age:.0} s ({})", source["cause"].as_str().unwrap_or("-"))
            }
            (state, _) => state.unwrap_or("-").to_owned(),
        };
        let ago = |key: &str| source[key].as_f64().map_or("-".to_owned(), |age| format!("{age:.0} s ago"));
        let sum = |key: &str| {
            let numbers = source[key].as_object().into_iter().flat_map(|map| map.values());
            numbers.filter_map(Value::as_u64).sum::<u64>().to_string()
        };
        table.row([
            source["name"].as_str().unwrap_or("-").to_owned(),
            state,
            source["generation"].to_string(),
            source["n_apps"].to_string(),
            ago("seconds_since_event"),
            ago("seconds_since_answer"),
            sum("rejected"),
            sum("held"),
        ]);
        for (app, n) in source["held"].as_object().into_iter().flatten() {
            held_apps.push_str(&format!("{} {app}: {n} kept serving\n", style.yellow("held:")));
        }
    }
    format!("{}{held_apps}", table.render(style))
}

fn counted(n: &Value, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Follows the events until interrupted or until the server closes the stream.
pub async fn events(args: &ListArgs) -> Result<(), Failure> {
    let mut events = EventStream::open(&StatsClient::new(&args.stats)?).await?;
    while let Some(data) = events.next().await? {
        output::print_line(&if args.json { data } else { one_line(&data) })?;
    }
    Err(Failure::new("Waymark closed the event stream").hint("it stopped, or this reader was too slow"))
}

/// Time, generation and what happened, of an event's JSON.
pub(super) fn one_line(data: &str) -> String {
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    let part = |key: &str| event[key].as_str().unwrap_or_default();
    let line = format!("{}  #{:<5} {}", part("at"), event["generation"], part("text"));
    line.chars().filter(|c| !c.is_control()).collect()
}

/// The server-sent events of the stats address.
#[derive(Debug)]
pub(super) struct EventStream {
    response: Response,
    /// Read, and not yet given out.
    ahead: Vec<u8>,
}

impl EventStream {
    pub(super) async fn open(client: &StatsClient) -> Result<Self, Failure> {
        Ok(Self { response: client.open("api/events").await?, ahead: Vec::new() })
    }

    /// The JSON of the next event; none when the server has closed the stream. What was read is not lost when the
    /// caller stops waiting.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            while let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                if let Some(data) = String::from_utf8_lossy(&line).trim_end().strip_prefix("data:") {
                    return Ok(Some(data.trim_start().to_owned()));
                }
            }
            if self.ahead.len() > MAX_LINE_BYTES {
                return Err(Failure::new("Waymark sent an event that is too long"));
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|e| Failure::chain("the event stream broke off", &e.without_url()))? {
                Some(chunk) => self.ahead.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}
