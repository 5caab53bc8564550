//! `/v2/pods`: definitions, their versions, and the state of their instances.
//!
//! Not here: what a pod is (`app::pod`).

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::apps::{caller, id_of};
use super::reply::Reply;
use super::{Answer, Call, Context, Failure, settled};
use crate::scheduler::app::NetworkMode;
use crate::scheduler::app::fields::FieldError;
use crate::scheduler::app::pod::{Pod, read_pod};
use crate::scheduler::core::instance::{Condition, Instance};
use crate::scheduler::core::kills::KillMode;
use crate::scheduler::core::operations::{Change, Conflict, Post, Request};
use crate::scheduler::core::{AppState, Core, Refusal};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// `/v2/pods`, `/v2/pods/a/b`, `/v2/pods/a/b::status`, `/v2/pods/a/b::versions/2018-…`. `rest` is what follows
/// `/v2/pods`, with the first segment's own `::` if it has one.
pub(super) async fn answer(call: &Call, rest: &[&str], context: &Context) -> Answer {
    let path = rest.join("/");
    let (id, part) = match path.split_once("::") {
        Some((id, part)) => (id, Some(part)),
        None => (path.as_str(), None),
    };
    let segments: Vec<&str> = id.split('/').filter(|segment| !segment.is_empty()).collect();
    let of_all = segments.is_empty();
    let id = id_of(&segments)?;
    let reads = matches!(call.method, Method::GET | Method::HEAD);
    match part {
        None if of_all && reads => list(context).await,
        None if of_all && call.method == Method::POST => create(call, context).await,
        None if reads => show(id, context).await,
        None if call.method == Method::PUT => update(call, id, context).await,
        None if call.method == Method::DELETE => remove(call, id, context).await,
        Some("status") if of_all && reads => status_of_all(context).await,
        Some("status") if reads => status_of_one(id, context).await,
        Some("versions") if reads => versions(id, context).await,
        Some("instances") if call.method == Method::DELETE => {
            let ids = call.json()?;
            let ids = serde_json::from_value::<Vec<String>>(ids)
                .map_err(|_| Refusal::BadJson(vec![FieldError::new("/", "error.expected.jsarray")]))?;
            kill(call, id, ids, context).await
        }
        Some(part) => match (part.split_once('/'), reads) {
            (Some(("versions", version)), true) => one_version(id, version.to_owned(), context).await,
            (Some(("instances", instance)), false) if call.method == Method::DELETE => {
                let killed = kill(call, id, vec![instance.to_owned()], context).await?;
                let one: Value = serde_json::from_slice(&killed.body).unwrap_or_default();
                if one[0].is_null() {
                    return Err(Refusal::UnknownTask(instance.to_owned()).into());
                }
                Ok(Reply::json(&one[0]))
            }
            _ => Err(Failure::NoSuchPath),
        },
        None => Err(Failure::NoSuchMethod),
    }
}

fn definition(state: &AppState) -> Value {
    serde_json::from_str(state.app.json()).unwrap_or_default()
}

fn known<'a>(core: &'a Core, id: &AppId) -> Result<&'a AppState, Refusal> {
    core.pod(id).ok_or_else(|| Refusal::UnknownPod(id.clone()))
}

async fn list(context: &Context) -> Answer {
    let work = |core: &mut Core| Ok(Reply::json(&core.live_pods().map(definition).collect()));
    settled(context.handle.call(work).await)
}

async fn show(id: AppId, context: &Context) -> Answer {
    let work = move |core: &mut Core| Ok(Reply::json(&definition(known(core, &id)?)));
    settled(context.handle.call(work).await)
}

async fn create(call: &Call, context: &Context) -> Answer {
    let value = call.json()?;
    let (conflict, caller) = (call.conflict(Conflict::Refuse), caller(call, Post::PodCreated));
    let host = call.host();
    let work = move |core: &mut Core| {
        let pod = read_pod(&value, core.clock.newest()).map_err(Refusal::BadJson)?;
        let id = pod.id.clone();
        let change = core.checked_change(pod)?;
        core.refuse_known(&id)?;
        let (changes, origin) = (vec![change], Some(id.clone()));
        let request = Request { changes, conflict, origin, caller: Some(caller), ..Request::default() };
        let accepted = core.apply(request)?;
        Ok(Reply::json(&definition(known(core, &id)?))
            .with_status(StatusCode::CREATED)
            .with_deployment(&accepted)
            .with_location(format!("http://{host}/v2/pods{id}")))
    };
    settled(context.handle.call_stored(work).await)
}

