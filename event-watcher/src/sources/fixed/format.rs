//! The file's format, TOML or JSON: `apps`, each with an id, labels and services, each service with its endpoints.
//!
//! Keys that do not exist are refused: this is written by people. It reads no file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::catalog::{
    App, AppId, AppUpdate, Endpoint, Instance, InstanceId, Problem, Protocol, Protocols, Service, ServiceId,
    VipLabel,
};

/// Nothing of the file can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot read the file")]
    Io(#[source] std::io::Error),
    #[error("the file is larger than {} MiB", super::MAX_BYTES >> 20)]
    TooLarge,
    #[error("the file is not TOML: line {line}: {what}")]
    Toml { line: usize, what: String },
    #[error("the file is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("the file has no list `apps`; a file without apps says `apps = []`")]
    NoApps,
}

impl FileError {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::TooLarge => "too_large",
            Self::Toml { .. } | Self::Json(_) | Self::NoApps => "malformed",
        }
    }

    /// On one line, without the text of the file.
    fn of_toml(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        Self::Toml { line: before.matches('\n').count() + 1, what: error.message().replace('\n', ", ") }
    }
}

#[derive(Debug)]
pub(super) enum Entry {
    Read(AppUpdate),
    /// Its last good version stays.
    Rejected(AppId, Problem),
    /// Something without a usable id.
    Nameless(Problem),
}

