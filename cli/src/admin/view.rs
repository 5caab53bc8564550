//! The shapes of the answers: what `/api/…` serialises and what the page shows, made from snapshot and counters.
//!
//! Pure: everything is passed in by [`Admin`]'s fields; nothing here renders.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use event_watcher::SourceView;
use event_watcher::catalog::{
    App, AppId, Generation, Health, Instance, InstanceId, InstanceState, Problem, Readiness, Rotation,
    Snapshot, VipKey,
};
use event_watcher::publish::Freshness;
use l4_vip::kernel::ChoiceView;
use serde::Serialize;

use super::plane::{EndpointSample, Which};
use super::{Addresses, Admin};
use crate::args::PlaneName;

#[derive(Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    pub generation: Generation,
    /// What every plane has applied.
    pub applied: Generation,
    pub freshness: Freshness,
    /// Each scheduler and file, in the order in which they win.
    pub sources: Vec<SourceView>,
    pub ready: bool,
    pub uptime_seconds: u64,
    pub planes: Vec<PlaneStatus>,
    pub addresses: Addresses,
    pub n_apps: usize,
    pub n_instances: usize,
    pub n_vips: usize,
    /// What serves VIPs, and why nothing better does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip_plane: Option<ChoiceView>,
    pub problems: Vec<PlaneProblem>,
}

#[derive(Debug, Serialize)]
pub struct PlaneStatus {
    pub name: PlaneName,
    pub applied: Generation,
    pub totals: BTreeMap<&'static str, u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PlaneProblem {
    /// Who found it: `catalog`, or a plane.
    pub from: String,
    #[serde(flatten)]
    pub problem: Problem,
}

/// A listing, with the snapshot that it was made from.
#[derive(Debug, Serialize)]
pub struct Apps {
    pub generation: Generation,
    pub apps: Vec<AppView>,
}

#[derive(Debug, Serialize)]
pub struct AppView {
    pub id: AppId,
    pub version: String,
    pub n_instances_wanted: u32,
    pub n_in_rotation: usize,
    pub deployments: Vec<String>,
    pub services: Vec<ServiceView>,
    pub instances: Vec<InstanceView>,
}

#[derive(Debug, Serialize)]
pub struct ServiceView {
    pub port_index: usize,
    pub name: Option<String>,
    pub service_port: Option<u16>,
    pub vips: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct InstanceView {
    pub id: InstanceId,
    pub host: String,
    pub version: String,
    pub state: InstanceState,
    pub health: Health,
    pub readiness: Readiness,
    pub rotation: Rotation,
    /// Its share of new work against the others': 1 in rotation, 0 outside of it.
    pub weight: u32,
    pub started_at: Option<String>,
    pub endpoints: Vec<EndpointView>,
}

#[derive(Debug, Serialize)]
pub struct EndpointView {
    pub port_index: usize,
    pub address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Traffic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Traffic>,
}

/// What one plane sends to one endpoint. Totals are requests for HTTP and connections for VIPs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Traffic {
    pub n_in_flight: u64,
    pub n_total: u64,
    pub per_sec: f64,
    pub n_failures: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub latency_ms: Option<f64>,
    pub ejected: bool,
}

/// Counters of all endpoints, found by what they belong to.
pub(super) struct Counters(HashMap<(InstanceId, SocketAddr, Option<VipKey>), Traffic>);

impl Counters {
    pub(super) fn of(admin: &Admin) -> Self {
        let mut found = HashMap::new();
        for (_, plane) in &admin.sources.planes {
            plane.endpoints(Which::All, &mut |sample: EndpointSample| {
                let traffic = Traffic {
                    n_in_flight: sample.n_in_flight,
                    n_total: sample.n_total,
                    per_sec: admin.samples.per_sec(&sample),
                    n_failures: sample.n_failures,
                    bytes_in: sample.bytes_in,
                    bytes_out: sample.bytes_out,
                    latency_ms: sample.latency.map(|l| l.as_secs_f64() * 1e3),
                    ejected: sample.ejected,
                };
                let sum = found
                    .entry((sample.instance, sample.address, sample.vip))
                    .or_insert_with(Traffic::default);
                add(sum, &traffic);
            });
        }
        Self(found)
    }

    fn http(&self, instance: &InstanceId, address: SocketAddr) -> Option<Traffic> {
        self.0.get(&(instance.clone(), address, None)).cloned()
    }

    pub(super) fn vip(&self, instance: &InstanceId, address: SocketAddr, key: &VipKey) -> Option<&Traffic> {
        self.0.get(&(instance.clone(), address, Some(key.clone())))
    }

