//! What clients ask for: changes of definitions and groups, which become deployments.
//!
//! Not here: JSON and HTTP (`api`), kills (`kills`), stopping and taking back deployments (`revert`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::dependencies::Graph;
use super::deployment::{ActionKind, Deployment, Planned, Replace, Step, Subject, plan_steps};
use super::groups::{Group, RootChange};
use super::record::{ChangeRecord, end_line};
use super::{AppState, Core, Effect, MAX_VERSIONS, Refusal};
use crate::scheduler::app::fields::FieldError;
use crate::scheduler::app::input::AppUpdate;
use crate::scheduler::app::validate::problems;
use crate::scheduler::app::{App, VersionInfo};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// Marathon's `--max_running_deployments`.
const MAX_DEPLOYMENTS: usize = 100;

/// One app's part of a change.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new or changed definition. Version and history are set when it is applied.
    Define(Box<App>),
    /// New instances of the definition as it is.
    Restart(AppId),
    Remove(AppId),
}

/// One group's part of a change. The groups around apps need not be named.
#[derive(Clone, Debug)]
pub enum GroupChange {
    Define { id: AppId, dependencies: Vec<AppId> },
    Remove(AppId),
}

/// What happens to deployments that already work on the same apps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflict {
    #[default]
    Refuse,
    Override,
}

/// Who asked and for what, for the events that tell of it.
#[derive(Clone, Debug)]
pub struct Caller {
    pub ip: String,
    pub uri: String,
    pub post: Post,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    App,
    PodCreated,
    PodUpdated,
    PodDeleted,
}

/// Everything that becomes one deployment.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub changes: Vec<Change>,
    pub groups: Vec<GroupChange>,
    pub conflict: Conflict,
    /// The group or app it was sent to; `None`: the root.
    pub origin: Option<AppId>,
    pub caller: Option<Caller>,
}

/// A change that was taken on.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub version: Timestamp,
    pub deployment: String,
}

impl Change {
    fn app(&self) -> &AppId {
        match self {
            Change::Define(app) => &app.id,
            Change::Restart(id) | Change::Remove(id) => id,
        }
    }
}

impl Core {
    /// Checks a definition and turns it into a change.
    pub fn define(&self, update: &AppUpdate, base: &App) -> Result<Change, Refusal> {
        self.checked_change(update.apply(base).map_err(Refusal::BadJson)?)
    }

    /// Refuses, and tells so, when there is an app or a pod of this id.
    pub fn refuse_known(&mut self, id: &AppId) -> Result<(), Refusal> {
        let Some(state) = self.run_spec(id) else { return Ok(()) };
        let refusal = match state.app.is_pod() {
            true => Refusal::PodExists(id.clone()),
            false => Refusal::AppExists(id.clone()),
        };
        let version = self.clock.next_version();
        self.tell_refused(id.as_str(), version, &refusal);
        Err(refusal)
    }

    pub fn checked_change(&self, app: App) -> Result<Change, Refusal> {
        let found = problems(&app, self.settings.execution);
        if found.is_empty() { Ok(Change::Define(Box::new(app))) } else { Err(Refusal::Invalid(found)) }
    }

    /// The steps that the request would lead to.
    pub fn plan(&self, mut request: Request) -> Result<Vec<Step>, Refusal> {
        let planned = self.prepare(&mut request)?;
        Ok(plan_steps(&planned))
    }

