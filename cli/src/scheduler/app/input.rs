//! Reads an app definition or a part of one from JSON, as leniently as Marathon: `null` is the same as
//! absent, unknown and read-only keys are ignored, deprecated spellings are turned into today's.
//!
//! Not here: whether the result makes sense (`validate`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    App, CheckCommand, HealthCheck, KillSelection, PortDefinition, ReadinessCheck, UpgradeStrategy,
    VersionInfo,
};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// One entry of the `details` of Marathon's 422.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub path: String,
    pub errors: Vec<String>,
}

impl FieldError {
    pub fn new(path: impl Into<String>, error: impl Into<String>) -> Self {
        Self { path: path.into(), errors: vec![error.into()] }
    }
}

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
    pub env: Option<BTreeMap<String, String>>,
    pub instances: Option<u32>,
    pub cpus: Option<f64>,
    pub mem: Option<f64>,
    pub disk: Option<f64>,
    pub gpus: Option<u32>,
    pub executor: Option<String>,
    pub constraints: Option<Vec<Vec<String>>>,
    pub fetch: Option<Vec<Value>>,
    pub backoff_seconds: Option<f64>,
    pub backoff_factor: Option<f64>,
    pub max_launch_delay_seconds: Option<f64>,
    pub container: Option<Value>,
    pub network_modes: Vec<String>,
    pub health_checks: Option<Vec<HealthCheck>>,
    pub readiness_checks: Option<Vec<ReadinessCheck>>,
    pub dependencies: Option<Vec<String>>,
    pub upgrade_strategy: Option<(Option<f64>, Option<f64>)>,
    pub labels: Option<BTreeMap<String, String>>,
    pub accepted_resource_roles: Option<Vec<String>>,
    pub port_definitions: Option<Vec<PortDefinition>>,
    pub require_ports: Option<bool>,
    pub kill_selection: Option<KillSelection>,
    pub unreachable_strategy: Option<Value>,
    pub task_kill_grace_period_seconds: Option<u32>,
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

fn or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

fn read_fields(fields: &mut Fields<'_>) -> AppUpdate {
    let ports = fields.list("ports", |item, path, errors| integer(item, path, errors, u16::MAX.into()));
    let from_ports = ports.map(|ports| {
        let definition = |port: u64| PortDefinition {
            port: port as u16,
            protocol: "tcp".into(),
            name: None,
            labels: BTreeMap::new(),
        };
        ports.into_iter().map(definition).collect()
    });
    let uris = fields.texts("uris").filter(|uris| !uris.is_empty());
    let fetch = fields
        .list("fetch", |item, _, _| Some(item.clone()))
        .or_else(|| uris.map(|uris| uris.into_iter().map(|uri| serde_json::json!({"uri": uri})).collect()));
    let container = fields.object("container").map(|map| Value::Object(without_nulls(map)));
    let mut network_modes: Vec<String> = fields
        .list("networks", |item, path, errors| {
            Fields::of(item, path, errors).and_then(|mut f| f.text("mode"))
        })
        .unwrap_or_default();
    if let Some(network) =
        container.as_ref().and_then(|c| c.pointer("/docker/network")).and_then(Value::as_str)
    {
        network_modes.push(network.to_ascii_lowercase());
    }
    if fields.object("ipAddress").is_some() {
        network_modes.push("container".into());
    }
    let n_fields = fields
        .map
        .iter()
        .filter(|(key, value)| !value.is_null() && !matches!(key.as_str(), "id" | "version"))
        .count();
    AppUpdate {
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
        env: fields.text_map("env"),
        instances: fields.unsigned("instances"),
        cpus: fields.number("cpus"),
        mem: fields.number("mem"),
        disk: fields.number("disk"),
        gpus: fields.unsigned("gpus"),
        executor: fields.text("executor"),
        constraints: fields.list("constraints", texts),
        fetch,
        backoff_seconds: fields.number("backoffSeconds"),
        backoff_factor: fields.number("backoffFactor"),
        max_launch_delay_seconds: fields.number("maxLaunchDelaySeconds"),
        container,
        network_modes,
        health_checks: fields.list("healthChecks", read_health_check),
        readiness_checks: fields.list("readinessChecks", read_readiness_check),
        dependencies: fields.texts("dependencies"),
        upgrade_strategy: fields.nested("upgradeStrategy", |f| {
            Some((f.number("minimumHealthCapacity"), f.number("maximumOverCapacity")))
        }),
        labels: fields.text_map("labels"),
        accepted_resource_roles: fields.texts("acceptedResourceRoles"),
        port_definitions: fields.list("portDefinitions", read_port_definition).or(from_ports),
        require_ports: fields.boolean("requirePorts"),
        kill_selection: fields.choice("killSelection", &["YOUNGEST_FIRST", "OLDEST_FIRST"]).map(|choice| {
            if choice == "OLDEST_FIRST" { KillSelection::OldestFirst } else { KillSelection::YoungestFirst }
        }),
        unreachable_strategy: fields.value("unreachableStrategy").cloned(),
        task_kill_grace_period_seconds: fields.unsigned("taskKillGracePeriodSeconds"),
    }
}

