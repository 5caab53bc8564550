//! One app, from Marathon's JSON into catalog words: services and their VIPs, instances and their addresses.
//!
//! Pure: host names are looked up in what the caller gives. A wrong label, port or task is a [`Problem`] and costs
//! only itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::wire;
use crate::catalog::{
    App, AppId, AppUpdate, Endpoint, Health, HealthCheck, HealthCheckProtocol, Instance, InstanceId,
    InstanceState, Problem, Protocol, Protocols, Readiness, Service, ServiceId, VipKey, VipLabel,
};

/// What is known about a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    Address(IpAddr),
    /// It was looked up, in vain.
    Failed,
    /// Nobody asked yet.
    Unasked,
}

/// Everything beside the JSON that the translation of an app depends on.
pub(crate) struct Context<'a> {
    pub framework: &'a str,
    pub resolve: &'a dyn Fn(&str) -> Resolved,
    /// The app as it was last known: an instance keeps its last verdict while the scheduler has none.
    pub previous: Option<&'a App>,
}

pub(crate) struct Translated {
    pub update: AppUpdate,
    /// Host names that must be looked up before the instances on them have an address.
    pub unasked_hosts: Vec<String>,
    pub n_tasks_skipped: u64,
    /// Running tasks, when the app has health checks, and how many of them have any result.
    pub n_checked: usize,
    pub n_with_results: usize,
    /// Instances on hosts without a known address: the same text may mean more later.
    n_hosts_failed: usize,
}

impl Translated {
    pub(crate) fn hosts_known(&self) -> bool {
        self.unasked_hosts.is_empty() && self.n_hosts_failed == 0
    }
}

/// Reads one app. An error means that the app as a whole cannot be read.
pub(crate) fn app(json: &str, context: &Context<'_>) -> Result<Translated, serde_json::Error> {
    let mut wire: wire::App<'_> = serde_json::from_str(json)?;
    let id = AppId::new(&wire.id);
    let mut problems = Problems { app: id.clone(), list: Vec::new() };
    let labels = text_labels(wire.labels.take());
    let (ports, place) = ports(&mut wire);
    let mut services: Vec<Service> = ports
        .iter()
        .enumerate()
        .map(|(index, port)| service(&id, index, port, place, context.framework, &mut problems))
        .collect();
    app_vip_labels(&labels, &ports, &mut services, context.framework, &mut problems);

    let mut reader = TaskReader {
        context,
        ports: &ports,
        n_checks: wire.health_checks.as_ref().map_or(0, Vec::len),
        readiness: readiness(&wire),
        unasked_hosts: Vec::new(),
        problems,
        n_skipped: 0,
        n_checked: 0,
        n_with_results: 0,
        n_hosts_failed: 0,
    };
    let instances = reader.instances(wire.tasks.as_deref().unwrap_or_default());
    let TaskReader { unasked_hosts, problems, n_skipped, n_checked, n_with_results, n_hosts_failed, .. } =
        reader;
    let app = App {
        id,
        version: wire.version.as_deref().unwrap_or_default().into(),
        labels,
        n_instances_wanted: wire.instances.unwrap_or(1),
        services,
        health_checks: wire.health_checks.unwrap_or_default().iter().map(health_check).collect(),
        instances,
        deployments: wire
            .deployments
            .unwrap_or_default()
            .into_iter()
            .filter_map(|d| d.id.map(Arc::from))
            .collect(),
    };
    Ok(Translated {
        update: AppUpdate { app, problems: problems.list },
        unasked_hosts,
        n_tasks_skipped: n_skipped,
        n_checked,
        n_with_results,
        n_hosts_failed,
    })
}

struct Problems {
    app: AppId,
    list: Vec<Problem>,
}

impl Problems {
    fn add(&mut self, at: String, what: String, hint: &str) {
        self.list.push(Problem { app: Some(self.app.clone()), at, what, hint: hint.into() });
    }
}

