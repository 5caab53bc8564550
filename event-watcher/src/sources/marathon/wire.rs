//! Marathon's JSON as a lenient reader sees it: 1.1 to 1.10, `null` is the same as absent, unknown keys are read over.
//!
//! Only what the catalog needs is here. A wrong type in an app fails that app; a wrong type in a task, that task.

pub(crate) mod pod;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// `GET /v2/leader`.
#[derive(Deserialize)]
pub(crate) struct Leader {
    pub leader: String,
}

/// `GET /v2/apps/{id}`.
#[derive(Deserialize)]
pub(crate) struct SingleApp<'a> {
    #[serde(borrow)]
    pub app: &'a RawValue,
}

/// The id alone, for an app or task that cannot be read otherwise.
#[derive(Deserialize)]
pub(crate) struct IdOnly {
    pub id: String,
}

/// `GET /v2/info`, as far as it matters.
#[derive(Deserialize)]
pub(crate) struct Info {
    /// `host:port` of the leading Marathon.
    pub leader: Option<String>,
    pub marathon_config: Option<InfoConfig>,
}

#[derive(Default, Deserialize)]
pub(crate) struct InfoConfig {
    pub framework_name: Option<String>,
    /// Where the leading Mesos master is, unless somebody configured a page for people.
    pub mesos_leader_ui_url: Option<String>,
}

/// Any error answer; only its presence tells Marathon's own 404 from a proxy's.
#[derive(Deserialize)]
pub(crate) struct ErrorMessage {
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct App<'a> {
    pub id: String,
    pub version: Option<String>,
    pub instances: Option<u32>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
    pub networks: Option<Vec<Network>>,
    /// 1.4: IP per task.
    pub ip_address: Option<IpAddress>,
    pub container: Option<Container>,
    pub port_definitions: Option<Vec<PortDefinition>>,
    /// Before port definitions: service ports alone.
    pub ports: Option<Vec<u32>>,
    pub health_checks: Option<Vec<HealthCheck>>,
    pub readiness_checks: Option<Vec<IgnoredAny>>,
    pub readiness_check_results: Option<Vec<ReadinessResult>>,
    pub deployments: Option<Vec<Deployment>>,
    #[serde(borrow)]
    pub tasks: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
pub(crate) struct Network {
    pub mode: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct IpAddress {
    pub discovery: Option<Discovery>,
}

#[derive(Deserialize)]
pub(crate) struct Discovery {
    pub ports: Option<Vec<DiscoveryPort>>,
}

#[derive(Deserialize)]
pub(crate) struct DiscoveryPort {
    pub number: Option<u32>,
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub docker: Option<Docker>,
    pub port_mappings: Option<Vec<PortMapping>>,
}

/// 1.4 keeps the network and its mappings here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Docker {
    pub network: Option<String>,
    pub port_mappings: Option<Vec<PortMapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub container_port: Option<u32>,
    pub host_port: Option<u32>,
    pub service_port: Option<u32>,
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
pub(crate) struct PortDefinition {
    pub port: Option<u32>,
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HealthCheck {
    pub protocol: Option<String>,
    pub path: Option<String>,
    pub port_index: Option<u32>,
    pub port: Option<u32>,
    pub grace_period_seconds: Option<u32>,
    pub interval_seconds: Option<u32>,
    pub timeout_seconds: Option<u32>,
    pub max_consecutive_failures: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadinessResult {
    pub task_id: Option<String>,
    pub ready: Option<bool>,
}

#[derive(Deserialize)]
pub(crate) struct Deployment {
    pub id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Task {
    pub id: String,
    pub host: Option<String>,
    pub slave_id: Option<String>,
    pub state: Option<String>,
    pub started_at: Option<String>,
    pub version: Option<String>,
    pub ports: Option<Vec<u32>>,
    pub ip_addresses: Option<Vec<TaskAddress>>,
    /// 1.3 and before write `null` for a check without a result.
    pub health_check_results: Option<Vec<Option<HealthResult>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskAddress {
    pub ip_address: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct HealthResult {
    pub alive: Option<bool>,
}

/// The body of any event, as far as it says which app to look at again.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    pub event_type: Option<String>,
    pub app_id: Option<String>,
    pub run_spec_id: Option<String>,
    pub group_id: Option<String>,
    pub app_definition: Option<IdOnly>,
    pub task_id: Option<String>,
    pub instance_id: Option<String>,
    pub task_status: Option<String>,
    pub condition: Option<String>,
    pub alive: Option<bool>,
    pub healthy: Option<bool>,
    pub plan: Option<Plan>,
    pub current_step: Option<Step>,
}

/// Heavy plans also carry `original` and `target`; both are read over.
#[derive(Deserialize)]
pub(crate) struct Plan {
    pub steps: Option<Vec<Step>>,
}

#[derive(Deserialize)]
pub(crate) struct Step {
    pub actions: Option<Vec<StepAction>>,
}

/// Names an app or a pod.
#[derive(Deserialize)]
pub(crate) struct StepAction {
    pub app: Option<String>,
    pub pod: Option<String>,
}
