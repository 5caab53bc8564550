//! What the stats address says of VIPs: `/api/vips`, and `/v1/vips` as dcos-net answers it.
//!
//! Names, addresses and backends are the snapshot's; what serves them and what was counted is the plane's.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::{App, AppId, Generation, InstanceId, Rotation, Vip, VipKey, VipTarget};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use l4_vip::kernel::ChoiceView;
use l4_vip::stats::{Counts, PlaneKind, VipView as Served};
use serde::Serialize;

use super::Admin;
use super::server::{Answer, text};
use super::view::Counters;

/// Where named VIPs live in DNS.
pub const ZONE: &str = "l4lb.thisdcos.directory";

/// What this server reads of the plane that serves VIPs.
pub trait VipPlane: Send + Sync {
    fn choice(&self) -> ChoiceView;

    fn vips(&self) -> Vec<Served>;
}

#[derive(Debug, Serialize)]
pub struct Vips {
    pub generation: Generation,
    /// Absent when this process runs no VIP plane.
    pub plane: Option<ChoiceView>,
    pub vips: Vec<VipView>,
}

#[derive(Debug, Serialize)]
pub struct VipView {
    /// Below the zone, e.g. `dcos-101app2.marathon`; the address itself for an IP VIP.
    pub name: String,
    /// The full name in DNS, or the address.
    pub dns: String,
    pub port: u16,
    pub protocol: String,
    pub addresses: Vec<IpAddr>,
    /// Those of `addresses` that are in force now.
    pub served: Vec<IpAddr>,
    /// `ebpf`, `nft` or `userspace`.
    pub plane: Option<&'static str>,
    pub policy: Option<String>,
    pub affinity_seconds: Option<u64>,
    pub apps: Vec<AppId>,
    #[serde(flatten)]
    pub counters: VipCounters,
    pub backends: Vec<BackendView>,
}

/// What is counted of a VIP as a whole. What its plane does not count is `null`.
#[derive(Debug, Default, Serialize)]
pub struct VipCounters {
    pub n_connections: u64,
    /// Refused because there was no usable backend.
    pub n_no_endpoint: u64,
    // What the plane does not count is `null`.
    n_connect_failures: Option<u64>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    // Only a forwarder sees the rest.
    n_unreachable: Option<u64>,
    n_resets: Option<u64>,
    n_local_failures: Option<u64>,
    n_idle: Option<u64>,
}