/// Where the endpoint of a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The host, at the n-th port of the task.
    HostPort(usize),
    /// The task's own address.
    Container(u16),
    /// Nowhere: the definition lacks what it takes.
    Nowhere,
}

struct Port {
    service_port: Option<u16>,
    name: Option<String>,
    protocol: Option<String>,
    labels: BTreeMap<String, String>,
    target: Target,
}

/// The ports of an app by its network mode (Marathon's `NetworkInfo.computePortAssignments`), and where they stand in
/// the definition. `tasks[].ports` holds only mappings with a host port, in order.
fn ports(wire: &mut wire::App<'_>) -> (Vec<Port>, &'static str) {
    let mut n_host_ports = 0;
    let mut next_host_port = || {
        n_host_ports += 1;
        Target::HostPort(n_host_ports - 1)
    };
    let mode = mode(wire);
    if mode == Mode::Host {
        if let Some(definitions) = wire.port_definitions.take() {
            let ports = definitions.into_iter().map(|d| Port {
                service_port: port_number(d.port),
                name: d.name,
                protocol: d.protocol,
                labels: text_labels(d.labels),
                target: next_host_port(),
            });
            return (ports.collect(), "portDefinitions");
        }
        let ports = wire.ports.take().unwrap_or_default().into_iter().map(|port| Port {
            service_port: port_number(Some(port)),
            name: None,
            protocol: None,
            labels: BTreeMap::new(),
            target: next_host_port(),
        });
        return (ports.collect(), "ports");
    }
    let container = wire.container.as_mut();
    let legacy = container.as_ref().is_some_and(|c| c.port_mappings.is_none());
    let mappings = container.and_then(|c| {
        c.port_mappings.take().or_else(|| c.docker.as_mut().and_then(|d| d.port_mappings.take()))
    });
    if let Some(mappings) = mappings {
        let place = if legacy { "container.docker.portMappings" } else { "container.portMappings" };
        let ports = mappings.into_iter().map(|m| Port {
            service_port: port_number(m.service_port),
            name: m.name,
            protocol: m.protocol,
            labels: text_labels(m.labels),
            target: match (mode, m.host_port, port_number(m.container_port)) {
                (Mode::Bridge, _, _) | (_, Some(_), _) => next_host_port(),
                (_, None, Some(port)) => Target::Container(port),
                (_, None, None) => Target::Nowhere,
            },
        });
        return (ports.collect(), place);
    }
    let discovery =
        wire.ip_address.as_mut().and_then(|ip| ip.discovery.as_mut()).and_then(|d| d.ports.take());
    let ports = discovery.unwrap_or_default().into_iter().map(|d| Port {
        service_port: None,
        name: d.name,
        protocol: d.protocol,
        labels: text_labels(d.labels),
        target: port_number(d.number).map_or(Target::Nowhere, Target::Container),
    });
    (ports.collect(), "ipAddress.discovery.ports")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Host,
    Bridge,
    Container,
}

fn mode(wire: &wire::App<'_>) -> Mode {
    for network in wire.networks.iter().flatten() {
        match network.mode.as_deref() {
            Some("host") => return Mode::Host,
            Some("container/bridge") => return Mode::Bridge,
            Some("container") => return Mode::Container,
            _ => {}
        }
    }
    let docker_network =
        wire.container.as_ref().and_then(|c| c.docker.as_ref()).and_then(|d| d.network.as_deref());
    match docker_network {
        Some("HOST") => Mode::Host,
        Some("BRIDGE") => Mode::Bridge,
        Some("USER") => Mode::Container,
        _ if wire.ip_address.is_some() => Mode::Container,
        _ => Mode::Host,
    }
}

