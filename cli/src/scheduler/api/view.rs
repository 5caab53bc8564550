//! Apps and tasks as Marathon lists them.
//!
//! Not here: definitions (`App::json`), nor choosing what to list.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use super::request::Target;
use crate::scheduler::core::instance::{CheckResult, Condition, Instance};
use crate::scheduler::core::statistics::{TaskCounts, task_stats};
use crate::scheduler::core::{AppState, Core, ip_addresses};
use crate::scheduler::id::{AppId, InstanceId};
use crate::scheduler::timestamp::Timestamp;

/// Which optional parts of an app are listed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embed {
    pub tasks: bool,
    pub counts: bool,
    pub deployments: bool,
    pub readiness: bool,
    pub last_failure: bool,
    pub stats: bool,
}

impl Embed {
    /// What a list of apps always has, and what the request asks for besides.
    pub fn for_list(target: &Target) -> Self {
        let mut embed = Self { counts: true, deployments: true, ..Self::default() };
        for name in target.all("embed") {
            let name =
                name.rsplit_once("apps.").or_else(|| name.rsplit_once("app.")).map_or(name, |(_, n)| n);
            match name {
                "tasks" => embed.tasks = true,
                "readiness" => embed.readiness = true,
                "lastTaskFailure" => embed.last_failure = true,
                "taskStats" => embed.stats = true,
                "failures" => (embed.tasks, embed.last_failure) = (true, true),
                _ => {}
            }
        }
        embed
    }

    /// What a single app always has.
    pub fn for_one(target: &Target) -> Self {
        Self { tasks: true, last_failure: true, ..Self::for_list(target) }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TaskView<'a> {
    id: String,
    app_id: &'a AppId,
    host: &'a str,
    slave_id: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    version: Timestamp,
    ports: &'a [u16],
    ip_addresses: Cow<'a, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_ports: Option<Vec<u16>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    health_check_results: Vec<CheckView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckView<'a> {
    #[serde(flatten)]
    result: &'a CheckResult,
    instance_id: &'a InstanceId,
}

/// What all tasks of a listing share.
pub struct TaskWriter<'a> {
    core: &'a Core,
    addresses: Value,
    with_service_ports: ServicePorts,
}

/// Only `/v2/tasks` shows them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ServicePorts {
    Shown,
    Hidden,
}

impl<'a> TaskWriter<'a> {
    pub fn new(core: &'a Core, with_service_ports: ServicePorts) -> Self {
        Self { core, addresses: ip_addresses(&core.settings.host, None), with_service_ports }
    }

    fn view<'b>(&'b self, instance: &'b Instance) -> TaskView<'b> {
        let results = instance.checks.iter().flatten();
        TaskView {
            id: instance.task_id(),
            app_id: &instance.app.id,
            host: &self.core.settings.host,
            slave_id: &self.core.agent_id,
            state: instance.condition.task_state(),
            staged_at: instance.staged_at,
            started_at: instance.started_at,
            version: instance.app.version,
            ports: &instance.ports,
            ip_addresses: match instance.address {
                None => Cow::Borrowed(&self.addresses),
                own => Cow::Owned(ip_addresses(&self.core.settings.host, own)),
            },
            service_ports: (self.with_service_ports == ServicePorts::Shown)
                .then(|| instance.app.service_ports()),
            health_check_results: results
                .map(|result| CheckView { result, instance_id: &instance.id })
                .collect(),
        }
    }

    pub fn json(&self, instance: &Instance) -> Value {
        serde_json::to_value(self.view(instance)).expect("a task has text keys and no floats")
    }

    /// Appends the tasks, separated by commas.
    pub fn write<'b>(&self, instances: impl Iterator<Item = &'b Instance>, out: &mut Vec<u8>) {
        for (index, instance) in instances.filter(|i| i.is_task()).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut *out, &self.view(instance)).expect("writing to memory does not fail");
        }
    }
}

/// Appends the app with everything asked for.
pub fn write_app(state: &AppState, tasks: &TaskWriter<'_>, embed: Embed, out: &mut Vec<u8>) {
    out.extend_from_slice(state.app.json_open().as_bytes());
    if embed.counts {
        let TaskCounts { staged, running, healthy, unhealthy } = TaskCounts::of(state.instances.values());
        let counts = format!(
            ",\"tasksStaged\":{staged},\"tasksRunning\":{running},\"tasksHealthy\":{healthy},\"tasksUnhealthy\":{unhealthy}"
        );
        out.extend_from_slice(counts.as_bytes());
    }
    if embed.deployments {
        out.extend_from_slice(b",\"deployments\":[");
        for (index, id) in tasks.core.deployments_of(&state.app.id).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            out.extend_from_slice(format!("{comma}{{\"id\":\"{id}\"}}").as_bytes());
        }
        out.push(b']');
    }
    if embed.readiness {
        let results = readiness_results(state);
        out.extend_from_slice(format!(",\"readinessCheckResults\":{results}").as_bytes());
    }
    if embed.stats {
        let stats = task_stats(state, Timestamp::now());
        out.extend_from_slice(format!(",\"taskStats\":{stats}").as_bytes());
    }
    if let Some(failure) = state.last_failure.as_ref().filter(|_| embed.last_failure) {
        let core = tasks.core;
        let failure = json!({"appId": state.app.id, "host": core.settings.host, "message": failure.message,
            "state": failure.state, "taskId": failure.task_ids.first(), "timestamp": failure.at,
            "version": failure.version, "slaveId": core.agent_id});
        out.extend_from_slice(format!(",\"lastTaskFailure\":{failure}").as_bytes());
    }
    if embed.tasks {
        out.extend_from_slice(b",\"tasks\":[");
        tasks.write(state.instances.values(), out);
        out.push(b']');
    }
    out.push(b'}');
}

pub fn readiness_results(state: &AppState) -> Value {
    let Some(check) = state.app.readiness_check() else { return json!([]) };
    let running = state.instances.values().filter(|i| i.condition == Condition::Running);
    running
        .map(|instance| {
            let mut result =
                json!({"name": check.name, "taskId": instance.task_id(), "ready": instance.readiness.ready});
            if let Some(response) = &instance.readiness.last_response {
                result["lastResponse"] = json!(response);
            }
            result
        })
        .collect()
}
