//! Reads an app definition or a part of one from JSON, as leniently as Marathon: `null` is the same as
//! absent, unknown and read-only keys are ignored, deprecated spellings are turned into today's.
//!
//! Not here: whether the result makes sense (`validate`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::checks::{read_health_check, read_readiness_check};
use super::container::{
    ContainerKind, PortMapping, ReadContainer, fetch_of_uri, read_container, read_fetch, read_ip_address,
    read_network, read_secrets, read_unreachable,
};
use super::fields::{FieldError, Fields, integer, or_root, texts};
use super::ports::{PortDefinition, default_definitions, default_mappings, read_port_definition};
use super::{
    App, Container, EnvValue, Fetch, HealthCheck, KillSelection, Network, NetworkMode, ReadinessCheck,
    Secret, UpgradeStrategy, VersionInfo,
};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// Keys that are kept as they were written, because only a cluster acts on them.
const PASSED_ON: [&str; 6] = ["residency", "role", "tty", "check", "executorResources", "resourceLimits"];

/// The supplied fields of an app; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct AppUpdate {
    pub id: Option<String>,
    pub version: Option<String>,
    pub version_info: Option<(Timestamp, Timestamp)>,
    /// Supplied keys that mean something, to tell a rollback (`version`) from a change.
    pub n_fields: usize,
    pub cmd: Option<String>,
    pub args: Option<Vec<String>>,
    pub user: Option<String>,
    pub env: Option<BTreeMap<String, EnvValue>>,
    pub instances: Option<u32>,
    pub cpus: Option<f64>,
    pub mem: Option<f64>,
    pub disk: Option<f64>,
    pub gpus: Option<u32>,
    pub executor: Option<String>,
    pub constraints: Option<Vec<Vec<String>>>,
    pub fetch: Option<Vec<Fetch>>,
    pub backoff_seconds: Option<f64>,
    pub backoff_factor: Option<f64>,
    pub max_launch_delay_seconds: Option<f64>,
    pub container: Option<ReadContainer>,
    pub networks: Option<Vec<Network>>,
    pub ip_address: Option<(Network, Vec<PortMapping>)>,
    pub health_checks: Option<Vec<HealthCheck>>,
    pub readiness_checks: Option<Vec<ReadinessCheck>>,
    pub dependencies: Option<Vec<String>>,
    pub upgrade_strategy: Option<(Option<f64>, Option<f64>)>,
    pub labels: Option<BTreeMap<String, String>>,
    pub accepted_resource_roles: Option<Vec<String>>,
    pub secrets: Option<BTreeMap<String, Secret>>,
    pub port_definitions: Option<Vec<PortDefinition>>,
    pub require_ports: Option<bool>,
    pub kill_selection: Option<KillSelection>,
    pub unreachable_strategy: Option<Value>,
    pub task_kill_grace_period_seconds: Option<u32>,
    pub passed_on: Map<String, Value>,
}

/// Reads one app object. `path` is where it stands in the request (empty, or `/apps(0)`).
pub fn read_app(value: &Value, path: &str) -> Result<AppUpdate, Vec<FieldError>> {
    let mut errors = Vec::new();
    let Value::Object(map) = value else {
        return Err(vec![FieldError::new(or_root(path), "error.expected.jsobject")]);
    };
    let mut fields = Fields { path: path.to_owned(), map, errors: &mut errors };
    let update = read_fields(&mut fields);
    if errors.is_empty() { Ok(update) } else { Err(errors) }
}