fn service(
    app: &AppId,
    index: usize,
    port: &Port,
    place: &str,
    framework: &str,
    problems: &mut Problems,
) -> Service {
    let protocols = protocols(port.protocol.as_deref(), || format!("{place}[{index}].protocol"), problems);
    let mut vips = Vec::new();
    // Exactly these two spellings, whatever follows: DC/OS's `handle_vip_labels`.
    for (key, value) in port.labels.iter().filter(|(key, _)| key.starts_with("VIP") || key.starts_with("vip"))
    {
        match VipLabel::parse(value, framework) {
            Ok(label) => vips.extend(vip_keys(&label, protocols)),
            Err(error) => problems.add(
                format!("{place}[{index}].labels.{key}"),
                error.to_string(),
                "this VIP is not served",
            ),
        }
    }
    vips.sort();
    vips.dedup();
    Service {
        id: ServiceId { app: app.clone(), port_index: index },
        name: port.name.as_deref().map(Arc::from),
        service_port: port.service_port,
        protocols,
        labels: port.labels.clone(),
        vips,
    }
}

fn protocols(text: Option<&str>, at: impl FnOnce() -> String, problems: &mut Problems) -> Protocols {
    let Some(text) = text else { return Protocols::TCP };
    let mut protocols = Protocols { tcp: false, udp: false };
    let mut unknown = None;
    for part in text.split(',').map(str::trim) {
        if part.eq_ignore_ascii_case("tcp") {
            protocols.tcp = true;
        } else if part.eq_ignore_ascii_case("udp") {
            protocols.udp = true;
        } else {
            unknown = Some(part);
        }
    }
    if let Some(unknown) = unknown {
        problems.add(at(), format!("{unknown:?} is neither tcp nor udp"), "this protocol is not served");
    }
    protocols
}

fn vip_keys(label: &VipLabel, protocols: Protocols) -> impl Iterator<Item = VipKey> {
    let tcp = protocols.tcp.then(|| label.for_protocol(Protocol::Tcp));
    let udp = protocols.udp.then(|| label.for_protocol(Protocol::Udp));
    tcp.into_iter().chain(udp)
}

/// `VIP_PORT<n>` labels of the app: `tcp://name:port` for the n-th host port (DC/OS's `handle_task_vip_label`).
fn app_vip_labels(
    labels: &BTreeMap<String, String>,
    ports: &[Port],
    services: &mut [Service],
    framework: &str,
    problems: &mut Problems,
) {
    for (key, value) in labels {
        let Some(prefix) = key.get(..8).filter(|p| p.eq_ignore_ascii_case("VIP_PORT")) else { continue };
        let read = || {
            let n: usize =
                key[prefix.len()..].parse().map_err(|_| "the label's name has no port index".to_owned())?;
            let service = ports
                .iter()
                .position(|p| p.target == Target::HostPort(n))
                .ok_or_else(|| format!("the app has no host port {n}"))?;
            let (protocol, vip) = match value.split_once("://") {
                Some(("tcp", vip)) => (Protocol::Tcp, vip),
                Some(("udp", vip)) => (Protocol::Udp, vip),
                _ => return Err(format!("{value:?} does not begin with tcp:// or udp://")),
            };
            let label = VipLabel::parse(vip, framework).map_err(|e| e.to_string())?;
            Ok((service, label.for_protocol(protocol)))
        };
        match read() {
            Ok((index, vip)) => {
                let vips = &mut services[index].vips;
                if let Err(at) = vips.binary_search(&vip) {
                    vips.insert(at, vip);
                }
            }
            Err(what) => problems.add(format!("labels.{key}"), what, "this VIP is not served"),
        }
    }
}

fn health_check(check: &wire::HealthCheck) -> HealthCheck {
    HealthCheck {
        protocol: match check.protocol.as_deref().unwrap_or("HTTP") {
            "HTTP" => HealthCheckProtocol::Http,
            "HTTPS" => HealthCheckProtocol::Https,
            "TCP" => HealthCheckProtocol::Tcp,
            "COMMAND" => HealthCheckProtocol::Command,
            "MESOS_HTTP" => HealthCheckProtocol::MesosHttp,
            "MESOS_HTTPS" => HealthCheckProtocol::MesosHttps,
            "MESOS_TCP" => HealthCheckProtocol::MesosTcp,
            _ => HealthCheckProtocol::Other,
        },
        path: check.path.as_deref().map(Arc::from),
        port_index: check.port_index.map(|i| i as usize),
        port: port_number(check.port),
        interval_seconds: check.interval_seconds,
        timeout_seconds: check.timeout_seconds,
        max_consecutive_failures: check.max_consecutive_failures,
    }
}

