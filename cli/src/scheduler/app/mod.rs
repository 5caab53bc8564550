//! An app definition, complete and normalised, and how Marathon writes it.
//!
//! Not here: reading one (`input`), judging one (`validate`), and what runs of it (`core`).

pub mod checks;
pub mod container;
pub mod fields;
pub mod input;
pub mod pod;
pub mod ports;
#[cfg(test)]
mod tests;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

pub use self::checks::{HealthCheck, Protocol, ReadinessCheck};
pub use self::container::{Container, EnvValue, Fetch, Network, NetworkMode, Secret};
use self::pod::Pod;
pub use self::ports::PortDefinition;

use super::id::AppId;
use super::timestamp::Timestamp;

/// A definition is never changed once it is shared: every change makes a new version.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    pub id: AppId,
    pub cmd: Option<String>,
    pub args: Option<Vec<String>>,
    pub user: Option<String>,
    pub env: BTreeMap<String, EnvValue>,
    pub instances: u32,
    #[serde(serialize_with = "number")]
    pub cpus: f64,
    /// In MiB, as everywhere in Marathon.
    #[serde(serialize_with = "number")]
    pub mem: f64,
    #[serde(serialize_with = "number")]
    pub disk: f64,
    pub gpus: u32,
    pub executor: String,
    pub constraints: Vec<Vec<String>>,
    pub fetch: Vec<Fetch>,
    #[serde(serialize_with = "number")]
    pub backoff_seconds: f64,
    #[serde(serialize_with = "number")]
    pub backoff_factor: f64,
    #[serde(serialize_with = "number")]
    pub max_launch_delay_seconds: f64,
    pub container: Option<Container>,
    pub health_checks: Vec<HealthCheck>,
    pub readiness_checks: Vec<ReadinessCheck>,
    pub dependencies: Vec<AppId>,
    pub upgrade_strategy: UpgradeStrategy,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_resource_roles: Option<Vec<String>>,
    pub secrets: BTreeMap<String, Secret>,
    /// Never empty.
    pub networks: Vec<Network>,
    /// On the host's network only; otherwise the container maps its ports.
    #[serde(skip)]
    pub port_definitions: Vec<PortDefinition>,
    pub require_ports: bool,
    pub kill_selection: KillSelection,
    pub unreachable_strategy: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_kill_grace_period_seconds: Option<u32>,
    /// Keys that only a cluster acts on (`residency`, `tty`, …), as they were written.
    #[serde(flatten)]
    pub passed_on: Map<String, Value>,
    pub version: Timestamp,
    pub version_info: VersionInfo,
    /// What this really is, when it is a pod; then the other fields follow from it.
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
    #[serde(skip)]
    rendered: Rendered,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    pub last_scaling_at: Timestamp,
    pub last_config_change_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeStrategy {
    #[serde(serialize_with = "number")]
    pub minimum_health_capacity: f64,
    #[serde(serialize_with = "number")]
    pub maximum_over_capacity: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KillSelection {
    #[serde(rename = "YOUNGEST_FIRST")]
    YoungestFirst,
    #[serde(rename = "OLDEST_FIRST")]
    OldestFirst,
}

/// The definition as JSON, written once per version.
#[derive(Debug, Default)]
struct Rendered(OnceLock<String>);

impl Clone for Rendered {
    /// A copy is made to be changed, so it starts without text.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What an app on the host's network has besides.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnHost<'a> {
    #[serde(flatten)]
    app: &'a App,
    ports: Vec<u16>,
    port_definitions: &'a [PortDefinition],
}

impl App {
    /// An app with Marathon's defaults (spec 6.3).
    pub fn with_defaults(id: AppId, now: Timestamp) -> Self {
        Self {
            id,
            cmd: None,
            args: None,
            user: None,
            env: BTreeMap::new(),
            instances: 1,
            cpus: 1.0,
            mem: 128.0,
            disk: 0.0,
            gpus: 0,
            executor: String::new(),
            constraints: Vec::new(),
            fetch: Vec::new(),
            backoff_seconds: 1.0,
            backoff_factor: 1.15,
            max_launch_delay_seconds: 300.0,
            container: None,
            health_checks: Vec::new(),
            readiness_checks: Vec::new(),
            dependencies: Vec::new(),
            upgrade_strategy: UpgradeStrategy { minimum_health_capacity: 1.0, maximum_over_capacity: 1.0 },
            labels: BTreeMap::new(),
            accepted_resource_roles: None,
            secrets: BTreeMap::new(),
            networks: vec![Network::default()],
            port_definitions: ports::default_definitions(),
            require_ports: false,
            kill_selection: KillSelection::YoungestFirst,
            unreachable_strategy: serde_json::json!({"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0}),
            task_kill_grace_period_seconds: None,
            passed_on: Map::new(),
            version: now,
            version_info: VersionInfo { last_scaling_at: now, last_config_change_at: now },
            pod: None,
            rendered: Rendered::default(),
        }
    }

    /// The definition as one JSON object, without anything about what runs.
    pub fn json(&self) -> &str {
        self.rendered.0.get_or_init(|| {
            let text = match (&self.pod, self.network_mode()) {
                (Some(pod), _) => Ok(pod.json(self)),
                (None, NetworkMode::Host) => serde_json::to_string(&OnHost {
                    app: self,
                    ports: self.service_ports(),
                    port_definitions: &self.port_definitions,
                }),
                (None, _) => serde_json::to_string(self),
            };
            text.expect("a definition has text keys and finite numbers only")
        })
    }

    /// The same without the closing brace, for a listing that adds its own keys.
    pub fn json_open(&self) -> &str {
        let json = self.json();
        &json[..json.len() - 1]
    }

    /// Whether going from `self` to `next` needs new instances: everything but the count and the version does.
    pub fn needs_restart_for(&self, next: &App) -> bool {
        let mut same_count = next.clone();
        same_count.instances = self.instances;
        same_count.version = self.version;
        same_count.version_info = self.version_info;
        same_count.json() != self.json()
    }

    pub fn backoff(&self) -> Duration {
        Duration::from_secs_f64(self.backoff_seconds)
    }

    pub fn max_launch_delay(&self) -> Duration {
        Duration::from_secs_f64(self.max_launch_delay_seconds)
    }

    pub fn is_pod(&self) -> bool {
        self.pod.is_some()
    }

    pub fn network_mode(&self) -> NetworkMode {
        self.networks.first().map_or(NetworkMode::Host, |network| network.mode)
    }

    pub fn readiness_check(&self) -> Option<&ReadinessCheck> {
        self.readiness_checks.first()
    }
}

/// Marathon writes `1`, not `1.0`; the `marathon` Python client compares such numbers as text.
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}
