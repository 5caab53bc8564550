//! The ports of an app, whichever way its network mode writes them.
//!
//! Not here: which host ports are free (`scheduler::ports`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::container::{PortMapping, read_port_protocol};
use super::fields::{FieldError, Fields};
use super::{App, NetworkMode};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortDefinition {
    /// The service port; 0 only until one has been assigned.
    pub port: u16,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// One port of an app, as scheduling sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec<'a> {
    /// 0: none.
    pub service: u16,
    pub host: HostPort,
    /// The port inside the container; 0: the same as the host port.
    pub container: Option<u16>,
    pub protocol: &'a str,
    pub name: Option<&'a str>,
    /// Index of the pod's container that it belongs to.
    pub owner: usize,
}

/// What an instance needs of the host's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPort {
    Any,
    Exactly(u16),
    /// The instance has an address of its own.
    None,
}

/// `portDefinitions` left out: one port.
pub fn default_definitions() -> Vec<PortDefinition> {
    let name = Some("default".into());
    vec![PortDefinition { port: 0, protocol: "tcp".into(), name, labels: BTreeMap::new() }]
}

/// `portMappings` left out on a network that is not the host's: one port.
pub fn default_mappings() -> Vec<PortMapping> {
    vec![PortMapping {
        container_port: 0,
        host_port: None,
        service_port: 0,
        protocol: "tcp".into(),
        name: Some("default".into()),
        labels: BTreeMap::new(),
        network_names: Vec::new(),
    }]
}

pub fn read_port_definition(
    item: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) -> Option<PortDefinition> {
    let mut fields = Fields::of(item, path, errors)?;
    Some(PortDefinition {
        port: fields.port("port").unwrap_or(0),
        protocol: read_port_protocol(&mut fields),
        name: fields.text("name"),
        labels: fields.text_map("labels").unwrap_or_default(),
    })
}

impl App {
    pub fn ports(&self) -> Vec<PortSpec<'_>> {
        if let Some(pod) = &self.pod {
            return pod.ports();
        }
        match self.network_mode() {
            NetworkMode::Host => self.port_definitions.iter().map(|d| self.of_definition(d)).collect(),
            mode => self.port_mappings().iter().map(|mapping| of_mapping(mapping, mode)).collect(),
        }
    }

    fn of_definition<'a>(&'a self, definition: &'a PortDefinition) -> PortSpec<'a> {
        PortSpec {
            service: definition.port,
            host: match definition.port {
                port if self.require_ports && port != 0 => HostPort::Exactly(port),
                _ => HostPort::Any,
            },
            container: None,
            protocol: &definition.protocol,
            name: definition.name.as_deref(),
            owner: 0,
        }
    }

    pub fn port_mappings(&self) -> &[PortMapping] {
        self.container.as_ref().and_then(|c| c.port_mappings.as_deref()).unwrap_or_default()
    }

    pub fn service_ports(&self) -> Vec<u16> {
        if self.is_pod() { Vec::new() } else { self.ports().iter().map(|port| port.service).collect() }
    }

    /// The service ports that are still to be assigned.
    pub fn unassigned_ports(&mut self) -> Vec<&mut u16> {
        if self.is_pod() {
            return Vec::new();
        }
        let all: Vec<&mut u16> = match self.network_mode() {
            NetworkMode::Host if self.require_ports => Vec::new(),
            NetworkMode::Host => self.port_definitions.iter_mut().map(|d| &mut d.port).collect(),
            _ => {
                let mappings = self.container.as_mut().and_then(|c| c.port_mappings.as_mut());
                mappings.into_iter().flatten().map(|m| &mut m.service_port).collect()
            }
        };
        all.into_iter().filter(|port| **port == 0).collect()
    }

    /// The host port of each port, given those that an instance was assigned (`tasks[].ports`).
    pub fn host_ports(&self, assigned: &[u16]) -> Vec<Option<u16>> {
        let mut assigned = assigned.iter().copied();
        let of_port = |port: &PortSpec<'_>| if port.host == HostPort::None { None } else { assigned.next() };
        self.ports().iter().map(of_port).collect()
    }

    /// Whether its instances are reached at an address that is not the host's.
    pub fn has_own_address(&self) -> bool {
        self.network_mode() == NetworkMode::Container
    }
}

fn of_mapping(mapping: &PortMapping, mode: NetworkMode) -> PortSpec<'_> {
    PortSpec {
        service: mapping.service_port,
        host: match (mapping.host_port, mode) {
            (None, NetworkMode::Container) => HostPort::None,
            (None | Some(0), _) => HostPort::Any,
            (Some(port), _) => HostPort::Exactly(port),
        },
        container: Some(mapping.container_port),
        protocol: &mapping.protocol,
        name: mapping.name.as_deref(),
        owner: 0,
    }
}