fn read_port_definition(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<PortDefinition> {
    let mut fields = Fields::of(item, path, errors)?;
    let protocol = fields.choice("protocol", &["tcp", "udp", "udp,tcp", "tcp,udp"]);
    Some(PortDefinition {
        port: fields.bounded("port", u16::MAX.into()).unwrap_or(0) as u16,
        protocol: match protocol.as_deref() {
            None => "tcp".into(),
            Some("tcp,udp") => "udp,tcp".into(),
            Some(other) => other.into(),
        },
        name: fields.text("name"),
        labels: fields.text_map("labels").unwrap_or_default(),
    })
}

const CHECK_PROTOCOLS: &[&str] =
    &["HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP"];

fn read_health_check(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<HealthCheck> {
    let mut fields = Fields::of(item, path, errors)?;
    let wire_protocol = fields.choice("protocol", CHECK_PROTOCOLS).unwrap_or_else(|| "HTTP".into());
    let port = fields.bounded("port", u16::MAX.into()).map(|port| port as u16);
    let is_command = wire_protocol == "COMMAND";
    let is_http = wire_protocol.contains("HTTP");
    let port_index = fields.unsigned("portIndex").map(|index| index as usize);
    Some(HealthCheck {
        path: fields.text("path").or_else(|| Some("/".into())).filter(|_| is_http),
        port_index: port_index.or(Some(0)).filter(|_| port.is_none() && !is_command),
        port: port.filter(|_| !is_command),
        command: fields.nested("command", |f| f.text("value")).map(|value| CheckCommand { value }),
        grace_period_seconds: fields.unsigned("gracePeriodSeconds").unwrap_or(300),
        interval_seconds: fields.unsigned("intervalSeconds").unwrap_or(60),
        timeout_seconds: fields.unsigned("timeoutSeconds").unwrap_or(20),
        max_consecutive_failures: fields.unsigned("maxConsecutiveFailures").unwrap_or(3),
        delay_seconds: fields.unsigned("delaySeconds").unwrap_or(15),
        ignore_http1xx: fields.boolean("ignoreHttp1xx").unwrap_or(false),
        ip_protocol: fields.choice("ipProtocol", &["IPv4", "IPv6"]).unwrap_or_else(|| "IPv4".into()),
        wire_protocol,
    })
}

fn read_readiness_check(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<ReadinessCheck> {
    let mut fields = Fields::of(item, path, errors)?;
    let codes = fields.list("httpStatusCodesForReady", |item, path, errors| integer(item, path, errors, 999));
    Some(ReadinessCheck {
        name: fields.text("name").unwrap_or_else(|| "readinessCheck".into()),
        protocol: fields.choice("protocol", &["HTTP", "HTTPS"]).unwrap_or_else(|| "HTTP".into()),
        path: fields.text("path").unwrap_or_else(|| "/".into()),
        port_name: fields.text("portName").unwrap_or_else(|| "http-api".into()),
        interval_seconds: fields.unsigned("intervalSeconds").unwrap_or(30),
        timeout_seconds: fields.unsigned("timeoutSeconds").unwrap_or(10),
        http_status_codes_for_ready: codes
            .map(|codes| codes.into_iter().map(|code| code as u16).collect())
            .unwrap_or_else(|| vec![200]),
        preserve_last_response: fields.boolean("preserveLastResponse").unwrap_or(false),
    })
}

fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    let keep = |value: &Value| match value {
        Value::Object(inner) => Value::Object(without_nulls(inner)),
        other => other.clone(),
    };
    map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), keep(value))).collect()
}

impl AppUpdate {
    /// `base` with the supplied fields replaced. Maps and lists are replaced whole, as in Marathon.
    pub fn apply(&self, base: &App) -> Result<App, Vec<FieldError>> {
        let mut app = base.clone();
        macro_rules! take {
            ($($field:ident),*) => { $(if let Some(value) = &self.$field { app.$field = value.clone(); })* };
        }
        take!(env, instances, cpus, mem, disk, gpus, executor, constraints, fetch, backoff_seconds);
        take!(backoff_factor, max_launch_delay_seconds, health_checks, readiness_checks, labels);
        take!(port_definitions, require_ports, kill_selection, unreachable_strategy);
        macro_rules! take_optional {
            ($($field:ident),*) => { $(if self.$field.is_some() { app.$field = self.$field.clone(); })* };
        }
        take_optional!(user, container, accepted_resource_roles, task_kill_grace_period_seconds);
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
            let group = app.id.as_str().rsplit_once('/').map_or("/", |(group, _)| group);
            app.dependencies = dependencies
                .iter()
                .map(|id| AppId::parse_in(group, id).map_err(|e| vec![FieldError::new("/dependencies", e)]))
                .collect::<Result<_, _>>()?;
        }
        Ok(app)
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

/// Reads the members of one object and collects what is wrong in play-json's words.
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    errors: &'a mut Vec<FieldError>,
}

