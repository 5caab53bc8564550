//! What an app runs in and which networks it is on: containers, images, port mappings, fetched files, secrets.
//!
//! Not here: running any of it (`agent`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::fields::{FieldError, Fields};

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    #[serde(rename = "type")]
    pub kind: ContainerKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<Image>,
    pub volumes: Vec<Volume>,
    /// Only on networks other than the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_mappings: Option<Vec<PortMapping>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ContainerKind {
    Docker,
    Mesos,
}

/// An image and how it is run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub image: String,
    pub force_pull_image: bool,
    pub privileged: bool,
    pub parameters: Vec<Parameter>,
}

/// An option of `docker run`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parameter {
    pub key: String,
    pub value: String,
}

/// `other` keeps what only a cluster has: persistent and external volumes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub container_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    pub mode: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub container_port: u16,
    /// 0: any; absent: none, the container's own address is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// 0 only until one has been assigned.
    pub service_port: u16,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum NetworkMode {
    #[default]
    #[serde(rename = "host")]
    Host,
    #[serde(rename = "container/bridge")]
    Bridge,
    #[serde(rename = "container")]
    Container,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Network {
    pub mode: NetworkMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A file brought into the sandbox before the command starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetch {
    pub uri: String,
    pub extract: bool,
    pub executable: bool,
    pub cache: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest_path: Option<String>,
}

/// One variable of `env`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EnvValue {
    Text(String),
    /// The name of one of the app's secrets.
    Secret {
        secret: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Secret {
    pub source: String,
}

/// A container as written, with the spellings of Marathon 1.4 sorted out.
#[derive(Clone, Debug)]
pub struct ReadContainer {
    pub container: Container,
    /// `docker.network`.
    pub network: Option<NetworkMode>,
}

pub fn read_container(fields: &mut Fields<'_>) -> Option<ReadContainer> {
    let mut network = None;
    let mut old_mappings = None;
    let docker = fields.nested("docker", |docker| {
        network =
            docker.choice("network", &["HOST", "BRIDGE", "USER", "NONE"]).map(|mode| match mode.as_str() {
                "BRIDGE" => NetworkMode::Bridge,
                "USER" => NetworkMode::Container,
                _ => NetworkMode::Host,
            });
        old_mappings = docker.list("portMappings", read_port_mapping);
        let Some(image) = docker.text("image") else {
            docker.missing("image");
            return None;
        };
        Some(Image {
            image,
            force_pull_image: docker.boolean("forcePullImage").unwrap_or(false),
            privileged: docker.boolean("privileged").unwrap_or(false),
            parameters: docker.list("parameters", read_parameter).unwrap_or_default(),
        })
    });
    let kind = match fields.choice("type", &["DOCKER", "MESOS"]).as_deref() {
        Some("MESOS") => ContainerKind::Mesos,
        Some(_) => ContainerKind::Docker,
        None if docker.is_some() => ContainerKind::Docker,
        None => ContainerKind::Mesos,
    };
    let container = Container {
        kind,
        docker,
        volumes: fields.list("volumes", read_volume).unwrap_or_default(),
        port_mappings: fields.list("portMappings", read_port_mapping).or(old_mappings),
    };
    Some(ReadContainer { container, network })
}

fn read_parameter(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Parameter> {
    let mut fields = Fields::of(item, path, errors)?;
    Some(Parameter { key: fields.required_text("key")?, value: fields.required_text("value")? })
}

fn read_volume(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Volume> {
    let mut fields = Fields::of(item, path, errors)?;
    let container_path = fields.text("containerPath").or_else(|| fields.text("mountPath"))?;
    let known = ["containerPath", "mountPath", "hostPath", "mode"];
    let other = fields.others(&known);
    Some(Volume {
        container_path,
        host_path: fields.text("hostPath"),
        mode: fields.choice("mode", &["RW", "RO"]).unwrap_or_else(|| "RW".into()),
        other,
    })
}

fn read_port_mapping(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<PortMapping> {
    let mut fields = Fields::of(item, path, errors)?;
    Some(PortMapping {
        container_port: fields.port("containerPort").unwrap_or(0),
        host_port: fields.port("hostPort"),
        service_port: fields.port("servicePort").unwrap_or(0),
        protocol: read_port_protocol(&mut fields),
        name: fields.text("name"),
        labels: fields.text_map("labels").unwrap_or_default(),
        network_names: fields.texts("networkNames").unwrap_or_default(),
    })
}

pub fn read_port_protocol(fields: &mut Fields<'_>) -> String {
    match fields.choice("protocol", &["tcp", "udp", "udp,tcp", "tcp,udp"]).as_deref() {
        None => "tcp".into(),
        Some("tcp,udp") => "udp,tcp".into(),
        Some(other) => other.into(),
    }
}

pub fn read_network(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Network> {
    let mut fields = Fields::of(item, path, errors)?;
    let mode = match fields.choice("mode", &["host", "container", "container/bridge"]).as_deref() {
        Some("host") => NetworkMode::Host,
        Some("container/bridge") => NetworkMode::Bridge,
        _ => NetworkMode::Container,
    };
    Some(Network { mode, name: fields.text("name"), labels: fields.text_map("labels").unwrap_or_default() })
}

/// `ipAddress` of Marathon 1.4: a container network, and ports that are only on the container's address.
pub fn read_ip_address(fields: &mut Fields<'_>) -> Option<(Network, Vec<PortMapping>)> {
    let name = fields.text("networkName");
    let labels = fields.text_map("labels").unwrap_or_default();
    let ports = fields.nested("discovery", |discovery| discovery.list("ports", read_discovery_port));
    Some((Network { mode: NetworkMode::Container, name, labels }, ports.unwrap_or_default()))
}

fn read_discovery_port(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<PortMapping> {
    let mut fields = Fields::of(item, path, errors)?;
    Some(PortMapping {
        container_port: fields.port("number").unwrap_or(0),
        host_port: None,
        service_port: 0,
        protocol: read_port_protocol(&mut fields),
        name: fields.text("name"),
        labels: fields.text_map("labels").unwrap_or_default(),
        network_names: Vec::new(),
    })
}

pub fn read_fetch(item: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Fetch> {
    let mut fields = Fields::of(item, path, errors)?;
    Some(Fetch {
        uri: fields.required_text("uri")?,
        extract: fields.boolean("extract").unwrap_or(true),
        executable: fields.boolean("executable").unwrap_or(false),
        cache: fields.boolean("cache").unwrap_or(false),
        dest_path: fields.text("destPath"),
    })
}

/// `uris` of Marathon 1.4: archives are unpacked, as `fetch` does.
pub fn fetch_of_uri(uri: String) -> Fetch {
    Fetch { uri, extract: true, executable: false, cache: false, dest_path: None }
}

pub fn read_secrets(fields: &mut Fields<'_>) -> Option<BTreeMap<String, Secret>> {
    let map = fields.object("secrets")?;
    let mut read = BTreeMap::new();
    for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        match value.get("source").and_then(Value::as_str) {
            Some(source) => {
                read.insert(name.clone(), Secret { source: source.to_owned() });
            }
            None => fields.error(&format!("secrets/{name}/source"), "error.path.missing"),
        }
    }
    Some(read)
}

/// `unreachableStrategy`: two times, or the word that turns it off.
pub fn read_unreachable(fields: &mut Fields<'_>) -> Option<Value> {
    if fields.value("unreachableStrategy")?.as_str() == Some("disabled") {
        return Some("disabled".into());
    }
    fields.nested("unreachableStrategy", |strategy| {
        let inactive = strategy.unsigned("inactiveAfterSeconds").unwrap_or(0);
        let expunge = strategy.unsigned("expungeAfterSeconds").unwrap_or(inactive);
        Some(json!({"inactiveAfterSeconds": inactive, "expungeAfterSeconds": expunge}))
    })
}
