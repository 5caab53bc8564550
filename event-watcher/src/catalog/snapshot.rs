//! The published value ([`Snapshot`]) and the writer's working copy ([`Catalog`]) that it is taken from.
//!
//! Unchanged apps are the same `Arc` in the next snapshot: what changed can be told by comparing pointers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::app::{App, AppId};
use super::instance::{Health, InstanceId, InstanceState};
use super::problem::Problem;
use super::vip::{Claims, Reserved, VipPool, Vips};

/// The number of a snapshot. 0 is the empty one that exists before the first sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub const UNSYNCED: Self = Self(0);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the scheduler runs, at one moment. Never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub generation: Generation,
    /// The scheduler's name (Marathon's framework name), part of every DNS name.
    pub framework: Arc<str>,
    pub apps: Arc<BTreeMap<AppId, Arc<App>>>,
    pub vips: Arc<Vips>,
    pub problems: Arc<[Problem]>,
}

impl Snapshot {
    pub fn is_synced(&self) -> bool {
        self.generation > Generation::UNSYNCED
    }

    pub fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.apps.get(id)
    }
}

#[derive(Clone, Debug)]
pub struct CatalogConfig {
    pub framework: Arc<str>,
    /// Named VIPs get one address from each pool.
    pub vip_pools: Vec<VipPool>,
}

/// One app as a source read it, with what was wrong in its input.
#[derive(Debug, PartialEq)]
pub struct AppUpdate {
    pub app: App,
    pub problems: Vec<Problem>,
}

/// The working copy of the only writer. Collects changes until [`Catalog::snapshot`] takes them all at once.
#[derive(Debug)]
pub struct Catalog {
    config: CatalogConfig,
    apps: Arc<BTreeMap<AppId, Arc<App>>>,
    problems: BTreeMap<AppId, Vec<Problem>>,
    /// Problems of the last answer as a whole, e.g. an app without an id.
    source_problems: Vec<Problem>,
    /// Addresses that no VIP may have on this node.
    reserved: Vec<Reserved>,
    /// What the table of VIPs is made of, app by app, to know when it has to be made anew.
    claims: BTreeMap<AppId, Claims>,
    vips: Arc<Vips>,
    vip_problems: Vec<Problem>,
    vips_stale: bool,
    changed: bool,
    generation: Generation,
}

impl Catalog {
    pub fn new(config: CatalogConfig) -> Self {
        Self {
            config,
            apps: Arc::default(),
            problems: BTreeMap::new(),
            source_problems: Vec::new(),
            reserved: Vec::new(),
            claims: BTreeMap::new(),
            vips: Arc::default(),
            vip_problems: Vec::new(),
            vips_stale: false,
            changed: false,
            generation: Generation::UNSYNCED,
        }
    }

    /// Keeps VIPs off addresses that are somebody else's on this node.
    pub fn reserving(self, reserved: Vec<Reserved>) -> Self {
        Self { reserved, ..self }
    }

