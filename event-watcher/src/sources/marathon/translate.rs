//! One app, from Marathon's JSON into catalog words: services and their VIPs, instances and their addresses.
//!
//! Pure: host names are looked up in what the caller gives. A wrong label, port or task is a [`Problem`] and costs
//! only itself.

mod ports;
mod services;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::value::RawValue;

use self::ports::{Port, Target, ports};
use self::services::{app_vip_labels, service};
use super::wire;
use crate::catalog::{
    App, AppId, AppUpdate, Endpoint, Health, HealthCheck, HealthCheckProtocol, Instance, InstanceId,
    InstanceState, Problem, Readiness, Service,
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
        grace_period_seconds: check.grace_period_seconds,
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
