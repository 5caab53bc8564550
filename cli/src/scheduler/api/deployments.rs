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
use crate::scheduler::core::deployment::{Deployment, Subject};
use crate::scheduler::core::launch::WaitStats;
use crate::scheduler::core::resources::Lack;
use crate::scheduler::core::{AppState, Core, Refusal};
use crate::scheduler::id::AppId;
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
                if !core.stop_deployment(&id) {
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
            let mut shown = action.json();
            shown["readinessCheckResults"] = core.run_spec(&action.app).map_or(json!([]), readiness_results);
            shown
        })
        .collect();
    let is_pod = |id: &&AppId| {
        let actions = deployment.steps.iter().flat_map(|step| &step.actions);
        actions.into_iter().any(|action| action.app == **id && action.subject == Subject::Pod)
            || core.pod(id).is_some()
    };
    let (pods, apps): (Vec<&AppId>, Vec<&AppId>) = deployment.affected.iter().partition(is_pod);
    json!({"id": deployment.id, "version": deployment.version, "affectedApps": apps,
        "affectedPods": pods, "steps": steps, "currentActions": current,
        "currentStep": deployment.current_number(), "totalSteps": deployment.steps.len()})
}

pub(super) async fn answer_queue(call: &Call, rest: &[&str], context: &Context) -> Answer {
    match (&call.method, rest) {
        (&Method::GET | &Method::HEAD, []) => {
            let with_offers = call.target.all("embed").any(|embed| embed == "lastUnusedOffers");
            let work = move |core: &mut Core| {
                let waiting = core.run_specs().filter(|state| !state.scheduled.is_empty());
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
        "count": state.scheduled.len(),
        "delay": {"timeLeftSeconds": left.map_or(0, |left| left.as_secs_f64().ceil() as u64),
            "overdue": left.is_none()},
        "since": stats.since.unwrap_or_else(Timestamp::now), "processedOffersSummary": processed,
    });
    item[if state.app.is_pod() { "pod" } else { "app" }] = app;
    if with_offers {
        let offer = json!({"id": "offer", "agentId": core.agent_id, "hostname": core.settings.host,
            "resources": resources(core), "attributes": []});
        let unused = stats.last_lack.zip(stats.last_unused_at);
        item["lastUnusedOffers"] = unused
            .map(|(lack, at)| json!({"offer": offer, "timestamp": at, "reason": [format!("{lack:?}")]}))
            .into_iter()
            .collect();
    }
    item
}

/// What the agent has left, as an offer lists it.
fn resources(core: &Core) -> Value {
    let (all, used) = (core.settings.resources, core.used);
    let scalar = |name: &str, value: f64| {
        // A simulated agent has no end; JSON has no infinity.
        let value = value.clamp(0.0, f64::from(u32::MAX));
        json!({"name": name, "role": "*", "scalar": value, "ranges": null, "set": null})
    };
    let ports = &core.settings.ports;
    json!([
        scalar("cpus", all.cpus - used.cpus),
        scalar("mem", all.mem - used.mem),
        scalar("disk", all.disk - used.disk),
        {"name": "ports", "role": "*", "scalar": null, "set": null,
            "ranges": [{"begin": ports.start(), "end": ports.end()}]},
    ])
}
