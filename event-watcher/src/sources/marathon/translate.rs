//! One app or pod, from Marathon's JSON into catalog words: services and their VIPs, instances and their addresses.
//!
//! Pure: host names are looked up in what the caller gives. A wrong label, port or task is a [`Problem`] and costs
//! only itself.

mod pods;
mod ports;
mod services;
mod tasks;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use self::ports::ports;
use self::services::{service, task_vip_labels};
use self::tasks::{Part, TaskReader};
use super::wire;
use crate::catalog::{
    App, AppId, AppUpdate, HealthCheck, HealthCheckProtocol, Problem, Readiness, Service, ServiceId,
};

pub(crate) use self::pods::pod;
pub(crate) use self::tasks::state_named;

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
        .map(|(index, port)| {
            let at = || format!("{place}[{index}]");
            service(
                ServiceId { app: id.clone(), port_index: index },
                port,
                at,
                context.framework,
                &mut problems,
            )
        })
        .collect();
    task_vip_labels(&labels, 0, &ports, &mut services, context.framework, &mut problems);

    let mut reader = TaskReader::new(context, &ports, problems);
    reader.readiness = readiness(&wire);
    let part = Part { owner: 0, n_checks: wire.health_checks.as_ref().map_or(0, Vec::len) };
    for (index, raw) in wire.tasks.as_deref().unwrap_or_default().iter().enumerate() {
        reader.read_task(index, raw, part);
    }
    let deployments = wire.deployments.unwrap_or_default().into_iter();
    Ok(reader.finish(App {
        id,
        version: wire.version.as_deref().unwrap_or_default().into(),
        labels,
        n_instances_wanted: wire.instances.unwrap_or(1),
        services,
        health_checks: wire.health_checks.unwrap_or_default().iter().map(health_check).collect(),
        instances: Vec::new(),
        deployments: deployments.filter_map(|d| d.id.map(Arc::from)).collect(),
    }))
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

fn port_number(number: Option<u32>) -> Option<u16> {
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn text_labels(labels: Option<BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    labels.unwrap_or_default().into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

#[cfg(test)]
mod tests;
