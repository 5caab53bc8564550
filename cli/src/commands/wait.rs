//! `--wait`: until the scheduler is done, and then until every plane answers for it.
//!
//! Every wait is for a state, never for an event: what happened before the question cannot be missed. The Marathon
//! API has no such question, so it is asked again and again.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::deployment::steps;
use super::marathon::{Marathon, Path};
use super::stats::StatsClient;
use crate::args::WaitArgs;
use crate::failure::Failure;
use crate::output::Progress;

/// Between two looks at the scheduler's API.
const POLL: Duration = Duration::from_millis(200);
/// One long poll at the stats address; bounded so that the scheduler's truth is looked at again, too.
const LONG_POLL: Duration = Duration::from_secs(2);

/// Waits for the end of `deployment`, then until every plane has applied what the scheduler says of the app then.
pub async fn until_applied(
    marathon: &Marathon,
    args: &WaitArgs,
    app: &str,
    deployment: Option<&str>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let mut progress = Progress::default();
    let waiting = async {
        if let Some(deployment) = deployment {
            deployed(marathon, deployment, &mut progress).await?;
        }
        applied(marathon, &StatsClient::new(&args.stats)?, app, &mut progress).await
    };
    finish(timeout_at(deadline, waiting).await, args.timeout, progress)
}

/// Waits until none of `killed` is left and the app has the instances it wants, in every plane.
pub async fn until_replaced(
    marathon: &Marathon,
    args: &WaitArgs,
    app: &str,
    killed: &[String],
) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let mut progress = Progress::default();
    let waiting = async {
        loop {
            let state = marathon.existing_app(app).await?;
            let running = running(&state);
            let wanted = state["instances"].as_u64().unwrap_or(0);
            if running.len() as u64 == wanted && killed.iter().all(|id| !running.contains(id)) {
                break;
            }
            progress.say(&format!("{app}: {} of {wanted} instances run", running.len()));
            sleep(POLL).await;
        }
        applied(marathon, &StatsClient::new(&args.stats)?, app, &mut progress).await
    };
    finish(timeout_at(deadline, waiting).await, args.timeout, progress)
}

/// Waits for the end of a deployment only.
pub async fn until_deployed(marathon: &Marathon, deployment: &str, timeout: Duration) -> Result<(), Failure> {
    let mut progress = Progress::default();
    let waiting = deployed(marathon, deployment, &mut progress);
    let outcome = timeout_at(Instant::now() + timeout, waiting).await;
    finish(outcome, timeout, progress)
}

fn finish(
    outcome: Result<Result<(), Failure>, tokio::time::error::Elapsed>,
    timeout: Duration,
    progress: Progress,
) -> Result<(), Failure> {
    progress.done();
    outcome.unwrap_or_else(|_| {
        let timeout = humantime::format_duration(timeout);
        Err(Failure::new(format!("still not done after {timeout}")).hint(
            "waymark deployment list shows what the scheduler waits for, waymark status what the planes follow",
        ))
    })
}

async fn deployed(marathon: &Marathon, id: &str, progress: &mut Progress) -> Result<(), Failure> {
    loop {
        let deployments = marathon.get(&Path::new("v2/deployments")).await?;
        let running = deployments.as_array().into_iter().flatten().find(|d| d["id"].as_str() == Some(id));
        let Some(deployment) = running else { return Ok(()) };
        progress.say(&format!("deployment {id}: step {}", steps(deployment)));
        sleep(POLL).await;
    }
}

async fn applied(
    marathon: &Marathon,
    stats: &StatsClient,
    app: &str,
    progress: &mut Progress,
) -> Result<(), Failure> {
    loop {
        let truth = marathon.app(app).await?;
        let answer = stats.get(&format!("api/apps?id={}", escape(app))).await?;
        let generation = answer["generation"].as_u64().unwrap_or(0);
        let known = answer["apps"].as_array().and_then(|apps| apps.first());
        if same(truth.as_ref(), known) {
            progress.say(&format!("{app}: waiting for every plane to apply generation {generation}"));
            while stats.applied_after(generation.saturating_sub(1), LONG_POLL).await? < generation {}
            progress.say(&format!("{app}: every plane has applied generation {generation}"));
            return Ok(());
        }
        progress
            .say(&format!("{app}: Waymark is at generation {generation} and does not show the change yet"));
        // Also bounds how often the scheduler is asked when no newer generation comes.
        stats.applied_after(generation, LONG_POLL.min(POLL)).await?;
    }
}

/// Does Waymark's view of the app show the scheduler's definition and the scheduler's running instances?
fn same(truth: Option<&Value>, known: Option<&Value>) -> bool {
    match (truth, known) {
        (None, None) => true,
        (Some(truth), Some(known)) => {
            truth["version"] == known["version"] && running(truth) == running_in_waymark(known)
        }
        _ => false,
    }
}

fn running(app: &Value) -> BTreeSet<String> {
    ids(&app["tasks"], "TASK_RUNNING")
}

fn running_in_waymark(app: &Value) -> BTreeSet<String> {
    ids(&app["instances"], "running")
}

fn ids(list: &Value, state: &str) -> BTreeSet<String> {
    let of_state = list.as_array().into_iter().flatten().filter(|i| i["state"].as_str() == Some(state));
    of_state.filter_map(|i| i["id"].as_str().map(str::to_owned)).collect()
}

fn escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_app_is_the_same_when_version_and_running_instances_are() {
        let truth = json!({"version": "v2", "tasks": [
            {"id": "a", "state": "TASK_RUNNING"}, {"id": "b", "state": "TASK_KILLING"}]});
        let shown = |version: &str, instances: Value| json!({"version": version, "instances": instances});
        let a = json!({"id": "a", "state": "running"});
        for (known, expect) in [
            (Some(shown("v2", json!([a]))), true),
            (Some(shown("v2", json!([a, {"id": "b", "state": "killing"}]))), true),
            (Some(shown("v2", json!([a, {"id": "b", "state": "running"}]))), false),
            (Some(shown("v1", json!([a]))), false),
            (Some(shown("v2", json!([]))), false),
            (None, false),
        ] {
            assert_eq!(same(Some(&truth), known.as_ref()), expect, "{known:?}");
        }
        assert!(same(None, None));
        assert!(!same(None, Some(&truth)));
    }
}