impl VipCounters {
    fn of(served: &Served) -> Self {
        let counters = &served.counters;
        let Counts { bytes, connect_failures } = served.counts;
        let forwards = served.plane == PlaneKind::Userspace;
        Self {
            n_connections: counters.n_connections,
            n_no_endpoint: counters.n_no_endpoint,
            n_connect_failures: connect_failures.then_some(counters.n_connect_failures),
            bytes_in: bytes.then_some(counters.bytes_in),
            bytes_out: bytes.then_some(counters.bytes_out),
            n_unreachable: forwards.then_some(counters.n_unreachable),
            n_resets: forwards.then_some(counters.n_resets),
            n_local_failures: forwards.then_some(counters.n_local_failures),
            n_idle: forwards.then_some(counters.n_idle),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct BackendView {
    pub instance: InstanceId,
    pub address: SocketAddr,
    pub rotation: Rotation,
    /// Its share of new connections against the others'; 0 while it drains.
    pub weight: u16,
    pub n_connections: u64,
    pub per_sec: f64,
    /// What the plane does not count is `null`.
    pub n_in_flight: Option<u64>,
    pub n_connect_failures: Option<u64>,
    pub bytes_in: Option<u64>,
    pub bytes_out: Option<u64>,
    pub ejected: bool,
}

/// dcos-net's `/v1/vips`.
#[derive(Serialize)]
struct DcosVip {
    vip: String,
    protocol: String,
    backend: Vec<DcosBackend>,
}

#[derive(Serialize)]
struct DcosBackend {
    ip: IpAddr,
    port: u16,
}

impl Admin {
    pub(super) fn vips(&self) -> Vips {
        let snapshot = self.sources.subscriber.latest();
        let counters = Counters::of(self);
        let plane = self.sources.vips.as_ref();
        let key = |vip: &Served| VipKey { target: vip.vip.clone(), protocol: vip.protocol, port: vip.port };
        let served: HashMap<VipKey, Served> =
            plane.map(|plane| plane.vips()).into_iter().flatten().map(|vip| (key(&vip), vip)).collect();
        let view = |vip: &Vip| {
            let own = served.get(&vip.key);
            let weights: BTreeMap<SocketAddr, u16> =
                own.into_iter().flat_map(|own| &own.endpoints).map(|e| (e.address, e.weight)).collect();
            let name = vip.key.target.to_string();
            let mut apps: Vec<AppId> = vip.services.iter().map(|service| service.app.clone()).collect();
            apps.dedup();
            VipView {
                dns: dns_name(&vip.key),
                name,
                port: vip.key.port,
                protocol: vip.key.protocol.to_string(),
                addresses: vip.addresses.clone(),
                served: own.map(|own| own.listening.clone()).unwrap_or_default(),
                plane: own.map(|own| own.plane.as_str()),
                policy: own.map(|own| word(own.policy)),
                affinity_seconds: own.and_then(|own| own.affinity_seconds),
                counters: own.map(VipCounters::of).unwrap_or_default(),
                backends: vip
                    .services
                    .iter()
                    .filter_map(|service| Some((snapshot.app(&service.app)?, service.port_index)))
                    .flat_map(|(app, port_index)| {
                        backends(app, port_index, &vip.key, &weights, &counters, own)
                    })
                    .collect(),
                apps,
            }
        };
        Vips {
            generation: snapshot.generation,
            plane: plane.map(|plane| plane.choice()),
            vips: snapshot.vips.iter().map(view).collect(),
        }
    }
}

/// With an entity tag, so that whoever polls it is told cheaply that nothing changed.
pub fn dcos_net(admin: &Admin, request: &HeaderMap) -> Response<Answer> {
    let vips: Vec<DcosVip> = admin
        .vips()
        .vips
        .into_iter()
        .map(|vip| DcosVip {
            vip: format!("{}:{}", vip.dns, vip.port),
            protocol: vip.protocol,
            backend: vip
                .backends
                .iter()
                .map(|backend| DcosBackend { ip: backend.address.ip(), port: backend.address.port() })
                .collect(),
        })
        .collect();
    let body = serde_json::to_string(&vips).expect("texts and numbers are always written");
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let is_known = request
        .get(header::IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
    let mut response = text("application/json", if is_known { String::new() } else { body });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let tag = HeaderValue::try_from(tag).expect("a quoted number in hexadecimal is a header value");
    response.headers_mut().insert(header::ETAG, tag);
    response
}

fn dns_name(key: &VipKey) -> String {
    match &key.target {
        VipTarget::Named(name) => format!("{name}.{ZONE}"),
        VipTarget::Ip(ip) => ip.to_string(),
    }
}

fn backends<'a>(
    app: &'a App,
    port_index: usize,
    key: &'a VipKey,
    weights: &'a BTreeMap<SocketAddr, u16>,
    counters: &'a Counters,
    served: Option<&Served>,
) -> impl Iterator<Item = BackendView> + 'a {
    let Counts { bytes, connect_failures } = served.map_or(Counts::NONE, |served| served.counts);
    let forwards = served.is_some_and(|served| served.plane == PlaneKind::Userspace);
    let members = app.instances.iter().filter(|instance| instance.rotation() != Rotation::Out);
    members.flat_map(move |instance| {
        instance.endpoints_of(port_index).map(move |endpoint| {
            let traffic = counters.vip(&instance.id, endpoint.address, key).cloned().unwrap_or_default();
            let weight = match instance.rotation() {
                Rotation::In => weights.get(&endpoint.address).copied().unwrap_or(1),
                _ => 0,
            };
            BackendView {
                instance: instance.id.clone(),
                address: endpoint.address,
                rotation: instance.rotation(),
                weight,
                n_in_flight: forwards.then_some(traffic.n_in_flight),
                n_connect_failures: connect_failures.then_some(traffic.n_failures),
                bytes_in: bytes.then_some(traffic.bytes_in),
                bytes_out: bytes.then_some(traffic.bytes_out),
                n_connections: traffic.n_total,
                per_sec: traffic.per_sec,
                ejected: traffic.ejected,
            }
        })
    })
}

/// The word that an enum is in JSON.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => other.map_or_else(|_| String::new(), |value| value.to_string()),
    }
}
