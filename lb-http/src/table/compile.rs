//! Compiles one snapshot after the other.
//!
//! Compiling costs what changed: an app that claims the same ports, hosts and paths as before takes the place that it
//! had. What one service compiles to is `compile_backend`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use event_watcher::catalog::{App, AppId, Delta, Problem, Snapshot, VipsChanged};
use imbl::Vector;
use l4_vip::pool::{self, Pool};

use super::compile_backend::CompileBackend;
use super::{Backend, Names, Probed, Table};
use crate::deployment::{self, Unit};
use crate::labels::{self, Reading, ServiceLabels};
use crate::route::Routes;

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
