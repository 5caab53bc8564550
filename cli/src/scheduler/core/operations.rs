//! What clients ask for: changes of definitions, which become deployments, and kills of tasks.
//!
//! Not here: JSON and HTTP (`api`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::deployment::{ActionKind, Deployment, Planned, Replace, plan_steps};
use super::{AppState, Core, Refusal};
use crate::scheduler::app::input::{AppUpdate, FieldError};
use crate::scheduler::app::validate::{Execution, network_problem, problems};
use crate::scheduler::app::{App, VersionInfo};
use crate::scheduler::id::{AppId, split_task_id};
use crate::scheduler::timestamp::Timestamp;

/// Marathon's `--max_running_deployments`.
const MAX_DEPLOYMENTS: usize = 100;

const CANCELLED: &str = "The upgrade has been cancelled";

/// One app's part of a change.
#[derive(Debug)]
pub enum Change {
    /// A new or changed definition. Version and history are set when it is applied.
    Define(Box<App>),
    /// New instances of the definition as it is.
    Restart(AppId),
    Remove(AppId),
}

/// What happens to deployments that already work on the same apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    Refuse,
    Override,
}

/// Who asked, for the `api_post_event`.
#[derive(Clone, Debug)]
pub struct Caller {
    pub ip: String,
    pub uri: String,
}

/// A change that was taken on.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub version: Timestamp,
    pub deployment: String,
}

