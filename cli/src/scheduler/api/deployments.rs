//! `/v2/deployments` and `/v2/queue`.
//!
//! Not here: how deployments go on (`core::drive`).

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::apps::id_of;
use super::reply::Reply;
use super::view::readiness_results;
use super::{Answer, Call, Context, Failure, settled};
use crate::scheduler::core::deployment::Deployment;
use crate::scheduler::core::launch::{Lack, WaitStats};
use crate::scheduler::core::{AppState, Core, Refusal};
use crate::scheduler::timestamp::Timestamp;

pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, []) => {
            let work = |core: &mut Core| {
                let all: Vec<Value> = core.deployments.iter().map(|d| deployment(core, d)).collect();
                Ok(Reply::json(&Value::Array(all)))
            };
            settled(context.handle.call(work).await)
        }
        (&Method::DELETE, [id]) => {
            let (id, force) = ((*id).to_owned(), call.target.flag("force"));
            let work = move |core: &mut Core| {
                if !force {
                    return Ok(Reply::accepted(&core.revert_deployment(&id)?));
                }
                if !core.cancel_deployment(&id) {
                    return Err(Refusal::UnknownDeployment(id).into());
                }
                Ok(Reply::empty(StatusCode::ACCEPTED))
            };
            settled(context.handle.call_stored(work).await)
        }
        (_, [] | [_]) => Err(Failure::NoSuchMethod),
        _ => Err(Failure::NoSuchPath),
    }
}

fn deployment(core: &Core, deployment: &Deployment) -> Value {
    let steps: Vec<Value> = deployment.steps.iter().map(|step| step.json()).collect();
    let current: Vec<Value> = deployment
        .current_step()
        .into_iter()
        .flat_map(|step| &step.actions)
        .map(|action| {
            let results = core.app(&action.app).map_or(json!([]), readiness_results);
            json!({"action": action.kind.as_str(), "app": action.app, "readinessCheckResults": results})
        })
        .collect();
    json!({"id": deployment.id, "version": deployment.version, "affectedApps": deployment.affected,
        "affectedPods": [], "steps": steps, "currentActions": current,
        "currentStep": deployment.current_number(), "totalSteps": deployment.steps.len()})
}

pub(super) async fn answer_queue(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, []) => {
            let with_offers = call.target.all("embed").any(|embed| embed == "lastUnusedOffers");
            let work = move |core: &mut Core| {
                let waiting = core.live_apps().filter(|state| !state.scheduled.is_empty());
                let queue: Vec<Value> = waiting.map(|state| queued(core, state, with_offers)).collect();
                Ok(Reply::json(&json!({"queue": queue})))
            };
            settled(context.handle.call(work).await)
        }
        (&Method::DELETE, [path @ .., "delay"]) => {
            let id = id_of(path)?;
            let work = move |core: &mut Core| {
                core.reset_delay(&id)?;
                Ok(Reply::empty(StatusCode::NO_CONTENT))
            };
            settled(context.handle.call(work).await)
        }
        (_, []) => Err(Failure::NoSuchMethod),
        _ => Err(Failure::NoSuchPath),
    }
}

fn queued(core: &Core, state: &AppState, with_offers: bool) -> Value {
    let left = core.backoff_left(&state.app.id, Instant::now());
    let app: Value = serde_json::from_str(state.app.json()).unwrap_or_default();
    let stats = &state.wait;
    let summary = |stats: &WaitStats| -> Vec<Value> {
        let mut processed = stats.n_attempts;
        Lack::ALL
            .iter()
            .map(|lack| {
                let declined = stats.n_declined[*lack as usize];
                let entry =
                    json!({"reason": format!("{lack:?}"), "declined": declined, "processed": processed});
                processed = processed.saturating_sub(declined);
                entry
            })
            .collect()
    };
    // The last offer is the last attempt alone.
    let mut last = WaitStats { n_attempts: stats.n_attempts.min(1), ..WaitStats::default() };
    if let Some(lack) = stats.last_lack {
        last.n_declined[lack as usize] = 1;
    }
    let mut processed = json!({"processedOffersCount": stats.n_attempts, "unusedOffersCount": stats.n_unused,
        "rejectSummaryLastOffers": summary(&last), "rejectSummaryLaunchAttempt": summary(stats)});
    for (key, at) in [("lastUnusedOfferAt", stats.last_unused_at), ("lastUsedOfferAt", stats.last_used_at)] {
        if let Some(at) = at {
            processed[key] = json!(at);
        }
    }
    let mut item = json!({
        "app": app, "count": state.scheduled.len(),
        "delay": {"timeLeftSeconds": left.map_or(0, |left| left.as_secs_f64().ceil() as u64),
            "overdue": left.is_none()},
        "since": stats.since.unwrap_or_else(Timestamp::now), "processedOffersSummary": processed,
    });
    if with_offers {
        let offer = json!({"id": "offer", "agentId": core.agent_id, "hostname": core.settings.host,
            "resources": [], "attributes": []});
        let unused = stats.last_lack.zip(stats.last_unused_at);
        item["lastUnusedOffers"] = unused
            .map(|(lack, at)| json!({"offer": offer, "timestamp": at, "reason": [format!("{lack:?}")]}))
            .into_iter()
            .collect();
    }
    item
}
