//! dcos-net's HTTP API (port 62080, `/net/` behind DC/OS's admin router), as far as it reads and tells no secret.
//!
//! The `lashup` paths, which hand out the cluster's key and run code, are deliberately not here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use event_watcher::catalog::{Protocol, Rotation, Snapshot, VipTarget};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json as value};

use super::{Answer, Api, heavy, json, refuse, text};
use crate::names::WireName;
use crate::records::L4LB;
use crate::zone::{Node, Zone};

pub(super) async fn answer(api: &Arc<Api>, path: &str, headers: &HeaderMap) -> Answer {
    let words: Vec<&str> = path.split('/').collect();
    match words[..] {
        ["version"] => json(&value!({"Service": "dcos-dns", "Version": env!("CARGO_PKG_VERSION")})),
        ["config"] | ["enumerate"] | ["hosts", _, "ports"] => {
            refuse(StatusCode::NOT_IMPLEMENTED, "not implemented, as in dcos-net")
        }
        ["hosts", host] => json(&hosts(&api.zone.load(), host)),
        ["services", service] => json(&services(&api.zone.load(), service)),
        ["records"] => {
            let api = Arc::clone(api);
            heavy(move || json(&records(&api.zone.load()))).await
        }
        ["vips"] => {
            let snapshot = api.subscriber.latest();
            tagged(&snapshot, headers, || vips(&snapshot))
        }
        ["nodes"] => json(&nodes(api)),
        ["metrics"] | ["metrics", "default" | "dns"] => {
            let mut metrics = String::new();
            api.plane.metrics(&mut metrics);
            text("text/plain; version=0.0.4; charset=utf-8", metrics)
        }
        ["metrics", "l4lb"] => {
            let snapshot = api.subscriber.latest();
            let n_backends: usize = snapshot.vips.iter().map(|vip| backends(&snapshot, vip).len()).sum();
            let metrics = format!(
                "# TYPE l4lb_vips gauge\nl4lb_vips {}\n# TYPE l4lb_backends gauge\nl4lb_backends {n_backends}\n",
                snapshot.vips.iter().len()
            );
            text("text/plain; version=0.0.4; charset=utf-8", metrics)
        }
        _ => refuse(StatusCode::NOT_FOUND, "no such page; /v1/version is one"),
    }
}

fn find<'z>(zone: &'z Zone, name: &str) -> Option<(String, &'z Node)> {
    let name = WireName::parse(name)?;
    Some((name.to_string(), zone.find(name.as_bytes())?.node?))
}

fn hosts(zone: &Zone, host: &str) -> Vec<Value> {
    let Some((host, node)) = find(zone, host) else { return Vec::new() };
    node.v4.iter().map(|ip| value!({"host": host, "ip": ip})).collect()
}

fn services(zone: &Zone, service: &str) -> Vec<Value> {
    let Some((service, node)) = find(zone, service) else { return Vec::new() };
    let record = |record: &crate::zone::ServiceRecord| {
        let mut entry = value!({"service": service, "host": record.target.to_string(), "port": record.port});
        if let Some(ip) = zone.node(record.target.as_bytes()).and_then(|target| target.v4.first()) {
            entry["ip"] = value!(ip);
        }
        entry
    };
    node.services.iter().map(record).collect()
}

/// The records of all zones.
fn records(zone: &Zone) -> Vec<Value> {
    let mut all = Vec::with_capacity(zone.n_names());
    for (name, node) in zone.nodes() {
        let name = name.to_string();
        all.extend(node.v4.iter().map(|ip| value!({"name": name, "host": ip, "rtype": "A"})));
        all.extend(node.v6.iter().map(|ip| value!({"name": name, "host": ip, "rtype": "AAAA"})));
        all.extend(node.services.iter().map(|record| {
            value!({"name": name, "host": format!("{}:{}", record.target, record.port), "rtype": "SRV"})
        }));
    }
    all
}

fn vips(snapshot: &Snapshot) -> Vec<Value> {
    let vip = |vip: &event_watcher::catalog::Vip| {
        let name = match &vip.key.target {
            VipTarget::Named(name) => format!("{name}.{L4LB}"),
            VipTarget::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            VipTarget::Ip(ip) => ip.to_string(),
        };
        value!({
            "vip": format!("{name}:{}", vip.key.port),
            "protocol": vip.key.protocol.to_string(),
            "backend": backends(snapshot, vip)
                .into_iter()
                .map(|address| value!({"ip": address.ip(), "port": address.port()}))
                .collect::<Vec<_>>(),
        })
    };
    snapshot.vips.iter().map(vip).collect()
}

/// Where new connections to a VIP may go.
pub(super) fn backends(snapshot: &Snapshot, vip: &event_watcher::catalog::Vip) -> Vec<std::net::SocketAddr> {
    let services = vip.services.iter().filter_map(|service| Some((snapshot.app(&service.app)?, service)));
    services
        .flat_map(|(app, service)| {
            let usable = app.instances.iter().filter(|instance| instance.rotation() == Rotation::In);
            usable.filter_map(|instance| Some(instance.endpoint(service.port_index)?.address))
        })
        .collect()
}

/// The agents that run anything.
fn nodes(api: &Api) -> Vec<Value> {
    let snapshot = api.subscriber.latest();
    let mut nodes: BTreeMap<IpAddr, String> = BTreeMap::new();
    for instance in snapshot.apps.values().flat_map(|app| &app.instances) {
        if let Some(ip) = instance.host_address {
            nodes.entry(ip).or_insert_with(|| instance.host.to_string());
        }
    }
    let updated = jiff::Timestamp::from_second(api.zone.load().serial.into()).unwrap_or_default().to_string();
    let own = &api.config.node_addresses;
    let node = |(ip, host): (IpAddr, String)| {
        let public: &[IpAddr] = if own.contains(&ip) { &api.config.public_addresses } else { &[] };
        value!({"private_ip": ip, "public_ips": public, "hostname": host, "updated": updated})
    };
    nodes.into_iter().map(node).collect()
}

/// An answer that a client may keep until the next generation.
fn tagged(snapshot: &Snapshot, headers: &HeaderMap, body: impl FnOnce() -> Vec<Value>) -> Answer {
    let tag = format!("\"{}\"", snapshot.generation);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known.is_some_and(|known| known == "*" || known.contains(&tag)) {
        let mut unchanged = Response::default();
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        json(&body())
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The protocol of a VIP as both APIs write it.
pub(super) fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}
