//! The read parts of DC/OS's networking API (`/networking/api/v1`), which its pages and its CLI show VIPs with.
//!
//! Traffic is counted by whoever serves the VIPs; here it is only kept for a minute, to tell what the last one brought.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_watcher::catalog::{Protocol, Snapshot, Vip, VipKey, VipTarget};
use http::StatusCode;
use serde_json::{Value, json as value};
use tokio::time::Instant;

use super::dcos::{backends, protocol};
use super::{Answer, Api, json, refuse};
use crate::VipTraffic;
use crate::records::L4LB;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(60);

/// Totals of the last minute, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<VecDeque<(Instant, Totals)>>);

/// Connections, and those that failed, since the start.
type Totals = HashMap<VipKey, (u64, u64)>;

pub(super) async fn keep_sampling(api: Arc<Api>) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    loop {
        let now = ticks.tick().await;
        let totals = totals(&api.plane.vip_traffic());
        let mut samples = api.samples.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back((now, totals));
        while samples.front().is_some_and(|(taken, _)| now.duration_since(*taken) > WINDOW) {
            samples.pop_front();
        }
    }
}

fn totals(traffic: &[VipTraffic]) -> Totals {
    traffic.iter().map(|vip| (vip.key.clone(), (vip.n_connections, vip.n_failures))).collect()
}

pub(super) fn answer(api: &Api, path: &str) -> Answer {
    let snapshot = api.subscriber.latest();
    let words: Vec<&str> = path.split('/').collect();
    match words[..] {
        ["vips"] => {
            let vips: Vec<Value> = snapshot.vips.iter().flat_map(|vip| rows(vip).map(|row| row.0)).collect();
            json(&value!({"array": vips}))
        }
        ["summary"] => json(&summary(api, &snapshot)),
        ["membership"] => json(&value!({"array": members(&snapshot)})),
        ["backend-connections", ip, proto, port] => {
            connections(api, &snapshot, ip, proto, port).unwrap_or_else(unknown)
        }
        [ip, proto, port] => details(api, &snapshot, ip, proto, port).unwrap_or_else(unknown),
        _ => refuse(StatusCode::NOT_FOUND, "no such page; /networking/api/v1/vips is one"),
    }
}

fn unknown() -> Answer {
    refuse(StatusCode::NOT_FOUND, "no such VIP")
}

/// A VIP as these pages name it, once for each of its addresses.
fn rows(vip: &Vip) -> impl Iterator<Item = (Value, IpAddr)> {
    let name = match &vip.key.target {
        VipTarget::Named(name) => name.to_string(),
        VipTarget::Ip(_) => String::new(),
    };
    vip.addresses.iter().map(move |ip| {
        let row = value!({
            "ip": ip,
            "port": vip.key.port.to_string(),
            "protocol": vip.key.protocol.to_string(),
            "name": name,
        });
        (row, *ip)
    })
}

/// Connections that succeeded and failed in the last minute, or since the first sample.
fn last_minute(api: &Api, now: &Totals, key: &VipKey) -> (u64, u64) {
    let (connections, failures) = now.get(key).copied().unwrap_or_default();
    let samples = api.samples.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (old, old_failures) =
        samples.front().and_then(|(_, totals)| totals.get(key)).copied().unwrap_or_default();
    let failed = failures.saturating_sub(old_failures);
    (connections.saturating_sub(old).saturating_sub(failed), failed)
}

fn summary(api: &Api, snapshot: &Snapshot) -> Value {
    let now = totals(&api.plane.vip_traffic());
    let mut all = Vec::new();
    for vip in snapshot.vips.iter() {
        let (success, fail) = last_minute(api, &now, &vip.key);
        let backends = backends(snapshot, vip);
        let (reachable, all_hosts) = reachability(snapshot, vip);
        for (row, _) in rows(vip) {
            all.push(value!({
                "vip": row,
                "success_last_minute": success,
                "fail_last_minute": fail,
                "backends": backends.len(),
                "application_reachability_pct": percent(backends.len(), n_instances(snapshot, vip)),
                "machine_reachability_pct": percent(reachable, all_hosts),
                "p99_latency_ms": Value::Null,
            }));
        }
    }
    value!({"array": all})
}

