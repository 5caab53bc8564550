//! Running tasks: states, health and addresses. A task of an app is one instance, and so is each container of a pod's
//! instance: DC/OS counts the containers of a pod one by one as well.
//!
//! A task that cannot be read keeps its last good state.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::ports::{Port, Target};
use super::{Context, Problems, Resolved, Translated, port_number};
use crate::catalog::{App, AppUpdate, Endpoint, Health, Instance, InstanceId, InstanceState, Readiness};
use crate::sources::InstanceRef;
use crate::sources::marathon::wire;

/// Where a task stands in the answer.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Task(usize),
    Container { instance: usize, container: usize },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(index) => write!(f, "tasks[{index}]"),
            Self::Container { instance, container } => {
                write!(f, "instances[{instance}].containers[{container}]")
            }
        }
    }
}

/// What of the definition a task runs.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Whose ports it has.
    pub(super) owner: usize,
    pub(super) n_checks: usize,
}

pub(super) struct TaskReader<'a> {
    context: &'a Context<'a>,
    ports: &'a [Port],
    /// By task id.
    pub(super) readiness: BTreeMap<String, Readiness>,
    instances: BTreeMap<InstanceId, Arc<Instance>>,
    unasked_hosts: Vec<String>,
    problems: Problems,
    n_skipped: u64,
    n_checked: usize,
    n_with_results: usize,
    n_hosts_failed: usize,
}

impl<'a> TaskReader<'a> {
    pub(super) fn new(context: &'a Context<'a>, ports: &'a [Port], problems: Problems) -> Self {
        Self {
            context,
            ports,
            readiness: BTreeMap::new(),
            instances: BTreeMap::new(),
            unasked_hosts: Vec::new(),
            problems,
            n_skipped: 0,
            n_checked: 0,
            n_with_results: 0,
            n_hosts_failed: 0,
        }
    }

    /// Everything that was read, with the rest of the app.
    pub(super) fn finish(self, app: App) -> Translated {
        let app = App { instances: self.instances.into_values().collect(), ..app };
        Translated {
            update: AppUpdate { app, problems: self.problems.list },
            unasked_hosts: self.unasked_hosts,
            n_tasks_skipped: self.n_skipped,
            n_checked: self.n_checked,
            n_with_results: self.n_with_results,
            n_hosts_failed: self.n_hosts_failed,
        }
    }

    /// Reads a task of an app.
    pub(super) fn read_task(&mut self, index: usize, raw: &RawValue, part: Part) {
        match serde_json::from_str(raw.get()) {
            Ok(task) => self.take(Place::Task(index), part, &task),
            Err(error) => self.skip(&format!("tasks[{index}]"), raw, &error),
        }
    }

    /// Notes that something with an id cannot be read: what it was last known as stays.
    pub(super) fn skip(&mut self, at: &str, raw: &RawValue, error: &serde_json::Error) {
        self.n_skipped += 1;
        let id = serde_json::from_str(raw.get()).map(|wire::IdOnly { id }| InstanceRef::Instance(id)).ok();
        let known = self.context.previous.map_or(&[][..], |app| &app.instances);
        let known: Vec<_> = known.iter().filter(|i| id.as_ref().is_some_and(|id| id.names(&i.id))).collect();
        let hint = if known.is_empty() { "it is left out" } else { "its last good state stays" };
        self.problems.add(at.to_owned(), error.to_string(), hint);
        for known in known {
            self.instances.entry(known.id.clone()).or_insert_with(|| Arc::clone(known));
        }
    }

    pub(super) fn take(&mut self, place: Place, part: Part, task: &wire::Task) {
        let id = InstanceId::new(&task.id);
        if self.instances.contains_key(&id) {
            self.n_skipped += 1;
            let what = format!("{id} is listed twice");
            return self.problems.add(format!("{place}.id"), what, "the first one counts");
        }
        let instance = self.instance(place, part, id.clone(), task);
        // An equal instance stays the same object, so that planes can tell by comparing pointers.
        let instance = match self.previous(&id) {
            Some(known) if **known == instance => Arc::clone(known),
            _ => Arc::new(instance),
        };
        self.instances.insert(id, instance);
    }

    fn previous(&self, id: &InstanceId) -> Option<&'a Arc<Instance>> {
        let instances = &self.context.previous?.instances;
        instances.binary_search_by(|i| i.id.cmp(id)).ok().map(|index| &instances[index])
    }

    fn instance(&mut self, place: Place, part: Part, id: InstanceId, task: &wire::Task) -> Instance {
        let state = state(task);
        if part.n_checks > 0 && state == InstanceState::Running {
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
        let own_ports = self.ports.iter().enumerate().filter(|(_, port)| port.owner == part.owner);
        let needs_host = own_ports.clone().any(|(_, port)| matches!(port.target, Target::HostPort(_)));
        let host_address = self.host_address(place, host, needs_host, state);
        let task_ports = task.ports.as_deref().unwrap_or_default();
        let endpoints = own_ports.flat_map(|(port_index, port)| {
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
            health: self.health(&id, part, task),
            readiness: self.readiness.get(&task.id).copied().unwrap_or(Readiness::Unchecked),
            started_at: task.started_at.as_deref().map(Arc::from),
            addresses,
            endpoints,
            id,
        }
    }

    fn host_address(
        &mut self,
        place: Place,
        host: &str,
        needs_host: bool,
        state: InstanceState,
    ) -> Option<IpAddr> {
        if host.is_empty() {
            if needs_host && state == InstanceState::Running {
                let what = "a running task has no host".into();
                self.problems.add(format!("{place}.host"), what, "it gets no traffic");
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
                    self.problems.add(format!("{place}.host"), what, "its ports get no traffic");
                }
                None
            }
        }
    }

    /// One dead check is enough; all must be alive. With results missing, the last verdict about the same instance
    /// counts: after a leader change Marathon has none for a while.
    fn health(&self, id: &InstanceId, part: Part, task: &wire::Task) -> Health {
        if part.n_checks == 0 {
            return Health::Unchecked;
        }
        let results: Vec<&wire::HealthResult> =
            task.health_check_results.iter().flatten().flatten().collect();
        if results.iter().any(|r| r.alive == Some(false)) {
            return Health::Unhealthy;
        }
        if results.len() >= part.n_checks && results.iter().all(|r| r.alive == Some(true)) {
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