/// The verdict of the readiness checks by task id. Marathon runs them only while a deployment starts a task.
fn readiness(wire: &wire::App<'_>) -> BTreeMap<String, Readiness> {
    let mut verdicts = BTreeMap::new();
    if wire.readiness_checks.as_ref().is_some_and(|c| !c.is_empty()) {
        for result in wire.readiness_check_results.iter().flatten() {
            let Some(task) = &result.task_id else { continue };
            let verdict = verdicts.entry(task.clone()).or_insert(Readiness::Ready);
            if result.ready != Some(true) {
                *verdict = Readiness::NotReady;
            }
        }
    }
    verdicts
}

struct TaskReader<'a> {
    context: &'a Context<'a>,
    ports: &'a [Port],
    n_checks: usize,
    readiness: BTreeMap<String, Readiness>,
    unasked_hosts: Vec<String>,
    problems: Problems,
    n_skipped: u64,
    n_checked: usize,
    n_with_results: usize,
    n_hosts_failed: usize,
}

impl TaskReader<'_> {
    fn instances(&mut self, tasks: &[&RawValue]) -> Vec<Arc<Instance>> {
        let mut instances: BTreeMap<InstanceId, Arc<Instance>> = BTreeMap::new();
        for (index, raw) in tasks.iter().enumerate() {
            let task: wire::Task = match serde_json::from_str(raw.get()) {
                Ok(task) => task,
                Err(error) => {
                    self.n_skipped += 1;
                    let known = serde_json::from_str(raw.get())
                        .ok()
                        .and_then(|wire::IdOnly { id }| self.previous(&InstanceId::new(&id)).cloned());
                    let hint = if known.is_some() { "its last good state stays" } else { "it is left out" };
                    self.problems.add(format!("tasks[{index}]"), error.to_string(), hint);
                    if let Some(known) = known {
                        instances.entry(known.id.clone()).or_insert(known);
                    }
                    continue;
                }
            };
            let id = InstanceId::new(&task.id);
            if instances.contains_key(&id) {
                self.n_skipped += 1;
                self.problems.add(
                    format!("tasks[{index}].id"),
                    format!("{id} is listed twice"),
                    "the first one counts",
                );
                continue;
            }
            let instance = self.instance(index, id.clone(), &task);
            // An equal instance stays the same object, so that planes can tell by comparing pointers.
            let instance = match self.previous(&id) {
                Some(known) if **known == instance => Arc::clone(known),
                _ => Arc::new(instance),
            };
            instances.insert(id, instance);
        }
        instances.into_values().collect()
    }

    fn previous(&self, id: &InstanceId) -> Option<&Arc<Instance>> {
        let instances = &self.context.previous?.instances;
        instances.binary_search_by(|i| i.id.cmp(id)).ok().map(|index| &instances[index])
    }

    fn instance(&mut self, index: usize, id: InstanceId, task: &wire::Task) -> Instance {
        let state = state(task);
        if self.n_checks > 0 && state == InstanceState::Running {
            self.n_checked += 1;
            let results = task.health_check_results.iter().flatten().flatten();
            self.n_with_results += usize::from(results.count() > 0);
        }
        let addresses: Vec<IpAddr> = task
            .ip_addresses
            .iter()
            .flatten()
            .filter_map(|a| a.ip_address.as_deref().and_then(|a| a.parse().ok()))
            .collect();
        let host = task.host.as_deref().unwrap_or_default();
        let host_address = self.host_address(index, host, state);
        let task_ports = task.ports.as_deref().unwrap_or_default();
        let endpoints = self.ports.iter().enumerate().flat_map(|(port_index, port)| {
            let (ips, number) = match port.target {
                Target::HostPort(n) => (host_address.as_slice(), port_number(task_ports.get(n).copied())),
                Target::Container(number) => (addresses.as_slice(), Some(number)),
                Target::Nowhere => (&[][..], None),
            };
            let of_number = |number| move |ip: &IpAddr| SocketAddr::new(*ip, number);
            let addresses = number.into_iter().flat_map(move |number| ips.iter().map(of_number(number)));
            addresses.map(move |address| Endpoint { port_index, address })
        });
        let endpoints = endpoints.collect();
        Instance {
            host: host.into(),
            host_address,
            agent: task.slave_id.as_deref().map(Arc::from),
            version: task.version.as_deref().unwrap_or_default().into(),
            state,
            health: self.health(&id, task),
            readiness: self.readiness.get(&task.id).copied().unwrap_or(Readiness::Unchecked),
            started_at: task.started_at.as_deref().map(Arc::from),
            addresses,
            endpoints,
            id,
        }
    }

    fn host_address(&mut self, index: usize, host: &str, state: InstanceState) -> Option<IpAddr> {
        let needs_host = self.ports.iter().any(|p| matches!(p.target, Target::HostPort(_)));
        if host.is_empty() {
            if needs_host && state == InstanceState::Running {
                self.problems.add(
                    format!("tasks[{index}].host"),
                    "a running task has no host".into(),
                    "it gets no traffic",
                );
            }
            return None;
        }
        if let Ok(address) = host.parse() {
            return Some(address);
        }
        match (self.context.resolve)(host) {
            Resolved::Address(address) => Some(address),
            Resolved::Unasked => {
                if !self.unasked_hosts.iter().any(|h| h == host) {
                    self.unasked_hosts.push(host.to_owned());
                }
                None
            }
            Resolved::Failed => {
                self.n_hosts_failed += 1;
                if needs_host {
                    let what = format!("the host name {host:?} has no address");
                    self.problems.add(format!("tasks[{index}].host"), what, "its ports get no traffic");
                }
                None
            }
        }
    }

    /// One dead check is enough; all must be alive. With results missing, the last verdict about the same instance
    /// counts: after a leader change Marathon has none for a while.
    fn health(&self, id: &InstanceId, task: &wire::Task) -> Health {
        if self.n_checks == 0 {
            return Health::Unchecked;
        }
        let results: Vec<&wire::HealthResult> =
            task.health_check_results.iter().flatten().flatten().collect();
        if results.iter().any(|r| r.alive == Some(false)) {
            return Health::Unhealthy;
        }
        if results.len() >= self.n_checks && results.iter().all(|r| r.alive == Some(true)) {
            return Health::Healthy;
        }
        match self.previous(id).map(|known| known.health) {
            Some(known @ (Health::Healthy | Health::Presumed | Health::Unhealthy)) => known,
            _ => Health::Unknown,
        }
    }
}

fn state(task: &wire::Task) -> InstanceState {
    match task.state.as_deref() {
        // Marathon 1.3 and before write no state.
        None if task.started_at.is_some() => InstanceState::Running,
        None => InstanceState::Staging,
        Some(text) => state_named(text),
    }
}

/// A Mesos task state, with or without its `TASK_` prefix.
pub(crate) fn state_named(text: &str) -> InstanceState {
    match text.strip_prefix("TASK_").unwrap_or(text) {
        "STAGING" => InstanceState::Staging,
        "STARTING" => InstanceState::Starting,
        "RUNNING" => InstanceState::Running,
        "KILLING" => InstanceState::Killing,
        "UNREACHABLE" => InstanceState::Unreachable,
        "FINISHED" | "FAILED" | "KILLED" | "LOST" | "ERROR" | "GONE" | "GONE_BY_OPERATOR" | "DROPPED" => {
            InstanceState::Terminal
        }
        _ => InstanceState::Unknown,
    }
}

fn port_number(number: Option<u32>) -> Option<u16> {
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn text_labels(labels: Option<BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    labels.unwrap_or_default().into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

#[cfg(test)]
mod tests;