fn read_fields(fields: &mut Fields<'_>) -> AppUpdate {
    let n_fields = fields.others(&["id", "version"]).len();
    let mut update = AppUpdate {
        id: fields.text("id"),
        version: fields.text("version"),
        version_info: fields.nested("versionInfo", |f| {
            let scaling = f.text("lastScalingAt").as_deref().and_then(Timestamp::parse);
            scaling.zip(f.text("lastConfigChangeAt").as_deref().and_then(Timestamp::parse))
        }),
        n_fields,
        cmd: fields.text("cmd"),
        args: fields.texts("args").filter(|args| !args.is_empty()),
        user: fields.text("user"),
        env: fields.environment("env"),
        instances: fields.unsigned("instances"),
        cpus: fields.number("cpus"),
        mem: fields.number("mem"),
        disk: fields.number("disk"),
        gpus: fields.unsigned("gpus"),
        executor: fields.text("executor"),
        constraints: fields.list("constraints", texts),
        fetch: read_fetches(fields),
        backoff_seconds: fields.number("backoffSeconds"),
        backoff_factor: fields.number("backoffFactor"),
        max_launch_delay_seconds: fields.number("maxLaunchDelaySeconds"),
        container: fields.nested("container", read_container),
        networks: fields.list("networks", read_network).filter(|networks| !networks.is_empty()),
        ip_address: fields.nested("ipAddress", read_ip_address),
        health_checks: fields.list("healthChecks", read_health_check),
        readiness_checks: fields.list("readinessChecks", read_readiness_check),
        dependencies: fields.texts("dependencies"),
        upgrade_strategy: fields.nested("upgradeStrategy", |f| {
            Some((f.number("minimumHealthCapacity"), f.number("maximumOverCapacity")))
        }),
        labels: fields.text_map("labels"),
        accepted_resource_roles: fields.texts("acceptedResourceRoles"),
        secrets: read_secrets(fields),
        port_definitions: read_ports(fields),
        require_ports: fields.boolean("requirePorts"),
        kill_selection: read_kill_selection(fields),
        unreachable_strategy: read_unreachable(fields),
        task_kill_grace_period_seconds: fields.unsigned("taskKillGracePeriodSeconds"),
        passed_on: Map::new(),
    };
    for key in PASSED_ON {
        if let Some(value) = fields.value(key) {
            update.passed_on.insert(key.to_owned(), value.clone());
        }
    }
    if update.ip_address.is_some() && update.networks.is_some() {
        fields.error("ipAddress", "must not specify both networks and ipAddress");
    }
    update
}

pub(super) fn read_kill_selection(fields: &mut Fields<'_>) -> Option<KillSelection> {
    fields.choice("killSelection", &["YOUNGEST_FIRST", "OLDEST_FIRST"]).map(|choice| match choice.as_str() {
        "OLDEST_FIRST" => KillSelection::OldestFirst,
        _ => KillSelection::YoungestFirst,
    })
}

/// `portDefinitions`, or the bare numbers of `ports`.
fn read_ports(fields: &mut Fields<'_>) -> Option<Vec<PortDefinition>> {
    let numbers = fields.list("ports", |item, path, errors| integer(item, path, errors, u16::MAX.into()));
    let from_numbers = numbers.map(|numbers| {
        let definition = |port: u64| PortDefinition {
            port: port as u16,
            protocol: "tcp".into(),
            name: None,
            labels: BTreeMap::new(),
        };
        numbers.into_iter().map(definition).collect()
    });
    fields.list("portDefinitions", read_port_definition).or(from_numbers)
}

fn read_fetches(fields: &mut Fields<'_>) -> Option<Vec<Fetch>> {
    let uris = fields.texts("uris").filter(|uris| !uris.is_empty());
    let fetch = fields.list("fetch", read_fetch);
    if uris.is_some() && fetch.as_ref().is_some_and(|fetch| !fetch.is_empty()) {
        fields.error("uris", "cannot specify both uris and fetch fields");
    }
    uris.map(|uris| uris.into_iter().map(fetch_of_uri).collect()).or(fetch)
}

