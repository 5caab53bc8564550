//! What a snapshot compiles to: backends with their servers, and the routes that lead to them.
//!
//! A table never changes; live state (requests in flight, ejection, counters) is shared with the table before it.
//! Compiling costs what changed: an app that claims the same ports, hosts and paths as before takes the place that it had. Who listens where is not decided
//! here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_watcher::catalog::{
    App, AppId, Delta, Generation, Health, Instance, InstanceId, InstanceState, Problem, Rotation, Service,
    ServiceId, Snapshot,
};
use http::HeaderValue;
use imbl::Vector;
use l4_vip::pool::{EndpointState, Member, Pool};
use l4_vip::stats::Counters;

use crate::labels::{self, Affinity, Mode, ServiceLabels};
use crate::names;
use crate::route::Routes;
use crate::stats::{Series, Totals};
use crate::sticky;

#[derive(Debug)]
pub struct Table {
    pub generation: Generation,
    /// By app id, then port. Routes hold indices into it.
    pub backends: Vector<Arc<Backend>>,
    pub routes: Arc<Routes>,
    /// What is wrong with labels and routes, by app.
    pub problems: Arc<[Problem]>,
}

impl Table {
    pub fn backend(&self, service: &ServiceId) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|b| b.service == *service)
    }
}

/// One service of one app, as HAProxy means the word.
#[derive(Debug)]
pub struct Backend {
    pub service: ServiceId,
    /// Marathon-LB's name; the frontend of the service port has it too.
    pub name: Arc<str>,
    pub app_version: Arc<str>,
    pub labels: Arc<ServiceLabels>,
    pub pool: Pool,
    /// One for each of the pool's endpoints, at the same index.
    pub servers: Box<[Server]>,
    pub series: Arc<Series>,
    /// The series of the service port's frontend.
    pub frontend: Arc<Series>,
    /// What the forwarder counts of it in mode tcp.
    pub tcp: Arc<Counters>,
    pub standing: Standing,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub name: Arc<str>,
    /// HAProxy's `sid`.
    pub id: u16,
    /// The value of the sticky cookie.
    pub cookie: Arc<str>,
    pub set_cookie: HeaderValue,
    pub host: Arc<str>,
    pub endpoint: Arc<EndpointState>,
    pub series: Arc<Series>,
    pub status: ServerStatus,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// The scheduler's health checks pass.
    Up,
    /// The app has no health checks.
    Unchecked,
    /// Being stopped: finishes what it has.
    Draining,
    /// The scheduler's health checks fail.
    Unhealthy,
}

/// Since when something is up or down, and how long it has been down in all.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub is_up: bool,
    pub since: Instant,
    pub n_downs: u64,
    down_before: Duration,
}

impl Standing {
    fn new(is_up: bool, now: Instant) -> Self {
        Self { is_up, since: now, n_downs: 0, down_before: Duration::ZERO }
    }

    fn next(self, is_up: bool, now: Instant) -> Self {
        match (self.is_up, is_up) {
            (true, false) => Self { is_up, since: now, n_downs: self.n_downs + 1, ..self },
            (false, true) => Self { is_up, since: now, down_before: self.downtime(now), ..self },
            _ => self,
        }
    }

    pub fn downtime(&self, now: Instant) -> Duration {
        let current = if self.is_up { Duration::ZERO } else { now.saturating_duration_since(self.since) };
        self.down_before + current
    }
}

impl Backend {
    pub fn is_sticky(&self) -> bool {
        self.labels.affinity == Affinity::Cookie && self.labels.mode == Mode::Http
    }

    pub fn totals(&self) -> Totals {
        let totals = self.series.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let tcp = self.tcp.view();
        Totals {
            bytes_in: tcp.bytes_in,
            bytes_out: tcp.bytes_out,
            n_connect_errors: tcp.n_connect_failures + tcp.n_local_failures,
            n_server_aborts: tcp.n_resets,
            ..totals
        }
    }

    pub fn totals_of(&self, server: &Server) -> Totals {
        let totals = server.series.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let tcp = server.endpoint.view();
        Totals {
            n_sessions: tcp.n_picked,
            bytes_in: tcp.bytes_in,
            bytes_out: tcp.bytes_out,
            n_connect_errors: tcp.n_connect_failures,
            ..totals
        }
    }