fn n_instances(snapshot: &Snapshot, vip: &Vip) -> usize {
    vip.services.iter().filter_map(|service| snapshot.app(&service.app)).map(|app| app.instances.len()).sum()
}

/// Instances on agents that answer, of all.
fn reachability(snapshot: &Snapshot, vip: &Vip) -> (usize, usize) {
    let apps = vip.services.iter().filter_map(|service| snapshot.app(&service.app));
    let states: Vec<_> = apps.flat_map(|app| app.instances.iter().map(|instance| instance.state)).collect();
    let reachable = |state: &&_| **state != event_watcher::catalog::InstanceState::Unreachable;
    (states.iter().filter(reachable).count(), states.len())
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn members(snapshot: &Snapshot) -> Vec<Value> {
    let mut hosts: Vec<IpAddr> =
        snapshot.apps.values().flat_map(|app| &app.instances).filter_map(|i| i.host_address).collect();
    hosts.sort();
    hosts.dedup();
    hosts.into_iter().map(|ip| value!({"ip": ip})).collect()
}

fn find<'s>(snapshot: &'s Snapshot, vip: &str, proto: &str, port: &str) -> Option<&'s Vip> {
    let (proto, port): (Protocol, u16) = (protocol(proto)?, port.parse().ok()?);
    let bare = vip.strip_suffix(L4LB).map_or(vip, |name| name.trim_end_matches('.'));
    let ip: Option<IpAddr> = vip.parse().ok();
    snapshot.vips.iter().find(|known| {
        known.key.protocol == proto
            && known.key.port == port
            && (ip.is_some_and(|ip| known.addresses.contains(&ip)) || known.key.target.to_string() == bare)
    })
}

/// Who the backends are, and what the last minute brought.
fn details(api: &Api, snapshot: &Snapshot, vip: &str, proto: &str, port: &str) -> Option<Answer> {
    let vip = find(snapshot, vip, proto, port)?;
    let traffic = api.plane.vip_traffic();
    let (success, fail) = last_minute(api, &totals(&traffic), &vip.key);
    let of_vip = traffic.iter().find(|t| t.key == vip.key);
    let mut entries = Vec::new();
    for service in &vip.services {
        let Some(app) = snapshot.app(&service.app) else { continue };
        for instance in &app.instances {
            let Some(endpoint) = instance.endpoint(service.port_index) else { continue };
            let of_backend = of_vip.and_then(|t| t.backends.iter().find(|b| b.address == endpoint.address));
            entries.push(value!({
                "ip": endpoint.address.ip(),
                "port": endpoint.address.port().to_string(),
                "framework_id": &**snapshot.framework_of(&app.id),
                "task_id": instance.id.as_str(),
                "connections": of_backend.map_or(0, |b| b.n_connections),
                "failures": of_backend.map_or(0, |b| b.n_failures),
            }));
        }
    }
    let (row, _) = rows(vip).next()?;
    Some(json(&value!({
        "vip": row,
        "success_last_minute": success,
        "fail_last_minute": fail,
        "backend_count": entries.len(),
        "backends": entries,
    })))
}

/// Who is connected is not kept; how many are is.
fn connections(api: &Api, snapshot: &Snapshot, ip: &str, proto: &str, port: &str) -> Option<Answer> {
    let address = std::net::SocketAddr::new(ip.parse().ok()?, port.parse().ok()?);
    let proto = protocol(proto)?;
    let is_known = snapshot
        .vips
        .iter()
        .any(|vip| vip.key.protocol == proto && backends(snapshot, vip).contains(&address));
    let traffic = api.plane.vip_traffic();
    let mut of_backend = traffic.iter().filter(|t| t.key.protocol == proto).flat_map(|t| &t.backends);
    let in_flight = of_backend.find(|b| b.address == address).map_or(0, |b| b.n_in_flight);
    is_known.then(|| {
        json(&value!({"ip": ip, "port": port, "protocol": proto.to_string(), "connections": in_flight, "clients": []}))
    })
}
