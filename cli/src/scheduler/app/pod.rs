//! A pod: several containers that start and end together. Inside the scheduler it is an app whose one instance
//! has several programs, so everything that holds for apps holds for pods.
//!
//! Not here: the state of its instances (`api::pods`), nor running them (`agent`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::checks::{CheckCommand, HealthCheck};
use super::container::{read_fetch, read_network, read_secrets, read_unreachable};
use super::fields::{FieldError, Fields};
use super::input::read_kill_selection;
use super::ports::{HostPort, PortSpec};
use super::{App, EnvValue, Fetch, Network, UpgradeStrategy};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// What Mesos' executor takes for itself, when the pod does not say.
const EXECUTOR_CPUS: f64 = 0.1;
const EXECUTOR_MEM: f64 = 32.0;
const EXECUTOR_DISK: f64 = 10.0;

/// Keys of a pod definition; everything else is left out.
const KEYS: [&str; 14] = [
    "id",
    "labels",
    "user",
    "environment",
    "containers",
    "secrets",
    "volumes",
    "networks",
    "scaling",
    "scheduling",
    "executorResources",
    "linuxInfo",
    "role",
    "legacySharedCgroups",
];

#[derive(Clone, Debug)]
pub struct Pod {
    /// The definition with its defaults, without version and number of instances.
    spec: Map<String, Value>,
    pub containers: Vec<PodContainer>,
    pub environment: BTreeMap<String, EnvValue>,
}

