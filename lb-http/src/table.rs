//! What a snapshot compiles to: backends with their servers, and the routes that lead to them.
//!
//! A table never changes; live state (requests in flight, ejection, counters) is shared with the table before it.
//! Compiling costs what changed: an app that claims the same ports, hosts and paths as before takes the place that it
//! had. Who listens where is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_watcher::catalog::{
    App, AppId, Delta, Generation, Health, Instance, InstanceId, InstanceState, Problem, Readiness, Rotation,
    Service, ServiceId, Snapshot, VipsChanged,
};
use http::HeaderValue;
use imbl::Vector;
use l4_vip::pool::{self, EndpointState, Pool};
use l4_vip::stats::{Counters, CountersView};

use crate::deployment::{self, Unit};
use crate::health::{CheckState, Judged};
use crate::labels::{self, Affinity, CheckPort, HostPattern, Mode, Panic, Reading, ServiceLabels};
use crate::names;
use crate::queue::Queue;
use crate::route::Routes;
use crate::stats::{Series, Totals};
use crate::tls::{HostPolicy, Policies};

#[derive(Debug)]
pub struct Table {
    pub generation: Generation,
    /// By app id, then port. Routes hold indices into it.
    pub backends: Vector<Arc<Backend>>,
    pub routes: Arc<Routes>,
    /// What is wrong with labels and routes, by app.
    pub problems: Arc<[Problem]>,
    /// Backends whose servers the balancer probes itself.
    pub(crate) probed: Probed,
    /// Host names of static servers that nobody here knows: to be looked up.
    pub(crate) unknown_names: BTreeSet<Arc<str>>,
    /// Backends whose endpoints or maximum may be others than before, where requests may wait for them.
    pub(crate) awaited: Vec<Arc<Backend>>,
}

/// By unit and port index.
pub(crate) type Probed = imbl::OrdMap<(UnitId, usize), Arc<Backend>>;

/// Addresses of host names that were looked up.
pub(crate) type Names = BTreeMap<Arc<str>, IpAddr>;

impl Table {
    /// What virtual hosts and service ports ask of TLS, and what is asked of servers.
    pub(crate) fn tls_policies(&self) -> Policies {
        let mut policies = Policies::default();
        for (index, backend) in self.backends.iter().enumerate() {
            let labels = &backend.labels;
            policies.to_servers.extend(labels.server_tls.iter().map(|tls| tls.verify.clone()));
            if !labels.tls.certificates.is_empty() && self.routes.of_port(labels.port) == Some(index) {
                policies.of_ports.insert(labels.port, labels.tls.clone());
            }
            if labels.mode != Mode::Http || labels.tls == HostPolicy::default() {
                continue;
            }
            let hosts = labels.vhosts.iter().filter_map(|host| match host {
                HostPattern::Exact(host) => Some(Box::from(crate::route::without_port(host))),
                HostPattern::Suffix(suffix) => Some(format!("*{suffix}").into()),
                HostPattern::Expression(_) | HostPattern::Any => None,
            });
            for host in hosts {
                // Services may share a host by paths. The first one's policy holds, unless another asks its clients for
                // certificates: nobody gets around that by a neighbour.
                let policy = policies.of_hosts.entry(host).or_insert_with(|| labels.tls.clone());
                if policy.client_auth.is_none() && labels.tls.client_auth.is_some() {
                    policy.clone_from(&labels.tls);
                }
            }
        }
        policies
    }

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
    pub tcp: Arc<TcpCounters>,
    /// Requests that wait for room, where an endpoint's are limited.
    pub(crate) queue: Arc<Queue>,
    pub standing: Standing,
    /// Endpoints that are in rotation for their own sake, not because no other is.
    pub n_healthy: usize,
}

/// A compiled backend equals only itself: another one of the same service was compiled from something else.
impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Backend {}

/// In mode tcp, by the way that connections take.
#[derive(Debug, Default)]
pub struct TcpCounters {
    pub of_port: Counters,
    /// By the server name of their TLS, which is not ended here.
    pub of_names: Counters,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub name: Arc<str>,
    /// HAProxy's `sid`.
    pub id: u16,
    /// Where the service has session affinity.
    pub cookie: Option<Arc<ServerCookie>>,
    pub host: Arc<str>,
    pub endpoint: Arc<EndpointState>,
    pub series: Arc<Series>,
    pub status: ServerStatus,
    /// What the balancer's own checks say of it, where the service has or had one.
    pub check: Option<Arc<CheckState>>,
    /// Whether the scheduler's checks say something, too.
    pub judged: Judged,
    /// Who is asked. `None`: nobody.
    pub check_address: Option<SocketAddr>,
    pub standing: Standing,
}