impl AppUpdate {
    /// `base` with the supplied fields replaced. Maps and lists are replaced whole, as in Marathon.
    pub fn apply(&self, base: &App) -> Result<App, Vec<FieldError>> {
        let mut app = base.clone();
        macro_rules! take {
            ($($field:ident),*) => { $(if let Some(value) = &self.$field { app.$field = value.clone(); })* };
        }
        take!(env, instances, cpus, mem, disk, gpus, executor, constraints, fetch, backoff_seconds);
        take!(backoff_factor, max_launch_delay_seconds, health_checks, readiness_checks, labels, secrets);
        take!(require_ports, kill_selection, unreachable_strategy);
        macro_rules! take_optional {
            ($($field:ident),*) => { $(if self.$field.is_some() { app.$field = self.$field.clone(); })* };
        }
        take_optional!(user, accepted_resource_roles, task_kill_grace_period_seconds);
        app.passed_on.extend(self.passed_on.clone());
        // The two exclude each other, so setting one of them alone takes the other out.
        match (&self.cmd, &self.args) {
            (None, None) => {}
            (cmd, args) => (app.cmd, app.args) = (cmd.clone(), args.clone()),
        }
        if let Some((health, over)) = self.upgrade_strategy {
            app.upgrade_strategy = UpgradeStrategy {
                minimum_health_capacity: health.unwrap_or(1.0),
                maximum_over_capacity: over.unwrap_or(1.0),
            };
        }
        if let Some(dependencies) = &self.dependencies {
            app.dependencies = dependencies
                .iter()
                .map(|id| {
                    AppId::parse_in(app.id.group(), id).map_err(|e| vec![FieldError::new("/dependencies", e)])
                })
                .collect::<Result<_, _>>()?;
        }
        self.connect(&mut app);
        Ok(app)
    }

    /// Container, networks and ports, which depend on each other.
    fn connect(&self, app: &mut App) {
        let mode_before = app.network_mode();
        if let Some(read) = &self.container {
            app.container = Some(read.container.clone());
        }
        let asked = self.networks.clone().or_else(|| {
            let (network, _) = self.ip_address.as_ref()?;
            Some(vec![network.clone()])
        });
        let of_docker = self.container.as_ref().and_then(|read| read.network);
        let maps_ports = self.container.as_ref().is_some_and(|read| read.container.port_mappings.is_some());
        match (asked, of_docker) {
            (Some(networks), _) => app.networks = networks,
            (None, Some(mode)) => app.networks = vec![Network { mode, ..Network::default() }],
            // Mapped ports mean nothing on the host's network.
            (None, None) if maps_ports && app.network_mode() == NetworkMode::Host => {
                app.networks = vec![Network { mode: NetworkMode::Bridge, ..Network::default() }];
            }
            (None, None) => {}
        }
        if app.network_mode() == NetworkMode::Host {
            if let Some(container) = &mut app.container {
                container.port_mappings = None;
            }
            match &self.port_definitions {
                Some(definitions) => app.port_definitions = definitions.clone(),
                None if mode_before != NetworkMode::Host => {
                    app.port_definitions = default_definitions();
                }
                None => {}
            }
            return;
        }
        // A GET shows no ports in these modes; who sends some back means the mappings.
        app.port_definitions = Vec::new();
        let container = app.container.get_or_insert(Container {
            kind: ContainerKind::Mesos,
            docker: None,
            volumes: Vec::new(),
            port_mappings: None,
        });
        let of_address = self.ip_address.as_ref().map(|(_, mappings)| mappings.clone());
        if container.port_mappings.is_none() {
            container.port_mappings = of_address.or_else(|| Some(default_mappings()));
        }
        let bridged = app.network_mode() == NetworkMode::Bridge;
        for mapping in app.container.iter_mut().flat_map(|c| c.port_mappings.iter_mut().flatten()) {
            if bridged {
                mapping.host_port.get_or_insert(0);
            }
        }
    }

    /// The stored form: everything, with the version and its history.
    pub fn restore(&self, id: AppId) -> Result<App, Vec<FieldError>> {
        let version = self.version.as_deref().and_then(Timestamp::parse);
        let version = version.ok_or_else(|| vec![FieldError::new("/version", "error.expected.date")])?;
        let mut app = self.apply(&App::with_defaults(id, version))?;
        if let Some((last_scaling_at, last_config_change_at)) = self.version_info {
            app.version_info = VersionInfo { last_scaling_at, last_config_change_at };
        }
        Ok(app)
    }
}
