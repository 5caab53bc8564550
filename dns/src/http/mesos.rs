//! Mesos-DNS's HTTP API (its `docs/http.md`): what the zone `mesos` holds, in Mesos-DNS's own shapes.
//!
//! Secrets of the configuration are not shown, unlike there.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_watcher::catalog::App;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json as value};

use super::{Answer, Api, heavy, json, refuse};
use crate::names::WireName;
use crate::records::{Data, MESOS, of_instance};
use crate::zone::{Node, Zone};

/// `None`: not a path of this API.
pub(super) async fn answer(api: &Arc<Api>, path: &str) -> Option<Answer> {
    let words: Vec<&str> = path.split('/').collect();
    let api = Arc::clone(api);
    Some(match words[..] {
        ["version"] => json(&value!({
            "Service": "Mesos-DNS",
            "Version": env!("CARGO_PKG_VERSION"),
            "URL": "https://github.com/mesosphere/mesos-dns",
        })),
        ["config"] => json(&config(&api)),
        ["hosts", host] => json(&hosts(&api.zone.load(), host)),
        ["hosts", _, "ports"] => refuse(StatusCode::NOT_IMPLEMENTED, "not implemented, as in Mesos-DNS"),
        ["services", service] => json(&services(&api.zone.load(), service)),
        ["enumerate"] => heavy(move || json(&enumerate(&api))).await,
        ["axfr"] => heavy(move || json(&axfr(&api))).await,
        _ => return None,
    })
}

fn config(api: &Api) -> Value {
    let config = &api.config;
    let texts = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>();
    value!({
        "Domain": MESOS,
        "Port": config.listen.first().map(std::net::SocketAddr::port),
        "Listener": texts(&mut config.listen.iter().map(|address| address.ip().to_string())),
        "HttpPort": config.http_listen.map(|address| address.port()),
        "HTTPListener": config.http_listen.map(|address| address.ip().to_string()),
        "Masters": texts(&mut config.masters.iter().map(ToString::to_string)),
        "Resolvers": texts(&mut api.forwarder.upstreams().iter().map(ToString::to_string)),
        "TTL": config.mesos_ttl.as_secs(),
        "Timeout": config.upstream_timeout.as_secs_f64(),
        "SOAMname": "ns1.mesos.",
        "SOARname": "root.ns1.mesos.",
        "SOASerial": api.zone.load().serial,
        "RefreshSeconds": 0,
        "DNSOn": true,
        "HTTPOn": true,
        "RecurseOn": !api.forwarder.upstreams().is_empty(),
        "ExternalOn": !api.forwarder.upstreams().is_empty(),
        "EnforceRFC952": false,
    })
}

/// The name as Mesos-DNS writes it (without `.*`, which stands for nothing), and what is known of it.
fn find<'z>(zone: &'z Zone, name: &str) -> Option<(String, &'z Node)> {
    let name = WireName::parse(&name.replace(".*", ""))?;
    Some((name.to_string(), zone.find(name.as_bytes())?.node?))
}

fn hosts(zone: &Zone, host: &str) -> Vec<Value> {
    let found = find(zone, host).filter(|(_, node)| !node.v4.is_empty() || !node.v6.is_empty());
    let Some((host, node)) = found else { return vec![value!({"host": "", "ip": ""})] };
    addresses(node).map(|ip| value!({"host": host, "ip": ip})).collect()
}

fn services(zone: &Zone, service: &str) -> Vec<Value> {
    let found = find(zone, service).filter(|(_, node)| !node.services.is_empty());
    let Some((service, node)) = found else {
        return vec![value!({"service": "", "host": "", "ip": "", "port": ""})];
    };
    let record = |record: &crate::zone::ServiceRecord| {
        let ip = zone.node(record.target.as_bytes()).and_then(|target| addresses(target).next());
        value!({
            "service": service,
            "host": record.target.to_string(),
            "ip": ip.unwrap_or_default(),
            "port": record.port.to_string(),
        })
    };
    node.services.iter().map(record).collect()
}

fn addresses(node: &Node) -> impl Iterator<Item = String> {
    node.v4.iter().map(ToString::to_string).chain(node.v6.iter().map(ToString::to_string))
}

#[derive(Serialize)]
struct Enumeration {
    frameworks: Vec<Framework>,
}

#[derive(Serialize)]
struct Framework {
    tasks: Vec<Task>,
    name: String,
}

#[derive(Serialize)]
struct Task {
    name: String,
    id: String,
    records: Vec<Record>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Record {
    name: String,
    host: String,
    rtype: &'static str,
}

fn enumerate(api: &Api) -> Enumeration {
    let snapshot = api.subscriber.latest();
    let suffix = WireName::parse(MESOS).map(|name| name.to_string()).unwrap_or_default();
    let task = |app: &App, instance: &event_watcher::catalog::Instance| {
        let facts = of_instance(app, instance, snapshot.framework_of(&app.id), api.config.compat);
        let mut records: Vec<Record> = facts
            .0
            .into_iter()
            .filter(|fact| fact.name.to_string().ends_with(&suffix))
            .filter_map(|fact| {
                let (host, rtype) = match fact.data {
                    Data::Address(ip) => (ip.to_string(), if ip.is_ipv4() { "A" } else { "AAAA" }),
                    Data::Service { port, target } => (format!("{target}:{port}"), "SRV"),
                    Data::Exists | Data::Pointer(_) => return None,
                };
                Some(Record { name: fact.name.to_string(), host, rtype })
            })
            .collect();
        records.sort();
        records.dedup();
        Task {
            name: app.id.segments().rev().collect::<Vec<_>>().join("."),
            id: instance.id.to_string(),
            records,
        }
    };
    let tasks = snapshot.apps.values().flat_map(|app| app.instances.iter().map(move |i| (app, i)));
    // The first scheduler is told of even when it runs nothing.
    let mut frameworks = BTreeMap::from([(&snapshot.framework, Vec::new())]);
    for (app, instance) in tasks {
        let task = task(app, instance);
        if !task.records.is_empty() {
            frameworks.entry(snapshot.framework_of(&app.id)).or_default().push(task);
        }
    }
    let of_one = |(name, tasks): (&Arc<str>, Vec<Task>)| Framework { tasks, name: name.to_string() };
    Enumeration { frameworks: frameworks.into_iter().map(of_one).collect() }
}

type RecordSet = BTreeMap<String, Vec<String>>;

fn axfr(api: &Api) -> Value {
    let zone = api.zone.load();
    let apex = zone.authority().apexes.iter().position(|apex| apex.name.to_string() == format!("{MESOS}."));
    let (mut v4, mut v6, mut services) = (RecordSet::new(), RecordSet::new(), RecordSet::new());
    for (name, node) in zone.nodes().filter(|(_, node)| Some(node.apex()) == apex) {
        let put = |set: &mut RecordSet, values: Vec<String>| {
            if !values.is_empty() {
                set.insert(name.to_string(), values);
            }
        };
        put(&mut v4, node.v4.iter().map(ToString::to_string).collect());
        put(&mut v6, node.v6.iter().map(ToString::to_string).collect());
        put(&mut services, node.services.iter().map(|s| format!("{}:{}", s.target, s.port)).collect());
    }
    value!({
        "TTL": apex.map(|at| zone.authority().apexes[at].ttl),
        "Serial": zone.serial,
        "RefreshSeconds": 0,
        "Mname": "ns1.mesos.",
        "Rname": "root.ns1.mesos.",
        "Domain": MESOS,
        "Records": {"As": v4, "AAAAs": v6, "SRVs": services},
    })
}