/// What a kill does to the app's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillMode {
    /// The same instance starts again.
    Restart,
    /// A new instance takes its place.
    Wipe,
    /// The app is scaled down by the number of kills.
    Scale,
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
        let app = update.apply(base).map_err(Refusal::BadJson)?;
        let mut found = problems(&app, self.settings.execution);
        if self.settings.execution == Execution::Processes {
            found.extend(network_problem(update));
        }
        if found.is_empty() { Ok(Change::Define(Box::new(app))) } else { Err(Refusal::Invalid(found)) }
    }

    /// Applies all changes as one deployment, or none of them. `group`: the group or app they were sent to.
    pub fn apply(
        &mut self,
        changes: Vec<Change>,
        conflict: Conflict,
        group: &str,
        caller: Option<Caller>,
    ) -> Result<Accepted, Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let affected: BTreeSet<AppId> = changes.iter().map(|change| change.app().clone()).collect();
        let version = self.clock.next_version();
        let blocking: Vec<String> = self
            .deployments
            .iter()
            .filter(|d| !d.affected.is_disjoint(&affected))
            .map(|d| d.id.clone())
            .collect();
        let refusal = if !blocking.is_empty() && conflict == Conflict::Refuse {
            Some(Refusal::Locked(blocking.clone()))
        } else if self.deployments.len() >= MAX_DEPLOYMENTS + blocking.len() {
            Some(Refusal::TooManyDeployments)
        } else {
            self.assign_check(&changes).err()
        };
        if let Some(refusal) = refusal {
            let reason = crate::scheduler::api::reply::reason(&refusal);
            self.hub.publish(
                "group_change_failed",
                json!({"groupId": group, "version": version, "reason": reason}),
            );
            return Err(refusal);
        }
        let original: BTreeMap<AppId, Arc<App>> =
            affected.iter().filter_map(|id| Some((id.clone(), self.app(id)?.app.clone()))).collect();
        for id in &blocking {
            self.cancel_deployment(id);
        }
        let posted = changes.first().map(|change| change.app().clone());
        let planned: Vec<Planned> = changes.into_iter().map(|change| self.adopt(change, version)).collect();
        self.hub.publish("group_change_success", json!({"groupId": group, "version": version}));
        if let (Some(caller), Some(state)) = (caller, posted.and_then(|id| self.apps.get(&id))) {
            let definition: Value = serde_json::from_str(state.app.json()).unwrap_or_default();
            self.hub.publish(
                "api_post_event",
                json!({"clientIp": caller.ip, "uri": caller.uri, "appDefinition": definition}),
            );
        }
        let id = uuid::Uuid::new_v4().to_string();
        self.touched.extend(affected.iter().cloned());
        let deployment = Deployment {
            id: id.clone(),
            version,
            steps: plan_steps(&planned),
            current: None,
            original,
            affected,
        };
        self.deployments.push(deployment);
        Ok(Accepted { version, deployment: id })
    }

    /// Whether every `port: 0` can be given a service port.
    fn assign_check(&self, changes: &[Change]) -> Result<(), Refusal> {
        let wanted = |change: &Change| match change {
            Change::Define(app) => app.port_definitions.iter().filter(|d| d.port == 0).count(),
            _ => 0,
        };
        let n_wanted: usize = changes.iter().map(wanted).sum();
        let used = self.used_service_ports();
        let n_free =
            self.settings.service_ports.clone().filter(|port| !used.contains(port)).take(n_wanted).count();
        if n_free < n_wanted {
            let error =
                FieldError::new("/portDefinitions", "no service port is left in the configured range");
            return Err(Refusal::Invalid(vec![error]));
        }
        Ok(())
    }

    fn used_service_ports(&self) -> BTreeSet<u16> {
        self.live_apps().flat_map(|state| state.app.service_ports()).filter(|&port| port != 0).collect()
    }

    /// Makes the change the current definition and says what its instances need.
    fn adopt(&mut self, change: Change, version: Timestamp) -> Planned {
        let id = change.app().clone();
        let before = self.app(&id).map(|state| state.app.clone());
        let planned = |is_new, kind, dependencies| Planned { app: id.clone(), is_new, kind, dependencies };
        match change {
            Change::Remove(id) => {
                if let Some(state) = self.apps.get_mut(&id) {
                    state.removed = true;
                }
                self.store(&id);
                planned(false, Some(ActionKind::Stop), Vec::new())
            }
            Change::Restart(id) => {
                if let (Some(before), Some(state)) = (before, self.apps.get_mut(&id)) {
                    let mut app = App::clone(&before);
                    app.version = version;
                    app.version_info.last_scaling_at = version;
                    state.backoff = None;
                    self.install(app);
                }
                planned(false, Some(ActionKind::Restart(Replace::All)), Vec::new())
            }
            Change::Define(mut app) => {
                self.assign_service_ports(&mut app, before.as_deref());
                let dependencies = app.dependencies.clone();
                let Some(before) = before else {
                    app.version = version;
                    app.version_info =
                        VersionInfo { last_scaling_at: version, last_config_change_at: version };
                    self.install(*app);
                    return planned(true, Some(ActionKind::Scale), dependencies);
                };
                let left_over = self.apps.get(&id).is_some_and(|state| {
                    state.instances.values().any(|instance| instance.outdated && instance.is_active())
                });
                let config_changed = before.needs_restart_for(&app);
                let scaled = before.instances != app.instances;
                if !config_changed && !scaled && !left_over {
                    return planned(false, None, dependencies);
                }
                app.version = version;
                app.version_info = before.version_info;
                app.version_info.last_scaling_at = version;
                let kind = if config_changed {
                    app.version_info.last_config_change_at = version;
                    if let Some(state) = self.apps.get_mut(&id) {
                        state.backoff = None;
                    }
                    if app.instances == 0 { ActionKind::Scale } else { ActionKind::Restart(Replace::All) }
                } else if left_over {
                    ActionKind::Restart(Replace::Outdated)
                } else {
                    ActionKind::Scale
                };
                self.install(*app);
                planned(false, Some(kind), dependencies)
            }
        }
    }

    fn install(&mut self, app: App) {
        let id = app.id.clone();
        let app = Arc::new(app);
        match self.apps.get_mut(&id) {
            // A removed app that comes back before its last instance is gone begins a new history.
            Some(state) if state.removed => {
                state.removed = false;
                state.versions = BTreeMap::from([(app.version, app.clone())]);
                state.app = app;
            }
            Some(state) => {
                state.versions.insert(app.version, app.clone());
                // Those that wait have not begun: they begin with what is wanted now.
                for seq in &state.scheduled {
                    if let Some(instance) = state.instances.get_mut(seq) {
                        instance.app = app.clone();
                        instance.checks = vec![None; app.health_checks.len()];
                    }
                }
                state.app = app;
            }
            None => {
                self.apps.insert(id.clone(), AppState::new(app));
            }
        }
        self.store(&id);
    }

    /// Marathon's AssignDynamicServiceLogic: the app's own ports of before first, then the lowest free ones.
    fn assign_service_ports(&self, app: &mut App, before: Option<&App>) {
        if app.port_definitions.iter().all(|definition| definition.port != 0) || app.require_ports {
            return;
        }
        let explicit: BTreeSet<u16> = app.service_ports().into_iter().collect();
        let mut own: Vec<u16> = before.map(App::service_ports).unwrap_or_default();
        own.retain(|port| !explicit.contains(port));
        let used = self.used_service_ports();
        let mut free =
            self.settings.service_ports.clone().filter(|p| !used.contains(p) && !explicit.contains(p));
        let mut own = own.into_iter();
        for definition in app.port_definitions.iter_mut().filter(|definition| definition.port == 0) {
            definition.port = own.next().or_else(|| free.next()).unwrap_or(0);
        }
    }

    /// Stops a deployment where it is. False: there is none of that id.
    pub fn cancel_deployment(&mut self, id: &str) -> bool {
        let Some(index) = self.deployments.iter().position(|d| d.id == id) else { return false };
        let gone = self.deployments.remove(index);
        self.touched.extend(gone.affected.iter().cloned());
        if let Some(step) = gone.current {
            self.tell_step("deployment_step_failure", &gone, step);
        }
        self.hub.publish_plan(
            "deployment_failed",
            |format| json!({"id": gone.id, "plan": gone.plan_json(format), "reason": CANCELLED}),
        );
        true
    }

    /// Replaces a deployment by one that leads back to the definitions before it.
    pub fn revert_deployment(&mut self, id: &str) -> Result<Accepted, Refusal> {
        let unknown = || Refusal::UnknownDeployment(id.to_owned());
        let deployment = self.deployments.iter().find(|d| d.id == id).ok_or_else(unknown)?;
        let changes = deployment
            .affected
            .iter()
            .filter_map(|app| match deployment.original.get(app) {
                Some(before) => Some(Change::Define(Box::new(App::clone(before)))),
                None => self.app(app).map(|_| Change::Remove(app.clone())),
            })
            .collect();
        self.apply(changes, Conflict::Override, "/", None)
    }

    /// Kills tasks by id. Ids of tasks that do not run are ignored, as Marathon does.
    pub fn kill_tasks(
        &mut self,
        task_ids: &[String],
        mode: KillMode,
        conflict: Conflict,
    ) -> Result<Option<Accepted>, Refusal> {
        let mut found: BTreeMap<AppId, Vec<u64>> = BTreeMap::new();
        for task_id in task_ids {
            let (app, instance) =
                split_task_id(task_id).ok_or_else(|| Refusal::BadTaskId(task_id.clone()))?;
            let instances = self.apps.get(&app).into_iter().flat_map(|state| state.instances.values());
            if let Some(instance) = instances.into_iter().find(|i| i.id.as_str() == instance && i.is_task()) {
                let seq = instance.seq;
                found.entry(app).or_default().push(seq);
            }
        }
        if mode != KillMode::Scale {
            for (app, seqs) in found {
                for seq in seqs {
                    match mode {
                        KillMode::Wipe => self.decommission(&app, seq),
                        _ => self.kill_task(&app, seq),
                    }
                }
            }
            return Ok(None);
        }
        let mut changes = Vec::new();
        for (id, seqs) in &found {
            let Some(state) = self.app(id) else { continue };
            let n_active =
                seqs.iter().filter(|seq| state.instances.get(seq).is_some_and(|i| i.is_active())).count();
            let mut app = App::clone(&state.app);
            app.instances = app.instances.saturating_sub(n_active as u32);
            changes.push(Change::Define(Box::new(app)));
        }
        let accepted = self.apply(changes, conflict, "/", None)?;
        for (id, seqs) in found {
            for seq in seqs {
                self.decommission(&id, seq);
                if let Some(deployment) = self.deployments.iter_mut().find(|d| d.id == accepted.deployment) {
                    for action in deployment.steps.iter_mut().flat_map(|s| &mut s.actions) {
                        if action.app == id {
                            action.progress.killed.insert(seq);
                        }
                    }
                }
            }
        }
        Ok(Some(accepted))
    }

    /// Ends the app's back-off.
    pub fn reset_delay(&mut self, id: &AppId) -> Result<(), Refusal> {
        let state = self.apps.get_mut(id).filter(|state| !state.scheduled.is_empty());
        let state = state.ok_or_else(|| Refusal::NotQueued(id.clone()))?;
        state.backoff = None;
        self.touched.insert(id.clone());
        Ok(())
    }
}