    /// Of the service port.
    pub fn frontend_totals(&self) -> Totals {
        let totals = self.frontend.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let tcp = self.tcp.view();
        Totals { bytes_in: tcp.bytes_in, bytes_out: tcp.bytes_out, ..totals }
    }

    /// The usable server that a cookie names.
    pub fn server_of_cookie(&self, value: &[u8]) -> Option<usize> {
        self.servers.iter().position(|s| s.cookie.as_bytes() == value && s.endpoint.is_usable())
    }
}

/// Compiles one snapshot after the other.
#[derive(Debug)]
pub struct Compiler {
    groups: Vec<String>,
    n_workers: usize,
    snapshot: Snapshot,
    apps: BTreeMap<AppId, CompiledApp>,
    routes: Arc<Routes>,
    backends: Vector<Arc<Backend>>,
    problems: Arc<[Problem]>,
}

#[derive(Debug)]
struct CompiledApp {
    backends: Vec<Arc<Backend>>,
    /// Where the first of them is in the table.
    at: usize,
    problems: Vec<Problem>,
}

impl Compiler {
    pub fn new(groups: Vec<String>, n_workers: usize) -> Self {
        Self {
            groups,
            n_workers,
            snapshot: Snapshot::default(),
            apps: BTreeMap::new(),
            routes: Arc::default(),
            backends: Vector::new(),
            problems: Arc::default(),
        }
    }

    pub fn compile(&mut self, snapshot: &Snapshot, now: Instant) -> Table {
        let delta = Delta::between(&self.snapshot, snapshot);
        self.snapshot = snapshot.clone();
        let mut routes_hold = delta.removed.is_empty();
        let mut problems_hold = true;
        for id in &delta.removed {
            if let Some(gone) = self.apps.remove(id) {
                gone.backends.iter().for_each(|b| retire(b));
            }
        }
        for app in &delta.changed {
            let previous = self.apps.remove(&app.id);
            let mut compiled = self.compile_app(app, previous.as_ref(), now);
            let known = previous.as_ref().map_or(&[][..], |p| &p.backends);
            if same_claims(known, &compiled.backends) {
                compiled.at = previous.as_ref().map_or(0, |p| p.at);
                for (index, backend) in compiled.backends.iter().enumerate() {
                    self.backends.set(compiled.at + index, Arc::clone(backend));
                }
            } else {
                routes_hold = false;
            }
            problems_hold &= previous.as_ref().map_or(&[][..], |p| &p.problems[..]) == compiled.problems;
            self.apps.insert(app.id.clone(), compiled);
        }
        if !routes_hold {
            self.backends = Vector::new();
            for app in self.apps.values_mut() {
                app.at = self.backends.len();
                self.backends.extend(app.backends.iter().map(Arc::clone));
            }
            self.routes = Arc::new(Routes::compile(&self.backends, &self.routes));
        }
        if !routes_hold || !problems_hold {
            let problems = self.apps.values().flat_map(|app| &app.problems).chain(&self.routes.problems);
            self.problems = problems.cloned().collect();
        }
        Table {
            generation: snapshot.generation,
            problems: Arc::clone(&self.problems),
            routes: Arc::clone(&self.routes),
            backends: self.backends.clone(),
        }
    }

    fn compile_app(&self, app: &Arc<App>, previous: Option<&CompiledApp>, now: Instant) -> CompiledApp {
        let mut problems = Vec::new();
        let known = previous.map_or(&[][..], |p| &p.backends);
        let mut backends: Vec<Arc<Backend>> = Vec::new();
        for service in &app.services {
            let previous = known.iter().find(|b| b.service == service.id).map(|b| &**b);
            match labels::read(app, service, &self.groups, &mut problems) {
                Some(labels) => {
                    let compile = CompileBackend { app, service, previous, n_workers: self.n_workers, now };
                    backends.push(Arc::new(compile.backend(labels)));
                }
                None => previous.into_iter().for_each(retire),
            }
        }
        known.iter().filter(|b| app.service(b.service.port_index).is_none()).for_each(|b| retire(b));
        backends.sort_by_key(|b| b.labels.port);
        CompiledApp { backends, at: 0, problems }
    }
}

