//! The ports of an app by its network mode: where each stands in the definition, and where its endpoints are.
//!
//! Marathon 1.1 to 1.10 write them in five places. What a port's labels mean is not read here.

use std::collections::BTreeMap;

use super::super::wire;
use super::{port_number, text_labels};

/// Where the endpoint of a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The host, at the n-th port of the task.
    HostPort(usize),
    /// The task's own address.
    Container(u16),
    /// Nowhere: the definition lacks what it takes.
    Nowhere,
}

pub(super) struct Port {
    pub(super) service_port: Option<u16>,
    pub(super) name: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) target: Target,
    /// Whose it is: the index of a pod's container, 0 in an app.
    pub(super) owner: usize,
}

/// The ports of an app by its network mode (Marathon's `NetworkInfo.computePortAssignments`), and where they stand in
/// the definition. `tasks[].ports` holds only mappings with a host port, in order.
pub(super) fn ports(wire: &mut wire::App<'_>) -> (Vec<Port>, &'static str) {
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
                owner: 0,
            });
            return (ports.collect(), "portDefinitions");
        }
        let ports = wire.ports.take().unwrap_or_default().into_iter().map(|port| Port {
            service_port: port_number(Some(port)),
            name: None,
            protocol: None,
            labels: BTreeMap::new(),
            target: next_host_port(),
            owner: 0,
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
            owner: 0,
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
        owner: 0,
    });
    (ports.collect(), "ipAddress.discovery.ports")
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Host,
    Bridge,
    Container,
}

/// By the networks of a definition, when it has any that is known.
pub(super) fn mode_of_networks(networks: Option<&[wire::Network]>) -> Option<Mode> {
    networks.unwrap_or_default().iter().find_map(|network| match network.mode.as_deref() {
        Some("host") => Some(Mode::Host),
        Some("container/bridge") => Some(Mode::Bridge),
        Some("container") => Some(Mode::Container),
        _ => None,
    })
}

fn mode(wire: &wire::App<'_>) -> Mode {
    if let Some(mode) = mode_of_networks(wire.networks.as_deref()) {
        return mode;
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
