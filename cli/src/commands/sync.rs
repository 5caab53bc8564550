//! `waymark sync`: has everything read again from the schedulers and files, and says what came of it.
//!
//! With `--accept`, a list that lacks most of what ran is believed at once instead of being held.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::stats::StatsClient;
use super::status;
use crate::args::SyncArgs;
use crate::failure::Failure;
use crate::output::{self, Style};

/// Far more than a large cluster's list takes.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub async fn run(args: &SyncArgs) -> Result<(), Failure> {
    let client = StatsClient::new(&args.list.stats)?;
    let asked = Instant::now();
    client.command(if args.accept { "api/sync?accept" } else { "api/sync" }).await?;
    let (sources, late) = loop {
        let mut status = client.get("api/status").await?;
        let sources = status["sources"].take();
        let late = silent_since(&sources, asked.elapsed());
        if late.is_empty() || asked.elapsed() > PATIENCE {
            break (sources, late);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    if args.list.json {
        output::print_json(&sources)?;
    } else {
        let style = Style::of_stdout();
        output::print(&status::sources(&sources, style))?;
    }
    match late.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("no answer from {}", late.join(", ")))
            .hint("waymark status says why; the last known state keeps serving")),
    }
}

/// Sources without an answer that is younger than the question.
fn silent_since(sources: &Value, elapsed: Duration) -> Vec<String> {
    let is_late = |source: &&Value| {
        source["seconds_since_answer"].as_f64().is_none_or(|age| age > elapsed.as_secs_f64())
    };
    let name = |source: &Value| source["name"].as_str().unwrap_or("-").to_owned();
    sources.as_array().into_iter().flatten().filter(is_late).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_before_the_question_does_not_count() {
        let sources = serde_json::json!([
            {"name": "a", "seconds_since_answer": 0.2},
            {"name": "b", "seconds_since_answer": 7.0},
            {"name": "c", "seconds_since_answer": null},
        ]);
        assert_eq!(silent_since(&sources, Duration::from_secs(1)), ["b", "c"]);
        assert_eq!(silent_since(&sources, Duration::from_secs(8)), ["c"]);
    }
}