async fn update(call: &Call, id: AppId, context: &Context) -> Answer {
    let mut value = call.json()?;
    if value.is_object() {
        value["id"] = id.as_str().into();
    }
    let (conflict, caller) = (call.conflict(Conflict::Refuse), caller(call, Post::PodUpdated));
    let work = move |core: &mut Core| {
        known(core, &id)?;
        let pod = read_pod(&value, core.clock.newest()).map_err(Refusal::BadJson)?;
        let changes = vec![core.checked_change(pod)?];
        let origin = Some(id.clone());
        let request = Request { changes, conflict, origin, caller: Some(caller), ..Request::default() };
        let accepted = core.apply(request)?;
        Ok(Reply::json(&definition(known(core, &id)?)).with_deployment(&accepted))
    };
    settled(context.handle.call_stored(work).await)
}

async fn remove(call: &Call, id: AppId, context: &Context) -> Answer {
    let (conflict, caller) = (call.conflict(Conflict::Refuse), caller(call, Post::PodDeleted));
    let work = move |core: &mut Core| {
        known(core, &id)?;
        let (changes, origin) = (vec![Change::Remove(id.clone())], Some(id));
        let request = Request { changes, conflict, origin, caller: Some(caller), ..Request::default() };
        Ok(Reply::empty(StatusCode::ACCEPTED).with_deployment(&core.apply(request)?))
    };
    settled(context.handle.call_stored(work).await)
}

async fn versions(id: AppId, context: &Context) -> Answer {
    let work = move |core: &mut Core| {
        let newest_first: Vec<&Timestamp> = known(core, &id)?.versions.keys().rev().collect();
        Ok(Reply::json(&json!(newest_first)))
    };
    settled(context.handle.call(work).await)
}

async fn one_version(id: AppId, version: String, context: &Context) -> Answer {
    let work = move |core: &mut Core| {
        let state = known(core, &id)?;
        let at = Timestamp::parse(&version).ok_or_else(|| Refusal::BadTimestamp(version.clone()))?;
        match state.versions.get(&at) {
            Some(pod) => Ok(Reply::json_text(pod.json().to_owned())),
            None => Err(Refusal::UnknownVersion(id, version).into()),
        }
    };
    settled(context.handle.call(work).await)
}

async fn kill(call: &Call, id: AppId, ids: Vec<String>, context: &Context) -> Answer {
    let conflict = call.conflict(Conflict::Refuse);
    let mode = if call.target.flag("wipe") { KillMode::Wipe } else { KillMode::Restart };
    let work = move |core: &mut Core| {
        let state = known(core, &id)?;
        let pod = state.app.pod.as_deref().ok_or_else(|| Refusal::UnknownPod(id.clone()))?;
        let meant = state.instances.values().filter(|i| ids.iter().any(|id| id == i.id.as_str()));
        let killed: Vec<Value> = meant.map(|instance| instance_status(core, pod, instance)).collect();
        core.kill_tasks(&ids, mode, conflict)?;
        Ok(Reply::json(&Value::Array(killed)))
    };
    settled(context.handle.call_stored(work).await)
}

async fn status_of_all(context: &Context) -> Answer {
    let work = |core: &mut Core| {
        let all: Vec<Value> = core.live_pods().map(|state| pod_status(core, state)).collect();
        Ok(Reply::json(&Value::Array(all)))
    };
    settled(context.handle.call(work).await)
}

async fn status_of_one(id: AppId, context: &Context) -> Answer {
    let work = move |core: &mut Core| Ok(Reply::json(&pod_status(core, known(core, &id)?)));
    settled(context.handle.call(work).await)
}