impl Entry {
    pub(super) fn id(&self) -> Option<&AppId> {
        match self {
            Self::Read(update) => Some(&update.app.id),
            Self::Rejected(id, _) => Some(id),
            Self::Nameless(_) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenApp {
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    services: Vec<WrittenService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenService {
    name: Option<String>,
    /// The service port.
    port: Option<u16>,
    protocol: Option<WrittenProtocol>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// `/name:port` or `address:port`, as in a `VIP_0` label.
    #[serde(default)]
    vips: Vec<String>,
    #[serde(deserialize_with = "addresses")]
    endpoints: Vec<SocketAddr>,
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let parse = |text: &String| {
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not an address like 10.0.0.5:5432")))
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}

#[derive(Clone, Copy, Deserialize)]
enum WrittenProtocol {
    #[serde(rename = "tcp")]
    Tcp,
    #[serde(rename = "udp")]
    Udp,
    #[serde(rename = "udp,tcp", alias = "tcp,udp")]
    Both,
}

pub(super) fn read(text: &str, path: &Path, framework: &str) -> Result<Vec<Entry>, FileError> {
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let whole: Value = match is_json {
        true => serde_json::from_str(text).map_err(FileError::Json)?,
        false => toml::from_str(text).map_err(|error| FileError::of_toml(text, &error))?,
    };
    let Value::Object(mut whole) = whole else { return Err(FileError::NoApps) };
    let Some(Value::Array(apps)) = whole.remove("apps") else { return Err(FileError::NoApps) };
    let mut entries: Vec<Entry> = Vec::with_capacity(apps.len());
    let mut known = BTreeSet::new();
    for key in whole.keys() {
        entries.push(Entry::Nameless(problem(
            None,
            key.clone(),
            "there is no such key in a file of apps".into(),
            "it is ignored; the only key is `apps`",
        )));
    }
    for (index, app) in apps.into_iter().enumerate() {
        let id = app.get("id").and_then(Value::as_str).map(AppId::new);
        let entry = match (id, serde_json::from_value::<WrittenApp>(app)) {
            (Some(id), Ok(written)) if known.insert(id.clone()) => Entry::Read(update(written, framework)),
            (Some(id), Ok(_)) => Entry::Nameless(problem(
                Some(id),
                format!("apps[{index}].id"),
                "the app is there twice".into(),
                "the first one counts",
            )),
            (Some(id), Err(error)) => {
                let at = format!("apps[{index}]");
                let hint = "its last good version keeps serving; the other apps are not touched";
                Entry::Rejected(id.clone(), problem(Some(id), at, error.to_string(), hint))
            }
            (None, _) => Entry::Nameless(problem(
                None,
                format!("apps[{index}].id"),
                "the app has no id".into(),
                "it is left out; the others are served",
            )),
        };
        entries.push(entry);
    }
    Ok(entries)
}

fn update(written: WrittenApp, framework: &str) -> AppUpdate {
    let id = AppId::new(&written.id);
    let mut problems = Vec::new();
    let mut instances: BTreeMap<SocketAddr, Vec<Endpoint>> = BTreeMap::new();
    let mut services = Vec::new();
    for (port_index, service) in written.services.into_iter().enumerate() {
        let protocols = match service.protocol {
            None | Some(WrittenProtocol::Tcp) => Protocols::TCP,
            Some(WrittenProtocol::Udp) => Protocols { tcp: false, udp: true },
            Some(WrittenProtocol::Both) => Protocols { tcp: true, udp: true },
        };
        let mut vips = Vec::new();
        for (index, text) in service.vips.iter().enumerate() {
            match VipLabel::parse(text, framework) {
                Ok(label) => {
                    vips.extend(protocols.tcp.then(|| label.for_protocol(Protocol::Tcp)));
                    vips.extend(protocols.udp.then(|| label.for_protocol(Protocol::Udp)));
                }
                Err(error) => problems.push(problem(
                    Some(id.clone()),
                    format!("services[{port_index}].vips[{index}]"),
                    error.to_string(),
                    "this VIP is not served",
                )),
            }
        }
        vips.sort();
        vips.dedup();
        for address in service.endpoints.into_iter().collect::<BTreeSet<_>>() {
            instances.entry(address).or_default().push(Endpoint { port_index, address });
        }
        services.push(Service {
            id: ServiceId { app: id.clone(), port_index },
            name: service.name.as_deref().map(Arc::from),
            service_port: service.port.filter(|port| *port != 0),
            protocols,
            labels: service.labels,
            vips,
        });
    }
    let name = id.segments().collect::<Vec<_>>().join("_");
    let mut instances: Vec<Arc<Instance>> = instances
        .into_iter()
        .map(|(address, endpoints)| {
            let id = InstanceId::new(&format!("{name}.static-{address}"));
            Arc::new(Instance { version: VERSION.into(), ..Instance::running(id, address.ip(), endpoints) })
        })
        .collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    let app =
        App { version: VERSION.into(), labels: written.labels, ..App::settled(id, services, instances) };
    AppUpdate { app, problems }
}

/// Of everything in such a file.
const VERSION: &str = "static";

fn problem(app: Option<AppId>, at: String, what: String, hint: &str) -> Problem {
    Problem { app, at, what, hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [[apps]]
        id = "/legacy/db"
        labels = { HAPROXY_GROUP = "external" }
        [[apps.services]]
        name = "pg"
        port = 10500
        vips = ["/db:5432"]
        endpoints = ["10.0.0.6:5432", "10.0.0.5:5432"]
        [[apps.services]]
        protocol = "udp"
        endpoints = ["[fd00::1]:53"]
    "#;

    fn reads(text: &str, name: &str) -> Vec<Entry> {
        read(text, Path::new(name), "marathon").unwrap()
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let json = r#"{"apps": [{"id": "legacy/db", "labels": {"HAPROXY_GROUP": "external"}, "services": [
            {"name": "pg", "port": 10500, "protocol": "tcp", "vips": ["/db:5432"],
             "endpoints": ["10.0.0.5:5432", "10.0.0.6:5432"]},
            {"protocol": "udp", "endpoints": ["[fd00::1]:53"]}]}]}"#;
        let (toml, json) = (reads(GOOD, "apps.toml"), reads(json, "apps.json"));
        let (Entry::Read(toml), Entry::Read(json)) = (&toml[0], &json[0]) else {
            panic!("{toml:?} {json:?}")
        };
        assert_eq!(toml, json);
        assert!(toml.problems.is_empty());
        let endpoints: Vec<String> = toml
            .app
            .instances
            .iter()
            .flat_map(|i| i.endpoints.iter().map(|e| format!("{}={}", e.port_index, e.address)))
            .collect();
        assert_eq!(endpoints, ["0=10.0.0.5:5432", "0=10.0.0.6:5432", "1=[fd00::1]:53"]);
        assert_eq!(toml.app.services[0].vips[0].target.to_string(), "db.marathon");
    }

    #[test]
    fn a_wrong_app_is_its_own_problem() {
        for (broken, expect) in [
            ("endpoints = [\"10.0.0.6\"]", "\"10.0.0.6\" is not an address"),
            ("endpoints = [\"10.0.0.6:1\"]\nport = 70000", "70000"),
            ("endpoints = []\nendpoint = 1", "unknown field `endpoint`"),
        ] {
            let text = format!("{GOOD}\n[[apps]]\nid = \"/x\"\n[[apps.services]]\n{broken}");
            let entries = reads(&text, "a.toml");
            assert!(matches!(entries[0], Entry::Read(_)));
            let Entry::Rejected(id, problem) = &entries[1] else { panic!("{:?}", entries[1]) };
            assert_eq!(id.as_str(), "/x");
            assert!(problem.what.contains(expect), "{problem}");
        }
        let entries = reads("apps = [{ services = [] }]\nother = 1", "a.toml");
        assert!(entries.iter().all(|entry| matches!(entry, Entry::Nameless(_))) && entries.len() == 2);
    }

    #[test]
    fn what_is_no_list_of_apps_is_refused_and_an_empty_list_is_not() {
        for (text, name) in
            [("", "a.toml"), ("", "a.json"), ("x", "a.toml"), ("[]", "a.json"), ("{\"apps\": 1}", "a.json")]
        {
            assert!(read(text, Path::new(name), "m").is_err(), "{text:?} as {name}");
        }
        let error = read("apps = []\nkey {\n", Path::new("a.toml"), "m").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.lines().count() == 1, "{error}");
        assert!(reads("apps = []", "a.toml").is_empty());
        assert!(reads("{\"apps\": []}", "a.json").is_empty());
    }
}