impl<'a> Fields<'a> {
    pub fn of(value: &'a Value, path: &str, errors: &'a mut Vec<FieldError>) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { path: path.to_owned(), map, errors }),
            _ => {
                errors.push(FieldError::new(or_root(path), "error.expected.jsobject"));
                None
            }
        }
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let result = read(self.value(key)?);
        if result.is_none() {
            self.errors.push(FieldError::new(format!("{}/{key}", self.path), expected));
        }
        result
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.read(key, "error.expected.jsstring", |value| value.as_str().map(str::to_owned))
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        self.read(key, "error.expected.jsboolean", Value::as_bool)
    }

    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.read(key, "error.expected.jsnumber", Value::as_f64)
    }

    fn bounded(&mut self, key: &str, max: u64) -> Option<u64> {
        let value = self.value(key)?;
        integer(value, &format!("{}/{key}", self.path), self.errors, max)
    }

    fn unsigned(&mut self, key: &str) -> Option<u32> {
        // Seconds and counts: Marathon's are 32-bit signed.
        self.bounded(key, i32::MAX as u64).map(|value| value as u32)
    }

    fn choice(&mut self, key: &str, of: &[&str]) -> Option<String> {
        let text = self.text(key)?;
        if of.contains(&text.as_str()) {
            return Some(text);
        }
        self.errors.push(FieldError::new(format!("{}/{key}", self.path), "error.unknown.enum.literal"));
        None
    }

    pub fn object(&mut self, key: &str) -> Option<&'a Map<String, Value>> {
        self.read(key, "error.expected.jsobject", Value::as_object)
    }

    fn nested<T>(&mut self, key: &str, read: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Option<T> {
        let map = self.object(key)?;
        read(&mut Fields { path: format!("{}/{key}", self.path), map, errors: self.errors })
    }

    pub fn list<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&'a Value, &str, &mut Vec<FieldError>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.read(key, "error.expected.jsarray", Value::as_array)?;
        let path = format!("{}/{key}", self.path);
        let read_one = |(index, item)| read(item, &format!("{path}({index})"), &mut *self.errors);
        Some(items.iter().enumerate().filter_map(read_one).collect())
    }

    pub fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.list(key, text)
    }

    fn text_map(&mut self, key: &str) -> Option<BTreeMap<String, String>> {
        let map = self.object(key)?;
        let path = format!("{}/{key}", self.path);
        let mut read = BTreeMap::new();
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            let value = match value {
                Value::Object(inner) if inner.contains_key("secret") => {
                    let refusal = "secrets are not supported by the embedded scheduler";
                    self.errors.push(FieldError::new(format!("{path}/{key}"), refusal));
                    continue;
                }
                // Marathon 1.4 took numbers and booleans in `env` and `labels` and wrote them as text.
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                other => match text(other, &format!("{path}/{key}"), self.errors) {
                    Some(text) => text,
                    None => continue,
                },
            };
            read.insert(key.clone(), value);
        }
        Some(read)
    }
}

fn text(value: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<String> {
    if value.as_str().is_none() {
        errors.push(FieldError::new(path, "error.expected.jsstring"));
    }
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Vec<String>> {
    let Value::Array(items) = value else {
        errors.push(FieldError::new(path, "error.expected.jsarray"));
        return None;
    };
    items.iter().enumerate().map(|(index, item)| text(item, &format!("{path}({index})"), errors)).collect()
}

fn integer(value: &Value, path: &str, errors: &mut Vec<FieldError>, max: u64) -> Option<u64> {
    // `2.0` is an integer to Marathon's JSON library.
    let whole = value.as_u64().or_else(|| {
        value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f <= max as f64).map(|f| f as u64)
    });
    match whole {
        Some(number) if number <= max => return whole,
        Some(_) => errors.push(FieldError::new(path, format!("error.max: {max}"))),
        None if value.as_f64().is_some_and(|f| f < 0.0) => {
            errors.push(FieldError::new(path, format!("got {value}, expected 0 or more")));
        }
        None if value.is_number() => {
            errors.push(FieldError::new(path, "error.expected.jsnumber: a whole one"))
        }
        None => errors.push(FieldError::new(path, "error.expected.jsnumber")),
    }
    None
}
