//! An app definition, complete and normalised, and how Marathon writes it.
//!
//! Not here: reading one (`input`), judging one (`validate`), and what runs of it (`core`).

pub mod input;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

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
    pub env: BTreeMap<String, String>,
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
    pub fetch: Vec<Value>,
    #[serde(serialize_with = "number")]
    pub backoff_seconds: f64,
    #[serde(serialize_with = "number")]
    pub backoff_factor: f64,
    #[serde(serialize_with = "number")]
    pub max_launch_delay_seconds: f64,
    pub container: Option<Value>,
    pub health_checks: Vec<HealthCheck>,
    pub readiness_checks: Vec<ReadinessCheck>,
    pub dependencies: Vec<AppId>,
    pub upgrade_strategy: UpgradeStrategy,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_resource_roles: Option<Vec<String>>,
    pub port_definitions: Vec<PortDefinition>,
    pub require_ports: bool,
    pub kill_selection: KillSelection,
    pub unreachable_strategy: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_kill_grace_period_seconds: Option<u32>,
    pub version: Timestamp,
    pub version_info: VersionInfo,
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

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortDefinition {
    /// The service port; 0 only until one has been assigned.
    pub port: u16,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KillSelection {
    #[serde(rename = "YOUNGEST_FIRST")]
    YoungestFirst,
    #[serde(rename = "OLDEST_FIRST")]
    OldestFirst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Https,
    Tcp,
    Command,
}

/// One health check. `wire_protocol` keeps the spelling of the input (`MESOS_HTTP` stays `MESOS_HTTP`).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    #[serde(rename = "protocol")]
    pub wire_protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CheckCommand>,
    pub grace_period_seconds: u32,
    pub interval_seconds: u32,
    pub timeout_seconds: u32,
    pub max_consecutive_failures: u32,
    pub delay_seconds: u32,
    pub ignore_http1xx: bool,
    pub ip_protocol: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckCommand {
    pub value: String,
}

impl HealthCheck {
    pub fn protocol(&self) -> Protocol {
        match self.wire_protocol.trim_start_matches("MESOS_") {
            "TCP" => Protocol::Tcp,
            "HTTPS" => Protocol::Https,
            "COMMAND" => Protocol::Command,
            _ => Protocol::Http,
        }
    }

    /// Whether Marathon itself makes the check; otherwise it runs next to the task and sends other events.
    pub fn is_marathon_level(&self) -> bool {
        self.wire_protocol != "COMMAND" && !self.wire_protocol.starts_with("MESOS_")
    }

    /// Failures in a row after which the instance is killed, `None`: never (spec 6.4).
    pub fn kill_at(&self) -> Option<u32> {
        match (self.max_consecutive_failures, self.is_marathon_level()) {
            (0, true) => None,
            (max, true) => Some(max + 1),
            (max, false) => Some(max.max(1)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessCheck {
    pub name: String,
    pub protocol: String,
    pub path: String,
    pub port_name: String,
    pub interval_seconds: u32,
    pub timeout_seconds: u32,
    pub http_status_codes_for_ready: Vec<u16>,
    pub preserve_last_response: bool,
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

#[derive(Serialize)]
struct Complete<'a> {
    #[serde(flatten)]
    app: &'a App,
    networks: [Network; 1],
    ports: Vec<u16>,
    secrets: BTreeMap<(), ()>,
}

#[derive(Serialize)]
struct Network {
    mode: &'static str,
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
            port_definitions: vec![PortDefinition {
                port: 0,
                protocol: "tcp".into(),
                name: Some("default".into()),
                labels: BTreeMap::new(),
            }],
            require_ports: false,
            kill_selection: KillSelection::YoungestFirst,
            unreachable_strategy: serde_json::json!({"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0}),
            task_kill_grace_period_seconds: None,
            version: now,
            version_info: VersionInfo { last_scaling_at: now, last_config_change_at: now },
            rendered: Rendered::default(),
        }
    }

    /// The definition as one JSON object, without anything about what runs.
    pub fn json(&self) -> &str {
        self.rendered.0.get_or_init(|| {
            let complete = Complete {
                app: self,
                networks: [Network { mode: "host" }],
                ports: self.service_ports(),
                secrets: BTreeMap::new(),
            };
            serde_json::to_string(&complete).expect("a definition has text keys and finite numbers only")
        })
    }

    /// The same without the closing brace, for a listing that adds its own keys.
    pub fn json_open(&self) -> &str {
        let json = self.json();
        &json[..json.len() - 1]
    }

    pub fn service_ports(&self) -> Vec<u16> {
        self.port_definitions.iter().map(|definition| definition.port).collect()
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
