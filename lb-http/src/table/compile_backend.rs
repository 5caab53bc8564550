//! One service of one app, or of a deployment group, compiled: which endpoints are in its pool, and what is said of
//! them.
//!
//! Live state comes from the backend that was there before. Routes are not looked at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use event_watcher::catalog::{Health, Instance, InstanceId, InstanceState, Readiness, Rotation, Service};
use l4_vip::pool::{EndpointState, Pool};

use super::{Backend, Server, ServerCookie, ServerStatus, Standing};
use crate::deployment::Unit;
use crate::health::Judged;
use crate::labels::{self, Affinity, CheckPort, Panic, ServiceLabels};
use crate::names;
use crate::stats::Series;

pub(super) struct CompileBackend<'a> {
    pub(super) unit: &'a Unit,
    pub(super) service: &'a Service,
    pub(super) previous: Option<&'a Backend>,
    pub(super) static_address: Option<SocketAddr>,
    pub(super) n_workers: usize,
    pub(super) now: Instant,
}

/// An endpoint on its way into a pool.
struct Member<'a> {
    instance: Option<&'a Instance>,
    id: InstanceId,
    address: SocketAddr,
    rotation: Rotation,
    checked: Checked,
}

/// What the balancer's own checks say of a member that would be in rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checked {
    Up,
    Down,
}

