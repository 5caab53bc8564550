//! One pod: its containers' endpoints are the services, in the order of the definition, and each running container is
//! an instance with the endpoints that are its own.
//!
//! The balancer's service ports are an app's affair: a pod has none.

use std::sync::Arc;

use super::ports::{Mode, Port, Target, mode_of_networks};
use super::services::{service, task_vip_labels};
use super::tasks::{Part, Place, TaskReader};
use super::{Context, Problems, Translated, port_number, text_labels};
use crate::catalog::{App, AppId, HealthCheck, HealthCheckProtocol, Service, ServiceId};
use crate::sources::marathon::wire;
use crate::sources::marathon::wire::pod as json;

/// Reads one element of `/v2/pods/::status`. An error means that the pod as a whole cannot be read.
pub(crate) fn pod(text: &str, context: &Context<'_>) -> Result<Translated, serde_json::Error> {
    let json::Status { id, mut spec, instances } = serde_json::from_str(text)?;
    let id = AppId::new(&id);
    let mut problems = Problems { app: id.clone(), list: Vec::new() };
    let labels = text_labels(spec.labels.take());
    let mode = mode_of_networks(spec.networks.as_deref()).unwrap_or(Mode::Host);
    let mut containers = spec.containers.take().unwrap_or_default();
    let mut ports = Vec::new();
    let mut services: Vec<Service> = Vec::new();
    for (owner, container) in containers.iter_mut().enumerate() {
        for (index, port) in ports_of(owner, container, mode).into_iter().enumerate() {
            let at = || format!("containers[{owner}].endpoints[{index}]");
            let id = ServiceId { app: id.clone(), port_index: services.len() };
            services.push(service(id, &port, at, context.framework, &mut problems));
            ports.push(port);
        }
    }
    for (owner, container) in containers.iter_mut().enumerate() {
        // A container is a task of its own, with the pod's labels and its own.
        let mut of_task = labels.clone();
        of_task.extend(text_labels(container.labels.take()));
        let has_host_port = |p: &Port| p.owner == owner && matches!(p.target, Target::HostPort(_));
        if ports.iter().any(has_host_port) {
            task_vip_labels(&of_task, owner, &ports, &mut services, context.framework, &mut problems);
        }
    }
    let mut reader = TaskReader::new(context, &ports, problems);
    for (index, raw) in instances.unwrap_or_default().iter().enumerate() {
        match serde_json::from_str(raw.get()) {
            Ok(instance) => take_instance(&mut reader, index, instance, &containers, &ports),
            Err(error) => reader.skip(&format!("instances[{index}]"), raw, &error),
        }
    }
    let n_containers = u32::try_from(containers.len()).unwrap_or(u32::MAX);
    let n_instances = spec.scaling.and_then(|scaling| scaling.instances).unwrap_or(1);
    Ok(reader.finish(App {
        id,
        version: spec.version.as_deref().unwrap_or_default().into(),
        labels,
        n_instances_wanted: n_instances.saturating_mul(n_containers),
        services,
        health_checks: containers.iter().filter_map(|c| health_check(c, &ports)).collect(),
        instances: Vec::new(),
        deployments: Vec::new(),
    }))
}

fn ports_of(owner: usize, container: &mut json::Container, mode: Mode) -> Vec<Port> {
    let mut n_host_ports = 0;
    let ports = container.endpoints.iter_mut().flatten().map(|endpoint| Port {
        service_port: None,
        name: endpoint.name.clone(),
        protocol: endpoint.protocol.as_ref().filter(|p| !p.is_empty()).map(|p| p.join(",")),
        labels: text_labels(endpoint.labels.take()),
        target: match (mode, endpoint.host_port, port_number(endpoint.container_port)) {
            (Mode::Host, _, _) | (_, Some(_), _) => {
                n_host_ports += 1;
                Target::HostPort(n_host_ports - 1)
            }
            (_, None, Some(port)) => Target::Container(port),
            (_, None, None) => Target::Nowhere,
        },
        owner,
    });
    ports.collect()
}