    fn vips(&self, instance: &InstanceId, address: SocketAddr, keys: &[VipKey]) -> Option<Traffic> {
        let mut found = keys.iter().filter_map(|key| self.vip(instance, address, key));
        let mut sum = found.next()?.clone();
        found.for_each(|traffic| add(&mut sum, traffic));
        Some(sum)
    }
}

fn add(sum: &mut Traffic, more: &Traffic) {
    sum.n_in_flight += more.n_in_flight;
    sum.n_total += more.n_total;
    sum.per_sec += more.per_sec;
    sum.n_failures += more.n_failures;
    sum.bytes_in += more.bytes_in;
    sum.bytes_out += more.bytes_out;
    // The slower of two ports is the one to look at.
    sum.latency_ms = match (sum.latency_ms, more.latency_ms) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    sum.ejected |= more.ejected;
}

impl Admin {
    pub(super) fn status(&self) -> Status {
        let snapshot = self.sources.subscriber.latest();
        let planes = self.sources.planes.iter();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            generation: snapshot.generation,
            applied: self.sources.applied.generation(),
            freshness: self.sources.subscriber.freshness(),
            sources: self.sources.watcher.as_ref().map(|w| w.sources()).unwrap_or_default(),
            ready: self.is_ready(),
            uptime_seconds: self.started.elapsed().as_secs(),
            planes: planes
                .map(|(name, plane)| PlaneStatus {
                    name: *name,
                    applied: plane.applied().generation(),
                    totals: plane.totals().into_iter().collect(),
                })
                .collect(),
            addresses: self.sources.addresses.clone(),
            n_apps: snapshot.apps.len(),
            n_instances: snapshot.n_instances,
            n_vips: snapshot.vips.iter().len(),
            vip_plane: self.sources.vips.as_ref().map(|plane| plane.choice()),
            problems: self.problems(&snapshot),
        }
    }

    pub(super) fn problems(&self, snapshot: &Snapshot) -> Vec<PlaneProblem> {
        let of_catalog = snapshot
            .problems
            .iter()
            .map(|problem| PlaneProblem { from: "catalog".to_owned(), problem: problem.clone() });
        let of_planes = self.sources.planes.iter().flat_map(|(name, plane)| {
            let from = name.as_str();
            plane
                .problems()
                .iter()
                .map(|problem| PlaneProblem { from: from.to_owned(), problem: problem.clone() })
                .collect::<Vec<_>>()
        });
        let mut problems: Vec<_> = of_catalog.chain(of_planes).collect();
        problems.sort();
        problems
    }

    /// All apps, or the one of this id.
    pub(super) fn apps(&self, only: Option<&AppId>) -> Apps {
        let snapshot = self.sources.subscriber.latest();
        let counters = Counters::of(self);
        let apps = match only {
            Some(id) => snapshot.app(id).into_iter().map(|app| app_view(app, &counters)).collect(),
            None => snapshot.apps.values().map(|app| app_view(app, &counters)).collect(),
        };
        Apps { generation: snapshot.generation, apps }
    }
}

fn app_view(app: &App, counters: &Counters) -> AppView {
    let service = |service: &event_watcher::catalog::Service| ServiceView {
        port_index: service.id.port_index,
        name: service.name.as_deref().map(str::to_owned),
        service_port: service.service_port,
        vips: service.vips.iter().map(|key| format!("{}:{}", key.target, key.port)).collect(),
    };
    AppView {
        id: app.id.clone(),
        version: app.version.to_string(),
        n_instances_wanted: app.n_instances_wanted,
        n_in_rotation: app.instances.iter().filter(|i| i.rotation() == Rotation::In).count(),
        deployments: app.deployments.iter().map(ToString::to_string).collect(),
        services: app.services.iter().map(service).collect(),
        instances: app.instances.iter().map(|instance| instance_view(app, instance, counters)).collect(),
    }
}

fn instance_view(app: &App, instance: &Instance, counters: &Counters) -> InstanceView {
    let keys = |port_index| app.service(port_index).map_or(&[][..], |service| &service.vips);
    InstanceView {
        id: instance.id.clone(),
        host: instance.host.to_string(),
        version: instance.version.to_string(),
        state: instance.state,
        health: instance.health,
        readiness: instance.readiness,
        rotation: instance.rotation(),
        weight: u32::from(instance.rotation() == Rotation::In),
        started_at: instance.started_at.as_deref().map(str::to_owned),
        endpoints: instance
            .endpoints
            .iter()
            .map(|endpoint| EndpointView {
                port_index: endpoint.port_index,
                address: endpoint.address,
                http: counters.http(&instance.id, endpoint.address),
                vip: counters.vips(&instance.id, endpoint.address, keys(endpoint.port_index)),
            })
            .collect(),
    }
}