    pub fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.apps.get(id)
    }

    pub fn apps(&self) -> impl ExactSizeIterator<Item = &Arc<App>> {
        self.apps.values()
    }

    /// The scheduler's own name, learnt after the start.
    pub fn set_framework(&mut self, framework: &str) {
        if *self.config.framework != *framework {
            self.config.framework = framework.into();
            self.changed = true;
        }
    }

    pub fn framework(&self) -> &Arc<str> {
        &self.config.framework
    }

    /// Takes a complete list: apps that are not in it are gone.
    pub fn replace_all(&mut self, updates: Vec<AppUpdate>, source_problems: Vec<Problem>) {
        let known: BTreeSet<AppId> = updates.iter().map(|u| u.app.id.clone()).collect();
        self.retain(&known);
        for update in updates {
            self.replace(update);
        }
        self.set_source_problems(source_problems);
    }

    pub fn replace(&mut self, update: AppUpdate) {
        let AppUpdate { app, problems } = update;
        let id = app.id.clone();
        self.set_problems(&id, problems);
        if self.apps.get(&id).is_some_and(|known| **known == app) {
            return;
        }
        let claims = Claims::of(&app);
        let known = self.claims.get(&id);
        if known != Some(&claims) {
            self.vips_stale |= self.matters(known, &claims);
            self.claims.insert(id.clone(), claims);
        }
        Arc::make_mut(&mut self.apps).insert(id, Arc::new(app));
        self.changed = true;
    }

    pub fn remove(&mut self, id: &AppId) {
        if let Some(claims) = self.claims.remove(id) {
            self.vips_stale |= self.matters(Some(&claims), &Claims::default());
        }
        self.changed |= self.problems.remove(id).is_some();
        if self.apps.contains_key(id) {
            Arc::make_mut(&mut self.apps).remove(id);
            self.changed = true;
        }
    }

    /// Moves one instance to a state that takes it out of rotation, without waiting for a fetch: an event may do
    /// this, because it can only be too early, never wrong.
    pub fn retire(&mut self, app: &AppId, instance: &InstanceId, state: InstanceState) {
        let Some(known) = self.apps.get(app) else { return };
        let Some(index) = known.instances.iter().position(|i| i.id == *instance) else { return };
        let current = known.instances[index].state;
        // Events may come out of order: what has ended is not being killed any more.
        if current == state || current == InstanceState::Terminal {
            return;
        }
        let mut changed = App::clone(known);
        Arc::make_mut(&mut changed.instances[index]).state = state;
        Arc::make_mut(&mut self.apps).insert(app.clone(), Arc::new(changed));
        self.changed = true;
    }

    /// Takes a verdict about one instance's health, without waiting for a fetch; as with [`Self::retire`], only a bad
    /// one can be taken this way.
    pub fn mark_unhealthy(&mut self, app: &AppId, instance: &InstanceId) {
        let Some(known) = self.apps.get(app) else { return };
        let Some(index) = known.instances.iter().position(|i| i.id == *instance) else { return };
        if known.instances[index].health == Health::Unhealthy {
            return;
        }
        let mut changed = App::clone(known);
        Arc::make_mut(&mut changed.instances[index]).health = Health::Unhealthy;
        Arc::make_mut(&mut self.apps).insert(app.clone(), Arc::new(changed));
        self.changed = true;
    }

    /// What is wrong with an app whose last good version stays, or which has none.
    pub fn set_problems(&mut self, id: &AppId, problems: Vec<Problem>) {
        if self.problems.get(id).map_or(&[][..], Vec::as_slice) == problems {
            return;
        }
        self.changed = true;
        if problems.is_empty() {
            self.problems.remove(id);
        } else {
            self.problems.insert(id.clone(), problems);
        }
    }

    /// What is wrong with the scheduler's answer as a whole.
    pub fn set_source_problems(&mut self, problems: Vec<Problem>) {
        if self.source_problems != problems {
            self.source_problems = problems;
            self.changed = true;
        }
    }

    /// Removes every app, and every problem of an app, that is not in `known`.
    pub fn retain(&mut self, known: &BTreeSet<AppId>) {
        let gone: Vec<AppId> =
            self.apps.keys().chain(self.problems.keys()).filter(|id| !known.contains(*id)).cloned().collect();
        for id in &gone {
            self.remove(id);
        }
    }

    /// The next snapshot, or `None` when nothing differs from the last one taken. The first one is always taken, so
    /// that an empty cluster counts as synced.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        if !self.changed && self.generation > Generation::UNSYNCED {
            return None;
        }
        if std::mem::take(&mut self.vips_stale) {
            let (vips, problems) =
                Vips::allocate(self.claims.values(), &self.config.vip_pools, &self.reserved);
            self.vip_problems = problems;
            if vips != *self.vips {
                self.vips = Arc::new(vips);
            }
        }
        self.changed = false;
        self.generation = Generation(self.generation.0 + 1);
        let problems =
            self.source_problems.iter().chain(self.problems.values().flatten()).chain(&self.vip_problems);
        Some(Arc::new(Snapshot {
            generation: self.generation,
            framework: Arc::clone(&self.config.framework),
            apps: Arc::clone(&self.apps),
            vips: Arc::clone(&self.vips),
            problems: problems.cloned().collect(),
        }))
    }

    /// Whether the table of VIPs may differ when an app's claims change.
    fn matters(&self, old: Option<&Claims>, new: &Claims) -> bool {
        let nothing = Claims::default();
        let old = old.unwrap_or(&nothing);
        // Agents come and go with every instance; they matter where a VIP is, or could be.
        let is_near = |ip: &IpAddr| {
            let is_vip = || self.claims.values().any(|claims| claims.asks_for(*ip));
            self.config.vip_pools.iter().any(|pool| pool.contains(*ip)) || is_vip()
        };
        let services_differ = (old.has_vips() || new.has_vips()) && !old.same_services(new);
        services_differ || old.agents().symmetric_difference(new.agents()).any(is_near)
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn app(id: &str, vip: Option<&str>) -> AppUpdate {
        let id = AppId::new(id);
        let vips = vip
            .map(|v| VipLabel::parse(v, "marathon").unwrap().for_protocol(Protocol::Tcp))
            .into_iter()
            .collect();
        let service = Service {
            id: ServiceId { app: id.clone(), port_index: 0 },
            name: None,
            service_port: Some(10000),
            protocols: Protocols::TCP,
            labels: BTreeMap::new(),
            vips,
        };
        let instance = Instance {
            id: InstanceId::new("i1"),
            host: "127.0.0.1".into(),
            host_address: None,
            agent: None,
            version: "v1".into(),
            state: InstanceState::Running,
            health: Health::Unchecked,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![],
            endpoints: vec![Endpoint { port_index: 0, address: "127.0.0.1:31000".parse().unwrap() }],
        };
        let app = App {
            id,
            version: "v1".into(),
            labels: BTreeMap::new(),
            n_instances_wanted: 1,
            services: vec![service],
            health_checks: vec![],
            instances: vec![Arc::new(instance)],
            deployments: vec![],
        };
        AppUpdate { app, problems: vec![] }
    }

    fn catalog() -> Catalog {
        Catalog::new(CatalogConfig {
            framework: "marathon".into(),
            vip_pools: vec!["127.11.0.0/16".parse().unwrap()],
        })
    }

    #[test]
    fn an_equal_list_is_no_change_and_an_unchanged_app_is_shared() {
        let mut catalog = catalog();
        catalog.replace_all(vec![app("/a", Some("/a:80")), app("/b", None)], vec![]);
        let first = catalog.snapshot().unwrap();
        assert_eq!(first.generation, Generation(1));
        catalog.replace_all(vec![app("/a", Some("/a:80")), app("/b", None)], vec![]);
        assert!(catalog.snapshot().is_none());

        catalog.replace(app("/b", Some("/b:80")));
        let second = catalog.snapshot().unwrap();
        let delta = Delta::between(&first, &second);
        assert_eq!(delta.changed.iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["/b"]);
        assert_eq!(delta.vips_changed, VipsChanged::Yes);

        catalog.remove(&AppId::new("/a"));
        let third = catalog.snapshot().unwrap();
        assert_eq!(Delta::between(&second, &third).removed, [AppId::new("/a")]);
        assert_eq!(third.vips.iter().len(), 1);
    }

    #[test]
    fn an_empty_cluster_is_synced() {
        let mut catalog = catalog();
        catalog.replace_all(vec![], vec![]);
        assert!(catalog.snapshot().unwrap().is_synced());
        assert!(catalog.snapshot().is_none());
    }

    #[test]
    fn a_vip_keeps_its_address_without_instances_and_loses_it_to_an_agent() {
        let mut catalog = catalog();
        let chosen = "127.11.7.7:80";
        catalog.replace_all(vec![app("/a", Some("/a:80")), app("/b", Some(chosen))], vec![]);
        let first = catalog.snapshot().unwrap();
        let mut scaled = app("/a", Some("/a:80"));
        scaled.app.instances.clear();
        catalog.replace(scaled);
        let second = catalog.snapshot().unwrap();
        assert!(Arc::ptr_eq(&first.vips, &second.vips));

        let mut agent = app("/c", None);
        Arc::make_mut(&mut agent.app.instances[0]).host_address = "127.11.7.7".parse().ok();
        catalog.replace(agent);
        let third = catalog.snapshot().unwrap();
        assert_eq!((third.vips.iter().len(), third.problems.len()), (1, 1));
        catalog.remove(&AppId::new("/c"));
        let fourth = catalog.snapshot().unwrap();
        assert_eq!((&fourth.vips, fourth.problems.len()), (&second.vips, 0), "equal apps, equal table");
    }

    #[test]
    fn a_killing_event_takes_an_instance_out_at_once_and_the_vip_stays() {
        let mut catalog = catalog();
        catalog.replace_all(vec![app("/a", Some("/a:80"))], vec![]);
        let first = catalog.snapshot().unwrap();
        catalog.retire(&AppId::new("/a"), &InstanceId::new("i1"), InstanceState::Killing);
        let second = catalog.snapshot().unwrap();
        let instance = &second.app(&AppId::new("/a")).unwrap().instances[0];
        assert_eq!(instance.rotation(), Rotation::Draining);
        assert!(Arc::ptr_eq(&first.vips, &second.vips));
        assert_eq!(
            first.app(&AppId::new("/a")).unwrap().instances[0].rotation(),
            Rotation::In,
            "snapshots never change"
        );
    }
}