/// The sticky cookie that leads to a server.
#[derive(Debug)]
pub struct ServerCookie {
    pub value: String,
    /// Of the header that gives it to a client.
    pub set: HeaderValue,
}

impl Server {
    /// The balancer's own checks say so.
    fn is_known_down(&self) -> bool {
        self.check.as_ref().is_some_and(|check| check.is_down())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// The scheduler's health checks pass.
    Up,
    /// The app has no health checks.
    Unchecked,
    /// The scheduler has not said yet.
    Unknown,
    /// Being stopped: finishes what it has.
    Draining,
    /// Taken out of use by a deployment: finishes what it has.
    Disabled,
    /// The scheduler's health checks fail.
    Unhealthy,
    /// The balancer's own checks fail.
    Failing,
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

    /// It may have been given something.
    pub fn is_used(&self) -> bool {
        self.series.is_used()
    }

    pub fn totals(&self) -> Totals {
        let totals = self.series.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let ways = [self.tcp.of_port.view(), self.tcp.of_names.view()];
        let sum = |count: fn(&CountersView) -> u64| ways.iter().map(count).sum();
        Totals {
            bytes_in: sum(|w| w.bytes_in),
            bytes_out: sum(|w| w.bytes_out),
            // The series counts those that waited too long for room.
            n_connect_errors: totals.n_connect_errors + sum(|w| w.n_connect_failures + w.n_local_failures),
            n_server_aborts: sum(|w| w.n_resets),
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
        let tcp = self.tcp.of_port.view();
        Totals { bytes_in: tcp.bytes_in, bytes_out: tcp.bytes_out, ..totals }
    }

    /// Requests may wait, or do so, for its endpoints.
    fn is_awaited(&self) -> bool {
        self.labels.capacity.per_endpoint.is_some() || self.queue.n_waiting() > 0
    }

    /// A verdict of the balancer's own checks is another one than that it was compiled with.
    fn is_overtaken(&self) -> bool {
        let is_down = |s: &Server| s.check_address.is_some() && s.is_known_down();
        self.servers.iter().any(|s| is_down(s) != (s.status == ServerStatus::Failing))
    }

    pub(crate) fn server_of(&self, endpoint: &Arc<EndpointState>) -> Option<usize> {
        self.servers.iter().position(|s| Arc::ptr_eq(&s.endpoint, endpoint))
    }

    /// The usable server that a cookie names.
    pub fn server_of_cookie(&self, value: &[u8]) -> Option<usize> {
        let is_named = |s: &Server| s.cookie.as_ref().is_some_and(|c| c.value.as_bytes() == value);
        self.servers.iter().position(|s| is_named(s) && s.endpoint.is_usable())
    }
}

/// Compiles one snapshot after the other.
#[derive(Debug)]
pub struct Compiler {
    reading: Reading,
    n_workers: usize,
    snapshot: Snapshot,
    units: BTreeMap<UnitId, CompiledUnit>,
    /// Of the apps that have one.
    groups: BTreeMap<AppId, AppId>,
    routes: Arc<Routes>,
    backends: Vector<Arc<Backend>>,
    problems: Arc<[Problem]>,
    probed: Probed,
    /// Units with a static server.
    with_static: BTreeSet<UnitId>,
    names: Names,
    names_hold: NamesHold,
    checks_hold: ChecksHold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChecksHold {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamesHold {
    Yes,
    No,
}

/// An app, or a deployment group, which may have the name of an app.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnitId {
    id: AppId,
    kind: UnitKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UnitKind {
    App,
    Group,
}

#[derive(Debug)]
struct CompiledUnit {
    backends: Vec<Arc<Backend>>,
    /// Where the first of them is in the table.
    at: usize,
    /// Those that labels have switched off: what they have counted goes on when they are switched on again.
    asleep: Vec<Arc<Backend>>,
    problems: Vec<Problem>,
}

impl Compiler {
    pub fn new(reading: Reading, n_workers: usize) -> Self {
        Self {
            reading,
            n_workers,
            snapshot: Snapshot::default(),
            units: BTreeMap::new(),
            groups: BTreeMap::new(),
            routes: Arc::default(),
            backends: Vector::new(),
            problems: Arc::default(),
            probed: Probed::new(),
            with_static: BTreeSet::new(),
            names: Names::new(),
            names_hold: NamesHold::Yes,
            checks_hold: ChecksHold::Yes,
        }
    }

    /// What is known about the names that a table asked for; the next table is compiled with it.
    pub(crate) fn set_names(&mut self, names: Names) {
        self.names = names;
        self.names_hold = NamesHold::No;
    }

    /// The verdict about some server has changed; the next table is compiled with it.
    pub(crate) fn heed_checks(&mut self) {
        self.checks_hold = ChecksHold::No;
    }

    pub fn compile(&mut self, snapshot: &Snapshot, now: Instant) -> Table {
        let delta = Delta::between(&self.snapshot, snapshot);
        self.snapshot = snapshot.clone();
        let (mut routes_hold, mut problems_hold) = (true, true);
        let mut awaited = Vec::new();
        for id in self.touched(&delta) {
            let sources = self.sources(&id);
            let previous = self.units.remove(&id);
            let known = previous.as_ref().map_or(&[][..], |p| &p.backends);
            let known_problems = previous.as_ref().map_or(&[][..], |p| &p.problems);
            if sources.is_empty() {
                known.iter().for_each(|b| retire(b));
                self.note(&id, known, &[]);
                (routes_hold, problems_hold) = (false, false);
                continue;
            }
            let mut compiled = self.compile_unit(&id, &sources, previous.as_ref(), now);
            self.note(&id, known, &compiled.backends);
            if same_claims(known, &compiled.backends) {
                compiled.at = previous.as_ref().map_or(0, |p| p.at);
                for (index, backend) in compiled.backends.iter().enumerate() {
                    self.backends.set(compiled.at + index, Arc::clone(backend));
                }
            } else {
                routes_hold = false;
            }
            awaited.extend(compiled.backends.iter().filter(|b| b.is_awaited()).map(Arc::clone));
            problems_hold &= known_problems == compiled.problems;
            self.units.insert(id, compiled);
        }
        if !routes_hold {
            self.backends = Vector::new();
            for unit in self.units.values_mut() {
                unit.at = self.backends.len();
                self.backends.extend(unit.backends.iter().map(Arc::clone));
            }
            self.routes = Arc::new(Routes::compile(&self.backends, &self.routes, self.reading.compat));
        }
        if !routes_hold || !problems_hold {
            let problems = self.units.values().flat_map(|unit| &unit.problems).chain(&self.routes.problems);
            self.problems = problems.cloned().collect();
        }
        self.names_hold = NamesHold::Yes;
        self.checks_hold = ChecksHold::Yes;
        Table {
            generation: snapshot.generation,
            problems: Arc::clone(&self.problems),
            routes: Arc::clone(&self.routes),
            probed: self.probed.clone(),
            unknown_names: self.unknown_names(),
            backends: self.backends.clone(),
            awaited,
        }
    }

    /// What is to be compiled anew.
    fn touched(&mut self, delta: &Delta) -> BTreeSet<UnitId> {
        let mut touched = BTreeSet::new();
        let unit = |id: &AppId, group: Option<AppId>| match group {
            Some(id) => UnitId { id, kind: UnitKind::Group },
            None => UnitId { id: id.clone(), kind: UnitKind::App },
        };
        for id in &delta.removed {
            touched.insert(unit(id, self.groups.remove(id)));
        }
        for app in &delta.changed {
            let before = self.groups.remove(&app.id);
            let after = deployment::group(app);
            if let Some(group) = &after {
                self.groups.insert(app.id.clone(), group.clone());
            }
            if before != after {
                touched.insert(unit(&app.id, before));
            }
            touched.insert(unit(&app.id, after));
        }
        if self.names_hold == NamesHold::No || delta.vips_changed == VipsChanged::Yes {
            touched.extend(self.with_static.iter().cloned());
        }
        if self.checks_hold == ChecksHold::No {
            let overtaken = self.probed.iter().filter(|(_, backend)| backend.is_overtaken());
            touched.extend(overtaken.map(|((unit, _), _)| unit.clone()));
        }
        touched
    }

    /// Keeps account of a unit whose backends need more than their apps.
    fn note(&mut self, id: &UnitId, before: &[Arc<Backend>], now: &[Arc<Backend>]) {
        for backend in before.iter().filter(|b| b.labels.check.is_some()) {
            self.probed.remove(&(id.clone(), backend.service.port_index));
        }
        for backend in now.iter().filter(|b| b.labels.check.is_some()) {
            self.probed.insert((id.clone(), backend.service.port_index), Arc::clone(backend));
        }
        match now.iter().any(|b| b.labels.static_server.is_some()) {
            true => self.with_static.insert(id.clone()),
            false => self.with_static.remove(id),
        };
    }

    /// The apps that a unit is compiled from.
    fn sources(&self, unit: &UnitId) -> Vec<Arc<App>> {
        let of_group = self.groups.iter().filter(|(_, group)| **group == unit.id).map(|(app, _)| app);
        match unit.kind {
            UnitKind::Group => of_group.filter_map(|id| self.snapshot.apps.get(id)).cloned().collect(),
            UnitKind::App if self.groups.contains_key(&unit.id) => Vec::new(),
            UnitKind::App => self.snapshot.apps.get(&unit.id).cloned().into_iter().collect(),
        }
    }

    fn unknown_names(&self) -> BTreeSet<Arc<str>> {
        let backends = self.with_static.iter().filter_map(|id| self.units.get(id)).flat_map(|u| &u.backends);
        let names = backends.filter_map(|b| b.labels.static_server.as_ref().map(|s| &s.host));
        names.filter(|name| own_address(name, &self.snapshot).is_none()).cloned().collect()
    }

    fn compile_unit(
        &self,
        id: &UnitId,
        sources: &[Arc<App>],
        previous: Option<&CompiledUnit>,
        now: Instant,
    ) -> CompiledUnit {
        let unit = match id.kind {
            UnitKind::App => Unit { app: Arc::clone(&sources[0]), disabled: BTreeSet::new() },
            UnitKind::Group => deployment::merge(&id.id, sources),
        };
        let known: Vec<Arc<Backend>> =
            previous.map(|p| [&p.backends[..], &p.asleep].concat()).unwrap_or_default();
        let (backends, problems) = self.compile_backends(&unit, &known, now);
        let is_off = |b: &Arc<Backend>| {
            unit.app.service(b.service.port_index).is_some()
                && backends.iter().all(|on| on.service != b.service)
        };
        let asleep = known.into_iter().filter(is_off).collect();
        CompiledUnit { backends, at: 0, asleep, problems }
    }

    fn compile_backends(
        &self,
        unit: &Unit,
        known: &[Arc<Backend>],
        now: Instant,
    ) -> (Vec<Arc<Backend>>, Vec<Problem>) {
        let app = &unit.app;
        let mut problems = Vec::new();
        labels::vocabulary::check_names(app, &self.reading, &mut problems);
        let mut backends: Vec<Arc<Backend>> = Vec::new();
        for service in &app.services {
            let previous = known.iter().find(|b| b.service == service.id).map(|b| &**b);
            match labels::read(app, service, &self.reading, &mut problems) {
                Some(labels) => {
                    let static_address = self.static_address(&labels);
                    let compile = CompileBackend {
                        unit,
                        service,
                        previous,
                        static_address,
                        n_workers: self.n_workers,
                        now,
                    };
                    backends.push(Arc::new(compile.backend(labels)));
                }
                None => previous.into_iter().for_each(retire),
            }
        }
        known.iter().filter(|b| app.service(b.service.port_index).is_none()).for_each(|b| retire(b));
        backends.sort_by_key(|b| b.labels.port);
        (backends, problems)
    }

    /// Where the static server that the labels name is. `None`: there is none, or its name is not known yet.
    fn static_address(&self, labels: &ServiceLabels) -> Option<SocketAddr> {
        let server = labels.static_server.as_ref()?;
        let ip =
            own_address(&server.host, &self.snapshot).or_else(|| self.names.get(&server.host).copied())?;
        Some(SocketAddr::new(ip, server.port))
    }
}

/// The routes of these backends are the same.
fn same_claims(old: &[Arc<Backend>], new: &[Arc<Backend>]) -> bool {
    let same = |(old, new): (&Arc<Backend>, &Arc<Backend>)| {
        old.service == new.service && Arc::ptr_eq(&old.labels, &new.labels)
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}

/// The zone of named VIPs.
const VIP_ZONE: &str = ".l4lb.thisdcos.directory";

/// An address as such, or that of a named VIP.
fn own_address(host: &str, snapshot: &Snapshot) -> Option<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Some(ip);
    }
    let lower = host.to_ascii_lowercase();
    let name = lower.trim_end_matches('.').strip_suffix(VIP_ZONE)?;
    let (_, addresses) = snapshot.vips.names().find(|(known, _)| known.as_str() == name)?;
    addresses.first().copied()
}

/// Takes the endpoints of a backend that is gone out of rotation, for the workers that still hold connections to them.
fn retire(backend: &Backend) {
    let none = Pool::new(backend.labels.balance, None::<pool::Member>, Some(&backend.pool));
    backend.queue.follow(&none);
}

struct CompileBackend<'a> {
    unit: &'a Unit,
    service: &'a Service,
    previous: Option<&'a Backend>,
    static_address: Option<SocketAddr>,
    n_workers: usize,
    now: Instant,
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
    fn backend(&self, labels: ServiceLabels) -> Backend {
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

    /// Nothing is healthy: those that only the balancer's own checks are against are used, or else those that nobody has
    /// judged yet, or else those that are judged to be ill. Never one that is being stopped or says itself that it is
    /// not ready.
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

#[cfg(test)]
mod tests;