impl CompileBackend<'_> {
    pub(super) fn backend(&self, labels: ServiceLabels) -> Backend {
        let previous = self.previous;
        let labels = match previous {
            Some(previous) if *previous.labels == labels => Arc::clone(&previous.labels),
            _ => Arc::new(labels),
        };
        let queue = previous.map_or_else(Arc::default, |p| Arc::clone(&p.queue));
        queue.set_maximum(labels.capacity.per_endpoint);
        let mut members = self.members(&labels);
        // As a pool has them.
        members.sort_by(|a, b| (a.address, &a.id).cmp(&(b.address, &b.id)));
        members.dedup_by(|a, b| a.address == b.address && a.id == b.id);
        let healthy: Vec<bool> = members.iter().map(|m| m.rotation == Rotation::In).collect();
        let n_healthy = healthy.iter().filter(|is_up| **is_up).count();
        if n_healthy == 0 && labels.panic == Panic::UseAll {
            self.use_what_runs(&mut members);
        }
        let of_pool = members.iter().map(|m| (m.id.clone(), m.address, m.rotation));
        let pool = Pool::new(labels.balance, of_pool, previous.map(|p| &p.pool));
        let mut servers: Vec<Server> = Vec::with_capacity(pool.endpoints().len());
        let in_pool = members.iter().zip(healthy).filter(|(m, _)| m.rotation != Rotation::Out);
        for (endpoint, (member, is_up)) in pool.endpoints().iter().zip(in_pool) {
            debug_assert_eq!((endpoint.address, &endpoint.instance), (member.address, &member.id));
            let status = match member.checked {
                Checked::Down => ServerStatus::Failing,
                Checked::Up => self.status(endpoint, member.instance),
            };
            let check_address = check_address(endpoint, member.instance, &labels);
            let server = self.server(endpoint, member.instance, is_up, &labels, &servers);
            let judged = match member.instance.map(|i| i.health) {
                Some(Health::Unknown) => Judged::NotYet,
                _ => Judged::Yes,
            };
            servers.push(Server { status, judged, check_address, ..server });
        }
        // A backend without any endpoint has just not been scaled up yet: that is down, but not a downtime.
        let is_up = n_healthy > 0;
        let same_name = previous.filter(|p| p.labels.port == labels.port);
        Backend {
            service: self.service.id.clone(),
            name: match same_name {
                Some(previous) => Arc::clone(&previous.name),
                None => names::backend(&self.unit.app.id, labels.port).into(),
            },
            app_version: Arc::clone(&self.unit.app.version),
            n_healthy,
            pool,
            servers: servers.into(),
            queue,
            series: same_name.map_or_else(|| Series::new(self.n_workers), |p| Arc::clone(&p.series)),
            frontend: same_name.map_or_else(|| Series::new(self.n_workers), |p| Arc::clone(&p.frontend)),
            tcp: same_name.map_or_else(Arc::default, |p| Arc::clone(&p.tcp)),
            standing: previous
                .map_or_else(|| Standing::new(is_up, self.now), |p| p.standing.next(is_up, self.now)),
            labels,
        }
    }

    fn members(&self, labels: &ServiceLabels) -> Vec<Member<'_>> {
        if let Some(server) = &labels.static_server {
            let id = labels::static_instance(&server.name);
            let member = |address| Member {
                instance: None,
                id,
                address,
                rotation: Rotation::In,
                checked: Checked::Up,
            };
            return self.static_address.map(member).into_iter().collect();
        }
        let members = self.unit.app.instances.iter().filter_map(|instance| {
            let endpoint = instance.endpoint(self.service.id.port_index)?;
            let rotation = match labels.require.rotation(instance) {
                Rotation::In if self.unit.disabled.contains(&instance.id) => Rotation::Draining,
                rotation => rotation,
            };
            let (id, address) = (instance.id.clone(), endpoint.address);
            let (rotation, checked) = match rotation {
                Rotation::In if labels.check.is_some() && self.is_known_down(&id, address) => {
                    (Rotation::Draining, Checked::Down)
                }
                rotation => (rotation, Checked::Up),
            };
            Some(Member { instance: Some(instance), id, address, rotation, checked })
        });
        members.collect()
    }

    fn is_known_down(&self, id: &InstanceId, address: SocketAddr) -> bool {
        let known = self.previous.map_or(&[][..], |p| &p.servers);
        known.iter().any(|s| s.is_known_down() && s.endpoint.instance == *id && s.endpoint.address == address)
    }

    /// Nothing is healthy: those that only the balancer's own checks are against are used, or else those that nobody
    /// has judged yet, or else those that are judged to be ill. Never one that is being stopped or says itself that it
    /// is not ready.
    fn use_what_runs(&self, members: &mut [Member<'_>]) {
        members.iter_mut().filter(|m| m.checked == Checked::Down).for_each(|m| m.rotation = Rotation::In);
        let runs = |member: &Member<'_>, health: Health| {
            member.instance.is_some_and(|i| {
                matches!(i.state, InstanceState::Running | InstanceState::Unreachable)
                    && i.health == health
                    && i.readiness != Readiness::NotReady
                    && !self.unit.disabled.contains(&i.id)
            })
        };
        for health in [Health::Unknown, Health::Unhealthy] {
            if members.iter().any(|m| m.rotation == Rotation::In) {
                return;
            }
            members.iter_mut().filter(|m| runs(m, health)).for_each(|m| m.rotation = Rotation::In);
        }
    }

    fn status(&self, endpoint: &EndpointState, instance: Option<&Instance>) -> ServerStatus {
        let Some(instance) = instance else { return ServerStatus::Unchecked };
        if self.unit.disabled.contains(&instance.id) {
            return ServerStatus::Disabled;
        }
        if instance.state == InstanceState::Killing {
            return ServerStatus::Draining;
        }
        match instance.health {
            Health::Unhealthy => ServerStatus::Unhealthy,
            _ if endpoint.rotation() != Rotation::In => ServerStatus::Draining,
            Health::Healthy | Health::Presumed => ServerStatus::Up,
            Health::Unchecked => ServerStatus::Unchecked,
            Health::Unknown => ServerStatus::Unknown,
        }
    }

    fn server(
        &self,
        endpoint: &Arc<EndpointState>,
        instance: Option<&Instance>,
        is_up: bool,
        labels: &ServiceLabels,
        others: &[Server],
    ) -> Server {
        let known = self.previous.and_then(|p| p.servers.iter().find(|s| Arc::ptr_eq(&s.endpoint, endpoint)));
        let known_check = known.and_then(|known| known.check.clone());
        let check = known_check.or_else(|| labels.check.as_ref().map(|_| Arc::default()));
        let same_cookie = self
            .previous
            .is_some_and(|p| p.labels.cookie == labels.cookie && p.labels.affinity == labels.affinity);
        if let Some(known) = known.filter(|_| same_cookie) {
            return Server { standing: known.standing.next(is_up, self.now), check, ..known.clone() };
        }
        let host = instance.map_or_else(|| endpoint.address.ip().to_string().into(), |i| Arc::clone(&i.host));
        let name = match &labels.static_server {
            Some(server) => (*server.name).to_owned(),
            None => names::server(&host, endpoint.address),
        };
        let known_ids = self.previous.map_or(&[][..], |p| &p.servers);
        let is_taken = |id| others.iter().chain(known_ids).any(|s| s.id == id && *s.name != *name);
        let cookie = (labels.affinity == Affinity::Cookie).then(|| {
            let value = names::cookie_value(&name);
            Arc::new(ServerCookie { set: labels.cookie.set(&value), value })
        });
        Server {
            id: names::server_id(&name, is_taken),
            cookie,
            name: name.into(),
            host,
            endpoint: Arc::clone(endpoint),
            series: known.map_or_else(|| Series::new(self.n_workers), |k| Arc::clone(&k.series)),
            status: ServerStatus::Unknown,
            check,
            judged: Judged::Yes,
            check_address: None,
            standing: known
                .map_or_else(|| Standing::new(is_up, self.now), |k| k.standing.next(is_up, self.now)),
        }
    }
}

/// Where the check of a server is sent. Nobody asks one that is being stopped, or one that only a label knows.
fn check_address(
    endpoint: &EndpointState,
    instance: Option<&Instance>,
    labels: &ServiceLabels,
) -> Option<SocketAddr> {
    let check = labels.check.as_ref()?;
    let instance = instance.filter(|i| i.state != InstanceState::Killing)?;
    match check.port {
        CheckPort::Own => Some(endpoint.address),
        CheckPort::Service(index) => instance.endpoint(index).map(|e| e.address),
        CheckPort::Fixed(port) => Some(SocketAddr::new(endpoint.address.ip(), port)),
    }
}