fn take_instance(
    reader: &mut TaskReader<'_>,
    index: usize,
    instance: json::Instance,
    containers: &[json::Container],
    ports: &[Port],
) {
    let addresses: Vec<String> =
        instance.networks.into_iter().flatten().flat_map(|n| n.addresses.unwrap_or_default()).collect();
    let version =
        instance.spec_reference.as_deref().and_then(|reference| reference.rsplit_once("::versions/"));
    for (place, running) in instance.containers.into_iter().flatten().enumerate() {
        let owner = containers.iter().position(|container| container.name == running.name);
        // What is not launched has no id yet; what the definition no longer has gets nothing either.
        let (Some(owner), Some(id)) = (owner, running.container_id) else { continue };
        let endpoints = running.endpoints.unwrap_or_default();
        let checked = containers[owner].health_check.is_some();
        let verdict = checked.then(|| verdict(&endpoints, running.conditions.as_deref())).flatten();
        let host_ports = ports.iter().filter(|p| p.owner == owner && matches!(p.target, Target::HostPort(_)));
        let allocated = |port: &Port| {
            let endpoint = endpoints.iter().find(|e| e.name == port.name);
            endpoint.and_then(|e| e.allocated_host_port).unwrap_or(0)
        };
        let task = wire::Task {
            id,
            host: instance.agent_hostname.clone(),
            slave_id: instance.agent_id.clone(),
            state: running.status,
            started_at: running.status_since,
            version: version.map(|(_, version)| version.to_owned()),
            ports: Some(host_ports.map(allocated).collect()),
            ip_addresses: Some(
                addresses.iter().map(|ip| wire::TaskAddress { ip_address: Some(ip.clone()) }).collect(),
            ),
            health_check_results: Some(vec![verdict.map(|alive| wire::HealthResult { alive: Some(alive) })]),
        };
        let part = Part { owner, n_checks: usize::from(checked) };
        reader.take(Place::Container { instance: index, container: place }, part, &task);
    }
}

/// A check that asks an endpoint is told there; any check is told as a condition of the container.
fn verdict(endpoints: &[json::InstanceEndpoint], conditions: Option<&[json::Condition]>) -> Option<bool> {
    let of_container = conditions.unwrap_or_default().iter();
    let of_container = of_container
        .filter(|condition| condition.name.as_deref() == Some("healthy"))
        .filter_map(|condition| condition.value.as_deref().and_then(|value| value.parse().ok()));
    endpoints.iter().filter_map(|endpoint| endpoint.healthy).chain(of_container).reduce(|a, b| a && b)
}

fn health_check(container: &json::Container, ports: &[Port]) -> Option<HealthCheck> {
    let check = container.health_check.as_ref()?;
    let (protocol, path, endpoint) = match (&check.http, &check.tcp) {
        (Some(http), _) => {
            let is_https = http.scheme.as_deref() == Some("HTTPS");
            let protocol =
                if is_https { HealthCheckProtocol::MesosHttps } else { HealthCheckProtocol::MesosHttp };
            (protocol, http.path.as_deref().map(Arc::from), http.endpoint.as_ref())
        }
        (None, Some(tcp)) => (HealthCheckProtocol::MesosTcp, None, tcp.endpoint.as_ref()),
        (None, None) => (HealthCheckProtocol::Command, None, None),
    };
    Some(HealthCheck {
        protocol,
        path,
        port_index: endpoint.and_then(|name| ports.iter().position(|p| p.name.as_ref() == Some(name))),
        port: None,
        grace_period_seconds: check.grace_period_seconds,
        interval_seconds: check.interval_seconds,
        timeout_seconds: check.timeout_seconds,
        max_consecutive_failures: check.max_consecutive_failures,
    })
}