    /// Applies all changes as one deployment, or none of them.
    pub fn apply(&mut self, mut request: Request) -> Result<Accepted, Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let version = self.clock.next_version();
        let origin = request.origin.as_ref().map_or("/", AppId::as_str).to_owned();
        let (planned, blocking) = match self.admit(&mut request) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.tell_refused(&origin, version, &refusal);
                return Err(refusal);
            }
        };
        for id in &blocking {
            self.cancel_deployment(id);
        }
        let affected: BTreeSet<AppId> = request.changes.iter().map(|change| change.app().clone()).collect();
        let original: BTreeMap<AppId, Arc<App>> =
            affected.iter().filter_map(|id| Some((id.clone(), self.run_spec(id)?.app.clone()))).collect();
        let subject_id = request.changes.first().map(|change| change.app().clone());
        let mut record = ChangeRecord { ended: blocking, ..ChangeRecord::default() };
        for (change, planned) in request.changes.into_iter().zip(&planned) {
            self.adopt(change, planned, version, &mut record);
        }
        self.adopt_groups(&request.groups, version, &mut record);
        let deployment = Deployment {
            id: uuid::Uuid::new_v4().to_string(),
            version,
            steps: plan_steps(&planned),
            current: None,
            original,
            affected,
        };
        let accepted = Accepted { version, deployment: deployment.id.clone() };
        self.remember(record, &deployment);
        self.hub.publish("group_change_success", || json!({"groupId": origin, "version": version}));
        if let (Some(caller), Some(id)) = (request.caller, subject_id) {
            self.tell_post(&caller, &id);
        }
        self.touched.extend(deployment.affected.iter().cloned());
        self.deployments.push(deployment);
        Ok(accepted)
    }

    /// Tells that a change was not made.
    fn tell_refused(&mut self, origin: &str, version: Timestamp, refusal: &Refusal) {
        let reason = crate::scheduler::api::reply::reason(refusal);
        self.hub.publish(
            "group_change_failed",
            || json!({"groupId": origin, "version": version, "reason": reason}),
        );
    }

    fn tell_post(&mut self, caller: &Caller, id: &AppId) {
        let mut event = json!({"clientIp": caller.ip, "uri": caller.uri});
        let kind = match caller.post {
            Post::App => {
                let definition = self.apps.get(id).map(|state| serde_json::from_str(state.app.json()));
                event["appDefinition"] = definition.and_then(Result::ok).unwrap_or(Value::Null);
                "api_post_event"
            }
            Post::PodCreated => "pod_created_event",
            Post::PodUpdated => "pod_updated_event",
            Post::PodDeleted => "pod_deleted_event",
        };
        self.hub.publish(kind, || event.clone());
    }

    /// What the request needs done, and the deployments that it overrides.
    fn admit(&self, request: &mut Request) -> Result<(Vec<Planned>, Vec<String>), Refusal> {
        let affected: BTreeSet<&AppId> = request.changes.iter().map(Change::app).collect();
        let blocks = |d: &&Deployment| affected.iter().any(|id| d.affected.contains(*id));
        let blocking: Vec<String> = self.deployments.iter().filter(blocks).map(|d| d.id.clone()).collect();
        if !blocking.is_empty() && request.conflict == Conflict::Refuse {
            return Err(Refusal::Locked(blocking));
        }
        if self.deployments.len() >= MAX_DEPLOYMENTS + blocking.len() {
            return Err(Refusal::TooManyDeployments);
        }
        Ok((self.prepare(request)?, blocking))
    }

    /// Completes the definitions and says what the instances of each need.
    fn prepare(&self, request: &mut Request) -> Result<Vec<Planned>, Refusal> {
        self.assign_service_ports(&mut request.changes)?;
        self.check_names(request)?;
        let depths = self.depths_after(request)?;
        let depth = |id: &AppId| depths.get(id).copied().unwrap_or(0);
        Ok(request.changes.iter().map(|change| self.classify(change, depth(change.app()))).collect())
    }

    /// No app may have the name of a group.
    fn check_names(&self, request: &Request) -> Result<(), Refusal> {
        let removed: BTreeSet<&AppId> =
            request.changes.iter().filter(|c| matches!(c, Change::Remove(_))).map(Change::app).collect();
        let dropped = |id: &AppId| {
            request.groups.iter().any(|group| matches!(group, GroupChange::Remove(gone) if gone == id))
        };
        let is_app = |id: &str| self.run_spec(id).is_some_and(|s| !removed.contains(&s.app.id));
        let defined = request.groups.iter().filter_map(|group| match group {
            GroupChange::Define { id, .. } => Some(id),
            GroupChange::Remove(_) => None,
        });
        let clash = request.changes.iter().any(|change| match change {
            Change::Define(app) => {
                let is_group = self.groups.contains_key(&app.id) && !dropped(&app.id);
                is_group || app.id.groups().any(is_app)
            }
            _ => false,
        });
        if clash || defined.into_iter().any(|id| is_app(id.as_str()) || id.groups().any(is_app)) {
            let text = "Groups and Applications may not have the same identifier.";
            return Err(Refusal::Invalid(vec![FieldError::new("/", text)]));
        }
        Ok(())
    }

    fn depths_after(&self, request: &Request) -> Result<BTreeMap<AppId, usize>, Refusal> {
        let adds =
            request.changes.iter().any(|c| matches!(c, Change::Define(a) if !a.dependencies.is_empty()))
                || request.groups.iter().any(
                    |g| matches!(g, GroupChange::Define { dependencies, .. } if !dependencies.is_empty()),
                );
        let has = self.groups.values().any(|group| !group.dependencies.is_empty())
            || self.apps.values().any(|state| !state.app.dependencies.is_empty());
        if !adds && !has {
            return Ok(BTreeMap::new());
        }
        let mut tree = self.tree();
        for change in &request.changes {
            match change {
                Change::Define(app) => tree.apps.insert(app.id.clone(), Arc::new(App::clone(app))),
                Change::Remove(id) => tree.apps.remove(id),
                Change::Restart(_) => None,
            };
        }
        for change in &request.groups {
            match change {
                GroupChange::Define { id, dependencies } => {
                    let group = Group { dependencies: dependencies.clone(), version: self.clock.newest() };
                    tree.groups.insert(id.clone(), group);
                }
                GroupChange::Remove(id) => {
                    tree.groups.remove(id);
                }
            }
        }
        let depths = Graph::of(&tree).depths();
        let depths = depths.ok_or_else(|| {
            Refusal::Invalid(vec![FieldError::new("/", "Dependency graph has cyclic dependencies.")])
        })?;
        Ok(depths.into_iter().map(|(id, depth)| (id.clone(), depth)).collect())
    }

    /// Marathon's AssignDynamicServiceLogic: the app's own ports of before first, then the lowest free ones.
    fn assign_service_ports(&self, changes: &mut [Change]) -> Result<(), Refusal> {
        let mut used: Option<BTreeSet<u16>> = None;
        for change in changes {
            let Change::Define(app) = change else { continue };
            if app.unassigned_ports().is_empty() {
                continue;
            }
            let explicit: BTreeSet<u16> = app.service_ports().into_iter().collect();
            let before = self.run_spec(&app.id).map(|state| state.app.service_ports());
            let mut own = before.unwrap_or_default();
            own.retain(|port| *port != 0 && !explicit.contains(port));
            let used = used.get_or_insert_with(|| {
                self.live_apps().flat_map(|state| state.app.service_ports()).collect()
            });
            used.extend(explicit);
            let mut own = own.into_iter();
            for port in app.unassigned_ports() {
                let free = || self.settings.service_ports.clone().find(|port| !used.contains(port));
                *port = own.next().or_else(free).ok_or_else(|| {
                    let text = "no service port is left in the configured range";
                    Refusal::Invalid(vec![FieldError::new("/portDefinitions", text)])
                })?;
                used.insert(*port);
            }
        }
        Ok(())
    }

    fn classify(&self, change: &Change, depth: usize) -> Planned {
        let id = change.app();
        let before = self.run_spec(id);
        let is_pod = match change {
            Change::Define(app) => app.is_pod(),
            _ => before.is_some_and(|state| state.app.is_pod()),
        };
        let (is_new, kind) = match (change, before) {
            (Change::Remove(_), _) => (false, Some(ActionKind::Stop)),
            (Change::Restart(_), _) => (false, Some(ActionKind::Restart(Replace::All))),
            (Change::Define(_), None) => (true, Some(ActionKind::Scale)),
            (Change::Define(app), Some(state)) => {
                let left_over = || state.instances.values().any(|i| i.outdated && i.is_active());
                let kind = if state.app.needs_restart_for(app) {
                    let to_nothing = app.instances == 0;
                    Some(if to_nothing { ActionKind::Scale } else { ActionKind::Restart(Replace::All) })
                } else if left_over() {
                    Some(ActionKind::Restart(Replace::Outdated))
                } else {
                    (state.app.instances != app.instances).then_some(ActionKind::Scale)
                };
                (false, kind)
            }
        };
        let subject = if is_pod { Subject::Pod } else { Subject::App };
        Planned { app: id.clone(), subject, is_new, kind, depth }
    }

    /// Makes the change the current definition.
    fn adopt(
        &mut self,
        change: Change,
        planned: &Planned,
        version: Timestamp,
        record: &mut ChangeRecord<'_>,
    ) {
        let before = self.run_spec(&planned.app).map(|state| state.app.clone());
        match change {
            Change::Remove(id) => {
                if let Some(state) = self.apps.get_mut(&id) {
                    state.removed = true;
                }
                record.removed.push(id);
            }
            Change::Restart(id) => {
                if let (Some(before), Some(state)) = (before, self.apps.get_mut(&id)) {
                    let mut app = App::clone(&before);
                    app.version = version;
                    app.version_info.last_scaling_at = version;
                    state.backoff = None;
                    record.defined.push(self.install(app));
                }
            }
            Change::Define(mut app) => {
                let Some(before) = before else {
                    app.version = version;
                    app.version_info =
                        VersionInfo { last_scaling_at: version, last_config_change_at: version };
                    record.defined.push(self.install(*app));
                    return;
                };
                if planned.kind.is_none() {
                    return;
                }
                app.version = version;
                app.version_info = before.version_info;
                app.version_info.last_scaling_at = version;
                if before.needs_restart_for(&app) {
                    app.version_info.last_config_change_at = version;
                    if let Some(state) = self.apps.get_mut(&app.id) {
                        state.backoff = None;
                    }
                }
                record.defined.push(self.install(*app));
            }
        }
    }

    fn install(&mut self, app: App) -> Arc<App> {
        let app = Arc::new(app);
        let Some(state) = self.apps.get_mut(&app.id) else {
            self.apps.insert(app.id.clone(), AppState::new(app.clone()));
            return app;
        };
        if state.removed {
            // A removed app that comes back before its last instance is gone begins a new history.
            state.removed = false;
            state.versions = BTreeMap::from([(app.version, app.clone())]);
        } else {
            state.versions.insert(app.version, app.clone());
            while state.versions.len() > MAX_VERSIONS {
                state.versions.pop_first();
            }
            // Those that wait have not begun: they begin with what is wanted now.
            for seq in &state.scheduled {
                if let Some(instance) = state.instances.get_mut(seq) {
                    instance.app = app.clone();
                    instance.checks = vec![None; app.health_checks.len()];
                }
            }
        }
        state.app = app.clone();
        app
    }

    /// Groups that are named, and those around every app that changed.
    fn adopt_groups(&mut self, changes: &[GroupChange], version: Timestamp, record: &mut ChangeRecord<'_>) {
        let mut after: BTreeMap<AppId, Option<Group>> = BTreeMap::new();
        for change in changes {
            match change {
                GroupChange::Remove(id) => {
                    after.insert(id.clone(), None);
                }
                GroupChange::Define { id, dependencies } => {
                    let group = Group { dependencies: dependencies.clone(), version };
                    after.insert(id.clone(), Some(group));
                }
            }
        }
        let mut named: Vec<AppId> = after.keys().cloned().collect();
        named.extend(record.defined.iter().map(|app| app.id.clone()));
        named.extend(record.removed.iter().cloned());
        for id in named {
            for around in id.groups().filter_map(|group| AppId::parse(group).ok()) {
                let known = self.groups.get(&around).cloned();
                let dependencies = known.map(|group| group.dependencies).unwrap_or_default();
                after.entry(around).or_insert(Some(Group { dependencies, version }));
            }
        }
        record.groups = after.into_iter().collect();
    }

    /// Writes the change down, in memory and for the disk. One that changed nothing is not a version.
    fn remember<'a>(&mut self, mut record: ChangeRecord<'a>, deployment: &'a Deployment) {
        if record.defined.is_empty() && record.removed.is_empty() && record.groups.is_empty() {
            for id in record.ended {
                self.effects.push(Effect::Store(end_line(&id)));
            }
            return;
        }
        let named = record.defined.iter().map(|app| app.id.clone()).chain(record.removed.clone());
        self.history.push(RootChange {
            version: deployment.version,
            apps: named.map(|id| (id.clone(), deployment.original.get(&id).cloned())).collect(),
            groups: record.groups.iter().map(|(id, _)| (id.clone(), self.groups.get(id).cloned())).collect(),
        });
        for (id, group) in &record.groups {
            match group {
                Some(group) => self.groups.insert(id.clone(), group.clone()),
                None => self.groups.remove(id),
            };
        }
        record.deployment = Some(deployment);
        let line = record.line(deployment.version);
        self.effects.push(Effect::Store(line));
    }
}