#[derive(Clone, Debug)]
pub struct PodContainer {
    pub name: String,
    /// `None`: what the image does.
    pub program: Option<Program>,
    pub image: Option<String>,
    pub force_pull: bool,
    pub user: Option<String>,
    pub environment: BTreeMap<String, EnvValue>,
    pub endpoints: Vec<PodEndpoint>,
    pub fetch: Vec<Fetch>,
    pub cpus: f64,
    pub mem: f64,
    pub disk: f64,
    pub gpus: u32,
    pub kill_grace_seconds: Option<f64>,
    health: Option<HealthCheck>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    Shell(String),
    Argv(Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct PodEndpoint {
    pub name: String,
    pub container_port: Option<u16>,
    pub host_port: Option<u16>,
    pub protocol: String,
}

/// Reads a complete pod definition.
pub fn read_pod(value: &Value, now: Timestamp) -> Result<App, Vec<FieldError>> {
    let mut errors = Vec::new();
    let read = Fields::of(value, "", &mut errors).and_then(|mut fields| read_fields(&mut fields, now));
    match read {
        Some(app) if errors.is_empty() => Ok(app),
        _ => Err(errors),
    }
}

fn read_fields(fields: &mut Fields<'_>, now: Timestamp) -> Option<App> {
    let id = fields.required_text("id")?;
    let id = match AppId::parse(&id) {
        Ok(id) => id,
        Err(reason) => {
            fields.error("id", &reason);
            return None;
        }
    };
    if fields.value("containers").is_none() {
        fields.missing("containers");
    }
    let containers: Vec<PodContainer> = fields.list("containers", read_container).unwrap_or_default();
    if containers.is_empty() {
        fields.error("containers", "must not be empty");
    }
    let mut names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        fields.error("containers", "container names are unique");
    }
    let networks = fields.list("networks", read_network).filter(|networks| !networks.is_empty());
    let executor =
        fields.nested("executorResources", |f| Some((f.number("cpus"), f.number("mem"), f.number("disk"))));
    let (cpus, mem, disk) = executor.unwrap_or_default();
    let executor =
        (cpus.unwrap_or(EXECUTOR_CPUS), mem.unwrap_or(EXECUTOR_MEM), disk.unwrap_or(EXECUTOR_DISK));
    let mut app = App::with_defaults(id, now);
    app.port_definitions = Vec::new();
    app.networks = networks.unwrap_or_else(|| vec![Network::default()]);
    app.labels = fields.text_map("labels").unwrap_or_default();
    app.user = fields.text("user");
    app.secrets = read_secrets(fields).unwrap_or_default();
    app.cpus = executor.0 + containers.iter().map(|c| c.cpus).sum::<f64>();
    app.mem = executor.1 + containers.iter().map(|c| c.mem).sum::<f64>();
    app.disk = executor.2 + containers.iter().map(|c| c.disk).sum::<f64>();
    app.gpus = containers.iter().map(|c| c.gpus).sum();
    app.instances = fields.nested("scaling", |f| f.unsigned("instances")).unwrap_or(1);
    fields.nested("scheduling", |scheduling| {
        read_scheduling(scheduling, &mut app);
        Some(())
    });
    let grace = containers
        .iter()
        .filter_map(|c| c.kill_grace_seconds)
        .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
    app.task_kill_grace_period_seconds = grace.map(|seconds| seconds.ceil() as u32);
    let environment = fields.environment("environment").unwrap_or_default();
    app.env = environment.clone();
    let mut spec = fields.others(&[]);
    spec.retain(|key, _| KEYS.contains(&key.as_str()));
    complete(&mut spec, &app, executor);
    let mut pod = Pod { spec, containers, environment };
    app.health_checks = pod.take_health_checks();
    app.pod = Some(Arc::new(pod));
    Some(app)
}

fn read_scheduling(scheduling: &mut Fields<'_>, app: &mut App) {
    scheduling.nested("backoff", |backoff| {
        app.backoff_seconds = backoff.number("backoff").unwrap_or(app.backoff_seconds);
        app.backoff_factor = backoff.number("backoffFactor").unwrap_or(app.backoff_factor);
        app.max_launch_delay_seconds =
            backoff.number("maxLaunchDelay").unwrap_or(app.max_launch_delay_seconds);
        Some(())
    });
    scheduling.nested("upgrade", |upgrade| {
        app.upgrade_strategy = UpgradeStrategy {
            minimum_health_capacity: upgrade.number("minimumHealthCapacity").unwrap_or(1.0),
            maximum_over_capacity: upgrade.number("maximumOverCapacity").unwrap_or(1.0),
        };
        Some(())
    });
    if let Some(selection) = read_kill_selection(scheduling) {
        app.kill_selection = selection;
    }
    if let Some(strategy) = read_unreachable(scheduling) {
        app.unreachable_strategy = strategy;
    }
    scheduling.nested("placement", |placement| {
        app.constraints = placement.list("constraints", read_constraint).unwrap_or_default();
        Some(())
    });
}

fn read_constraint(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Vec<String>> {
    let mut fields = Fields::of(item, path, errors)?;
    let (field, operator) = (fields.required_text("fieldName")?, fields.required_text("operator")?);
    Some([Some(field), Some(operator), fields.text("value")].into_iter().flatten().collect())
}

fn read_container(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<PodContainer> {
    let mut fields = Fields::of(item, path, errors)?;
    let name = fields.required_text("name")?;
    let program = fields.nested("exec", |exec| {
        exec.nested("command", |command| {
            let argv = command.texts("argv").filter(|argv| !argv.is_empty()).map(Program::Argv);
            command.text("shell").map(Program::Shell).or(argv)
        })
    });
    let resources = fields.nested("resources", |f| {
        Some((f.number("cpus"), f.number("mem"), f.number("disk"), f.unsigned("gpus")))
    });
    if resources.is_none() {
        fields.missing("resources");
    }
    let (cpus, mem, disk, gpus) = resources.unwrap_or_default();
    let image = fields.nested("image", |image| {
        Some((image.required_text("id")?, image.boolean("forcePull").unwrap_or(false)))
    });
    let grace = fields.nested("lifecycle", |f| f.number("killGracePeriodSeconds"));
    Some(PodContainer {
        name,
        program,
        force_pull: image.as_ref().is_some_and(|(_, pull)| *pull),
        image: image.map(|(id, _)| id),
        user: fields.text("user"),
        environment: fields.environment("environment").unwrap_or_default(),
        endpoints: fields.list("endpoints", read_endpoint).unwrap_or_default(),
        fetch: fields.list("artifacts", read_fetch).unwrap_or_default(),
        cpus: cpus.unwrap_or(0.1),
        mem: mem.unwrap_or(32.0),
        disk: disk.unwrap_or(0.0),
        gpus: gpus.unwrap_or(0),
        kill_grace_seconds: grace,
        health: fields.nested("healthCheck", read_health),
    })
}

fn read_endpoint(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<PodEndpoint> {
    let mut fields = Fields::of(item, path, errors)?;
    let protocols = fields.texts("protocol").unwrap_or_else(|| vec!["tcp".into()]);
    let udp = protocols.iter().any(|p| p == "udp");
    let tcp = protocols.iter().any(|p| p == "tcp");
    Some(PodEndpoint {
        name: fields.required_text("name")?,
        container_port: fields.port("containerPort"),
        host_port: fields.port("hostPort"),
        protocol: if udp && tcp {
            "udp,tcp"
        } else if udp {
            "udp"
        } else {
            "tcp"
        }
        .into(),
    })
}

/// The check of one container; which port it means is only known by the name of its endpoint yet.
fn read_health(fields: &mut Fields<'_>) -> Option<HealthCheck> {
    let http = fields.nested("http", |f| {
        let scheme = f.choice("scheme", &["HTTP", "HTTPS"]).unwrap_or_else(|| "HTTP".into());
        Some((scheme, f.text("path").unwrap_or_else(|| "/".into()), f.required_text("endpoint")?))
    });
    let tcp = fields.nested("tcp", |f| f.required_text("endpoint"));
    let exec = fields.nested("exec", |f| {
        f.nested("command", |command| {
            command.text("shell").or_else(|| command.texts("argv").map(|argv| argv.join(" ")))
        })
    });
    let (wire_protocol, path, endpoint) = match (http, tcp) {
        (Some((scheme, path, endpoint)), _) => (format!("MESOS_{scheme}"), Some(path), Some(endpoint)),
        (None, Some(endpoint)) => ("MESOS_TCP".to_owned(), None, Some(endpoint)),
        (None, None) => ("COMMAND".to_owned(), None, None),
    };
    Some(HealthCheck {
        wire_protocol,
        path,
        // Until its index is known, the endpoint's name stands in the place of a command.
        command: exec.or(endpoint).map(|value| CheckCommand { value }),
        port_index: None,
        port: None,
        grace_period_seconds: fields.unsigned("gracePeriodSeconds").unwrap_or(300),
        interval_seconds: fields.unsigned("intervalSeconds").unwrap_or(60),
        timeout_seconds: fields.unsigned("timeoutSeconds").unwrap_or(20),
        max_consecutive_failures: fields.unsigned("maxConsecutiveFailures").unwrap_or(3),
        delay_seconds: fields.unsigned("delaySeconds").unwrap_or(15),
        ignore_http1xx: false,
        ip_protocol: "IPv4".into(),
        container: 0,
    })
}

/// Marathon shows a pod with every default filled in.
fn complete(spec: &mut Map<String, Value>, app: &App, executor: (f64, f64, f64)) {
    spec.insert("id".into(), json!(app.id));
    spec.insert("networks".into(), json!(app.networks));
    let (cpus, mem, disk) = executor;
    spec.insert("executorResources".into(), json!({"cpus": cpus, "mem": mem, "disk": disk}));
    let scheduling = spec.entry("scheduling").or_insert_with(|| json!({}));
    scheduling["backoff"] = json!({"backoff": app.backoff_seconds, "backoffFactor": app.backoff_factor,
        "maxLaunchDelay": app.max_launch_delay_seconds});
    scheduling["upgrade"] = json!(app.upgrade_strategy);
    scheduling["killSelection"] = json!(app.kill_selection);
    scheduling["unreachableStrategy"] = app.unreachable_strategy.clone();
    if scheduling["placement"].is_null() {
        scheduling["placement"] = json!({"constraints": [], "acceptedResourceRoles": []});
    }
    for key in ["labels", "environment"] {
        spec.entry(key).or_insert_with(|| json!({}));
    }
    spec.entry("volumes").or_insert_with(|| json!([]));
    for container in spec.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(container) = container.as_object_mut() else { continue };
        for (key, empty) in [
            ("endpoints", json!([])),
            ("volumeMounts", json!([])),
            ("artifacts", json!([])),
            ("environment", json!({})),
            ("labels", json!({})),
        ] {
            container.entry(key).or_insert(empty);
        }
        let resources = container.entry("resources").or_insert_with(|| json!({}));
        for (key, default) in
            [("cpus", json!(0.1)), ("mem", json!(32)), ("disk", json!(0)), ("gpus", json!(0))]
        {
            if resources[key].is_null() {
                resources[key] = default;
            }
        }
    }
}

impl Pod {
    /// Moves the containers' checks out, with the index of the port that each means.
    fn take_health_checks(&mut self) -> Vec<HealthCheck> {
        let names: Vec<String> =
            self.containers.iter().flat_map(|c| &c.endpoints).map(|e| e.name.clone()).collect();
        let mut checks = Vec::new();
        for (index, container) in self.containers.iter_mut().enumerate() {
            let Some(mut check) = container.health.take() else { continue };
            check.container = index;
            if check.wire_protocol != "COMMAND" {
                let endpoint = check.command.take().map(|command| command.value);
                check.port_index = names.iter().position(|name| Some(name) == endpoint.as_ref());
            }
            checks.push(check);
        }
        checks
    }

    pub fn ports(&self) -> Vec<PortSpec<'_>> {
        let all = self.containers.iter().enumerate();
        all.flat_map(|(owner, container)| container.endpoints.iter().map(move |e| (owner, e)))
            .map(|(owner, endpoint)| PortSpec {
                service: 0,
                host: match endpoint.host_port {
                    None => HostPort::None,
                    Some(0) => HostPort::Any,
                    Some(port) => HostPort::Exactly(port),
                },
                container: endpoint.container_port,
                protocol: &endpoint.protocol,
                name: Some(&endpoint.name),
                owner,
            })
            .collect()
    }

    /// The pod as Marathon writes it; `app` knows its version and its number of instances.
    pub fn json(&self, app: &App) -> String {
        let mut spec = self.spec.clone();
        let scaling = spec.entry("scaling").or_insert_with(|| json!({"kind": "fixed"}));
        if scaling["kind"].is_null() {
            scaling["kind"] = "fixed".into();
        }
        scaling["instances"] = app.instances.into();
        spec.insert("version".into(), json!(app.version));
        Value::Object(spec).to_string()
    }
}
