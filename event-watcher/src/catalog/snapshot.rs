//! The published value ([`Snapshot`]) and the writer's working copy ([`Catalog`]) that it is taken from.
//!
//! Unchanged apps are the same `Arc` in the next snapshot: what changed can be told by comparing pointers.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::app::{App, AppId};
use super::holding::{Apps, Changes, Holding, ProblemsChanged};
use super::instance::{InstanceId, InstanceState};
use super::problem::Problem;
use super::vip::{Register, Reserved, VipPool, Vips};

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
    /// The scheduler's name (Marathon's framework name), part of every DNS name. Of several, the first one's.
    pub framework: Arc<str>,
    /// With several schedulers: who runs an app. See [`Self::framework_of`].
    pub frameworks: Frameworks,
    /// As [`Self::framework`], of the first of several schedulers.
    pub leaders: Leaders,
    pub apps: Apps,
    /// Of all apps.
    pub n_instances: usize,
    pub vips: Arc<Vips>,
    pub problems: Arc<[Problem]>,
}

/// Where a cluster is led from, as far as the scheduler says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaders {
    /// The leading one of the scheduler's members.
    pub scheduler: Option<SocketAddr>,
    /// The leading Mesos master.
    pub master: Option<SocketAddr>,
}

impl Snapshot {
    pub fn is_synced(&self) -> bool {
        self.generation > Generation::UNSYNCED
    }

    pub fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.apps.get(id)
    }

    /// The name of the scheduler that runs an app, part of the app's DNS names.
    pub fn framework_of(&self, app: &AppId) -> &Arc<str> {
        self.frameworks.get(app).unwrap_or(&self.framework)
    }
}

/// Names of schedulers by app.
pub type Frameworks = imbl::OrdMap<AppId, Arc<str>>;

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
    framework: Arc<str>,
    frameworks: Frameworks,
    leaders: Leaders,
    held: Holding,
    vips: Register,
    problems: Arc<[Problem]>,
    changed: bool,
    generation: Generation,
}

impl Catalog {
    pub fn new(config: CatalogConfig) -> Self {
        Self {
            framework: config.framework,
            frameworks: Frameworks::new(),
            leaders: Leaders::default(),
            held: Holding::default(),
            vips: Register::new(config.vip_pools),
            problems: Arc::default(),
            changed: false,
            generation: Generation::UNSYNCED,
        }
    }

    /// Keeps VIPs off addresses that are somebody else's on this node.
    pub fn reserving(mut self, reserved: Vec<Reserved>) -> Self {
        self.vips.reserve(reserved);
        self
    }

    pub fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.held.app(id)
    }

    /// The scheduler's own name, learnt after the start.
    pub fn set_framework(&mut self, framework: &str) {
        if *self.framework != *framework {
            self.framework = framework.into();
            self.changed = true;
        }
    }

    pub fn set_leaders(&mut self, leaders: Leaders) {
        if self.leaders != leaders {
            self.leaders = leaders;
            self.changed = true;
        }
    }

    /// Who runs an app, where that need not be the scheduler of [`Self::set_framework`].
    pub fn set_framework_of(&mut self, app: &AppId, framework: Option<&Arc<str>>) {
        if self.frameworks.get(app) != framework {
            self.changed = true;
            match framework {
                Some(framework) => self.frameworks.insert(app.clone(), Arc::clone(framework)),
                None => self.frameworks.remove(app),
            };
        }
    }

    pub fn framework(&self) -> &Arc<str> {
        &self.framework
    }

    /// Takes a complete list: apps that are not in it are gone.
    pub fn replace_all(&mut self, updates: Vec<AppUpdate>, source_problems: Vec<Problem>) {
        let known: BTreeSet<AppId> = updates.iter().map(|u| u.app.id.clone()).collect();
        self.held.retain(&known);
        for update in updates {
            self.held.replace(update);
        }
        self.set_source_problems(source_problems);
    }

    pub fn replace(&mut self, update: AppUpdate) {
        self.held.replace(update);
    }

    /// Takes an app as it is shared already, with what is wrong in its input.
    pub fn put(&mut self, app: Arc<App>, problems: Vec<Problem>) {
        self.held.put(app, problems);
    }

    pub fn remove(&mut self, id: &AppId) {
        self.held.remove(id);
    }

    /// See [`Holding::retire`].
    pub fn retire(&mut self, app: &AppId, instance: &InstanceId, state: InstanceState) {
        self.held.retire(app, instance, state);
    }

    /// See [`Holding::mark_unhealthy`].
    pub fn mark_unhealthy(&mut self, app: &AppId, instance: &InstanceId) {
        self.held.mark_unhealthy(app, instance);
    }

    /// What is wrong with an app that is not there, or whose last good version stays.
    pub fn set_problems(&mut self, id: &AppId, problems: Vec<Problem>) {
        self.held.set_problems(id, problems);
    }

    /// What is wrong with the schedulers' answers beyond single apps.
    pub fn set_source_problems(&mut self, problems: Vec<Problem>) {
        self.held.set_source_problems(problems);
    }

    /// The next snapshot, or `None` when nothing differs from the last one taken. The first one is always taken, so
    /// that an empty cluster counts as synced.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        let Changes { apps, problems } = self.held.take_changes();
        self.changed |= !apps.is_empty() || problems == ProblemsChanged::Yes;
        if !self.changed && self.generation > Generation::UNSYNCED {
            return None;
        }
        let of_vips = self.vips.follow(apps.iter().map(|id| (id, self.held.app(id).map(|app| &**app))));
        if [problems, of_vips].contains(&ProblemsChanged::Yes) {
            self.problems = self.held.problems().chain(self.vips.problems()).cloned().collect();
        }
        self.changed = false;
        self.generation = Generation(self.generation.0 + 1);
        Some(Arc::new(Snapshot {
            generation: self.generation,
            framework: Arc::clone(&self.framework),
            frameworks: self.frameworks.clone(),
            leaders: self.leaders,
            apps: self.held.apps().clone(),
            n_instances: self.held.n_instances(),
            vips: Arc::clone(self.vips.vips()),
            problems: Arc::clone(&self.problems),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
