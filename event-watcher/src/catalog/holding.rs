//! Apps and what is wrong with them, as one writer holds them, and which of them changed since somebody last asked.
//!
//! It numbers nothing and knows no VIPs: [`super::Catalog`] makes snapshots of it, and each source has one of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::app::{App, AppId};
use super::instance::{Health, InstanceId, InstanceState};
use super::problem::Problem;
use super::snapshot::AppUpdate;

/// Apps by id. A copy shares everything with the original, a change copies the path to what it changes, and comparing
/// two versions costs what differs between them.
pub type Apps = imbl::OrdMap<AppId, Arc<App>>;

#[derive(Clone, Debug, Default)]
pub struct Holding {
    apps: Apps,
    n_instances: usize,
    problems: BTreeMap<AppId, Vec<Problem>>,
    /// What is wrong beyond single apps, e.g. an app without an id.
    source_problems: Vec<Problem>,
    changes: Changes,
}

/// What happened to a [`Holding`] since the last look.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Apps that came, went or differ, or whose problems do.
    pub apps: BTreeSet<AppId>,
    pub problems: ProblemsChanged,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProblemsChanged {
    #[default]
    No,
    Yes,
}

impl Holding {
    pub fn apps(&self) -> &Apps {
        &self.apps
    }

    /// Of all apps.
    pub fn n_instances(&self) -> usize {
        self.n_instances
    }

    pub fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.apps.get(id)
    }

    /// Everything that is wrong: first what concerns no single app, then by app.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.source_problems.iter().chain(self.problems.values().flatten())
    }

    pub fn problems_of(&self, id: &AppId) -> &[Problem] {
        self.problems.get(id).map_or(&[], Vec::as_slice)
    }

    pub fn source_problems(&self) -> &[Problem] {
        &self.source_problems
    }

    pub fn replace(&mut self, update: AppUpdate) {
        let AppUpdate { mut app, problems } = update;
        self.set_problems(&app.id.clone(), problems);
        match self.apps.get(&app.id) {
            Some(known) if **known == app => return,
            Some(known) => app.share_instances_of(known),
            None => {}
        }
        self.hold(Arc::new(app));
    }

    pub fn put(&mut self, app: Arc<App>, problems: Vec<Problem>) {
        self.set_problems(&app.id, problems);
        if self.apps.get(&app.id).is_none_or(|known| !Arc::ptr_eq(known, &app) && *known != app) {
            self.hold(app);
        }
    }

    pub fn remove(&mut self, id: &AppId) {
        self.set_problems(id, Vec::new());
        if let Some(gone) = self.apps.remove(id) {
            self.n_instances -= gone.instances.len();
            self.changes.apps.insert(id.clone());
        }
    }

    fn hold(&mut self, app: Arc<App>) {
        self.changes.apps.insert(app.id.clone());
        self.n_instances += app.instances.len();
        if let Some(before) = self.apps.insert(app.id.clone(), app) {
            self.n_instances -= before.instances.len();
        }
    }

    /// Moves one instance to a state that takes it out of rotation, without waiting for a fetch: an event may do
    /// this, because it can only be too early, never wrong.
    pub fn retire(&mut self, app: &AppId, instance: &InstanceId, state: InstanceState) {
        self.change(app, instance, |instance| {
            // Events may come out of order: what has ended is not being killed any more.
            if instance.state != InstanceState::Terminal {
                instance.state = state;
            }
        });
    }

    /// Takes a verdict about one instance's health, without waiting for a fetch; as with [`Self::retire`], only a bad
    /// one can be taken this way.
    pub fn mark_unhealthy(&mut self, app: &AppId, instance: &InstanceId) {
        self.change(app, instance, |instance| instance.health = Health::Unhealthy);
    }

    /// Serves an instance that nobody has a verdict about.
    pub fn presume_healthy(&mut self, app: &AppId, instance: &InstanceId) {
        self.change(app, instance, |instance| {
            if instance.health == Health::Unknown {
                instance.health = Health::Presumed;
            }
        });
    }

    fn change(&mut self, app: &AppId, instance: &InstanceId, to: impl FnOnce(&mut super::Instance)) {
        let Some(known) = self.apps.get(app) else { return };
        let Some(index) = known.instances.iter().position(|i| i.id == *instance) else { return };
        let mut changed = super::Instance::clone(&known.instances[index]);
        to(&mut changed);
        if changed == *known.instances[index] {
            return;
        }
        let mut of_app = App::clone(known);
        of_app.instances[index] = Arc::new(changed);
        self.hold(Arc::new(of_app));
    }

    /// What is wrong with an app whose last good version stays, or which has none.
    pub fn set_problems(&mut self, id: &AppId, problems: Vec<Problem>) {
        if self.problems_of(id) == problems {
            return;
        }
        self.changes.problems = ProblemsChanged::Yes;
        self.changes.apps.insert(id.clone());
        if problems.is_empty() {
            self.problems.remove(id);
        } else {
            self.problems.insert(id.clone(), problems);
        }
    }

    /// What is wrong with an answer as a whole.
    pub fn set_source_problems(&mut self, problems: Vec<Problem>) {
        if self.source_problems != problems {
            self.source_problems = problems;
            self.changes.problems = ProblemsChanged::Yes;
        }
    }

    /// Removes every app, and every problem of an app, that is not in `known`. Answers whose that were.
    pub fn retain(&mut self, known: &BTreeSet<AppId>) -> BTreeSet<AppId> {
        let held = self.apps.keys().chain(self.problems.keys());
        let gone: BTreeSet<AppId> = held.filter(|id| !known.contains(*id)).cloned().collect();
        for id in &gone {
            self.remove(id);
        }
        gone
    }

    /// What changed since this was last called.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }
}