/// The routes of these backends are the same.
fn same_claims(old: &[Arc<Backend>], new: &[Arc<Backend>]) -> bool {
    let same = |(old, new): (&Arc<Backend>, &Arc<Backend>)| {
        old.service == new.service && Arc::ptr_eq(&old.labels, &new.labels)
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}

/// Takes the endpoints of a backend that is gone out of rotation, for the workers that still hold connections to them.
fn retire(backend: &Backend) {
    Pool::new(backend.labels.balance, None::<Member>, Some(&backend.pool));
}

struct CompileBackend<'a> {
    app: &'a App,
    service: &'a Service,
    previous: Option<&'a Backend>,
    n_workers: usize,
    now: Instant,
}

impl CompileBackend<'_> {
    fn backend(&self, labels: ServiceLabels) -> Backend {
        let index = self.service.id.port_index;
        let previous = self.previous;
        let labels = match previous {
            Some(previous) if *previous.labels == labels => Arc::clone(&previous.labels),
            _ => Arc::new(labels),
        };
        let instances = &self.app.instances;
        let members = instances.iter().filter_map(|instance| {
            let endpoint = instance.endpoint(index)?;
            Some((instance.id.clone(), endpoint.address, instance.rotation()))
        });
        let pool = Pool::new(labels.balance, members, previous.map(|p| &p.pool));
        let instances: BTreeMap<&InstanceId, &Instance> = instances.iter().map(|i| (&i.id, &**i)).collect();
        let mut servers: Vec<Server> = Vec::with_capacity(pool.endpoints().len());
        for endpoint in pool.endpoints() {
            let server = self.server(endpoint, instances.get(&endpoint.instance).copied(), &servers);
            servers.push(server);
        }
        // A backend without any endpoint has just not been scaled up yet: that is down, but not a downtime.
        let is_up = pool.n_usable() > 0;
        let same_name = previous.filter(|p| p.labels.port == labels.port);
        Backend {
            service: self.service.id.clone(),
            name: match same_name {
                Some(previous) => Arc::clone(&previous.name),
                None => names::backend(&self.app.id, labels.port).into(),
            },
            app_version: Arc::clone(&self.app.version),
            pool,
            servers: servers.into(),
            series: same_name.map_or_else(|| Series::new(self.n_workers), |p| Arc::clone(&p.series)),
            frontend: same_name.map_or_else(|| Series::new(self.n_workers), |p| Arc::clone(&p.frontend)),
            tcp: same_name.map_or_else(Arc::default, |p| Arc::clone(&p.tcp)),
            standing: previous
                .map_or_else(|| Standing::new(is_up, self.now), |p| p.standing.next(is_up, self.now)),
            labels,
        }
    }

    fn server(
        &self,
        endpoint: &Arc<EndpointState>,
        instance: Option<&Instance>,
        others: &[Server],
    ) -> Server {
        let status = match instance {
            _ if endpoint.rotation() != Rotation::In => match instance {
                Some(i) if i.state != InstanceState::Killing && i.health == Health::Unhealthy => {
                    ServerStatus::Unhealthy
                }
                _ => ServerStatus::Draining,
            },
            Some(instance) if instance.health == Health::Healthy => ServerStatus::Up,
            _ => ServerStatus::Unchecked,
        };
        let is_up = endpoint.is_usable();
        let known = self.previous.and_then(|p| p.servers.iter().find(|s| Arc::ptr_eq(&s.endpoint, endpoint)));
        if let Some(known) = known {
            return Server { status, standing: known.standing.next(is_up, self.now), ..known.clone() };
        }
        let host = instance.map_or_else(|| endpoint.address.ip().to_string().into(), |i| Arc::clone(&i.host));
        let name = names::server(&host, endpoint.address);
        let known_ids = self.previous.map_or(&[][..], |p| &p.servers);
        let is_taken = |id| others.iter().chain(known_ids).any(|s| s.id == id && *s.name != *name);
        let cookie: Arc<str> = names::cookie_value(&name).into();
        Server {
            id: names::server_id(&name, is_taken),
            set_cookie: sticky::set_cookie(&cookie),
            cookie,
            name: name.into(),
            host,
            endpoint: Arc::clone(endpoint),
            series: Series::new(self.n_workers),
            status,
            standing: Standing::new(is_up, self.now),
        }
    }
}

#[cfg(test)]
mod tests;