fn pod_status(core: &Core, state: &AppState) -> Value {
    let Some(pod) = state.app.pod.as_deref() else { return Value::Null };
    let n_stable = state.instances.values().filter(|i| condition(i) == "STABLE").count();
    let status = if n_stable == state.app.instances as usize { "STABLE" } else { "DEGRADED" };
    let since = |i: &Instance| i.started_at.or(i.staged_at);
    let changed = state.instances.values().filter_map(since).max().unwrap_or(state.app.version);
    let instances: Vec<Value> =
        state.instances.values().map(|instance| instance_status(core, pod, instance)).collect();
    json!({"id": state.app.id, "spec": definition(state), "status": status, "statusSince": changed,
        "instances": instances, "terminationHistory": termination_history(state), "lastUpdated": Timestamp::now(),
        "lastChanged": changed})
}

/// As Marathon keeps it: the last failure.
fn termination_history(state: &AppState) -> Vec<Value> {
    let Some(failure) = &state.last_failure else { return Vec::new() };
    let container = |id: &String| json!({"containerId": id, "lastKnownState": failure.state});
    let containers: Vec<Value> = failure.task_ids.iter().map(container).collect();
    vec![json!({"instanceID": failure.instance, "startedAt": failure.started_at, "terminatedAt": failure.at,
        "message": failure.message, "containers": containers})]
}

fn condition(instance: &Instance) -> &'static str {
    match (instance.condition, instance.healthy()) {
        (Condition::Scheduled | Condition::Provisioned, _) => "PENDING",
        (Condition::Starting, _) => "STAGING",
        (Condition::Killing, _) => "TERMINAL",
        (Condition::Running, Some(false)) => "DEGRADED",
        (Condition::Running, None) if !instance.checks.is_empty() => "DEGRADED",
        (Condition::Running, _) => "STABLE",
    }
}

fn instance_status(core: &Core, pod: &Pod, instance: &Instance) -> Value {
    let since = instance.started_at.or(instance.staged_at).unwrap_or(instance.app.version);
    let app = &instance.app;
    let mut status = json!({"id": instance.id, "status": condition(instance), "statusSince": since,
        "resources": {"cpus": app.cpus, "mem": app.mem, "disk": app.disk, "gpus": app.gpus},
        "networks": [], "containers": [], "localVolumes": [], "lastUpdated": since, "lastChanged": since,
        "specReference": format!("/v2/pods{}::versions/{}", app.id, app.version)});
    if !instance.is_task() {
        return status;
    }
    status["agentId"] = core.agent_id.as_str().into();
    status["agentHostname"] = core.settings.host.as_str().into();
    if app.network_mode() != NetworkMode::Host {
        let addresses: Vec<String> = instance.address.iter().map(ToString::to_string).collect();
        let network = |name: &Option<String>| json!({"name": name, "addresses": addresses});
        status["networks"] = app.networks.iter().map(|n| network(&n.name)).collect();
    }
    let host_ports = app.host_ports(&instance.ports);
    let ports = app.ports();
    let endpoint = |owner: usize| {
        let mine = ports.iter().enumerate().filter(move |(_, port)| port.owner == owner);
        mine.map(|(index, port)| {
            let mut endpoint = json!({"name": port.name});
            if let Some(Some(host_port)) = host_ports.get(index) {
                endpoint["allocatedHostPort"] = json!(host_port);
            }
            let check = app.health_checks.iter().position(|check| check.port_index == Some(index));
            if let Some(result) = check.and_then(|check| instance.checks[check].as_ref()) {
                endpoint["healthy"] = result.alive.into();
            }
            endpoint
        })
        .collect::<Vec<Value>>()
    };
    let containers = pod.containers.iter().enumerate().zip(instance.task_ids());
    status["containers"] = containers
        .map(|((index, container), task_id)| {
            json!({"name": container.name, "status": instance.condition.task_state(), "statusSince": since,
                "containerId": task_id, "conditions": [], "endpoints": endpoint(index),
                "resources": {"cpus": container.cpus, "mem": container.mem, "disk": container.disk,
                    "gpus": container.gpus},
                "lastUpdated": since, "lastChanged": since})
        })
        .collect();
    status
}
