//! Carries deployments out and keeps every app at its wanted count. Level-triggered: each pass looks at the
//! state as it is, so it does not matter which event brought it about, or in which order.
//!
//! Not here: making plans (`deployment`), the arithmetic of upgrades (`rollout`).

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::Instant;

use super::deployment::{Action, ActionKind, Deployment, Replace, Step};
use super::instance::{Instance, by_kill_order};
use super::record::{end_line, step_line};
use super::rollout::Rollout;
use super::{Core, Effect};
use crate::scheduler::id::AppId;

impl Core {
    /// Does everything that can be done now. Returns when to come back though nothing happened.
    pub fn settle(&mut self, now: Instant) -> Option<Instant> {
        if self.stopping {
            return None;
        }
        loop {
            // One that touches no app, such as a new empty group, is carried out too.
            let n_new = self.deployments.iter().filter(|d| d.current.is_none()).count();
            if self.touched.is_empty() && n_new == 0 {
                // Last, so that nothing starts that a deployment is about to replace. Launching may in turn
                // be what a deployment waits for.
                let wake = self.launch_waiting(now);
                if self.touched.is_empty() {
                    break wake;
                }
            }
            let touched = std::mem::take(&mut self.touched);
            let mut deployments = std::mem::take(&mut self.deployments);
            let mut index = 0;
            while index < deployments.len() {
                let deployment = &mut deployments[index];
                let concerned =
                    deployment.current.is_none() || deployment.affected.iter().any(|id| touched.contains(id));
                if concerned && self.advance(deployment) {
                    let done = deployments.remove(index);
                    if !done.steps.is_empty() {
                        self.effects.push(Effect::Store(end_line(&done.id)));
                    }
                    self.hub.publish_plan(
                        "deployment_success",
                        |format| json!({"id": done.id, "plan": done.plan_json(format)}),
                    );
                } else {
                    index += 1;
                }
            }
            self.deployments = deployments;
            self.keep_counts(&touched);
        }
    }

    /// Apps that no deployment works on: replaces what was lost.
    fn keep_counts(&mut self, touched: &BTreeSet<AppId>) {
        for id in touched {
            let busy = self.deployments.iter().any(|d| d.affected.contains(id));
            match self.apps.get(id) {
                Some(state) if state.removed => {
                    if state.instances.is_empty() && !busy {
                        self.forget(id);
                    } else if !busy {
                        // Its deployment was cancelled; the app is gone from the definitions all the same.
                        self.stop_app(id);
                    }
                }
                Some(_) if !busy => {
                    self.scale(id);
                }
                _ => {}
            }
        }
    }

    /// Moves a deployment as far as it can go; true once it is done.
    fn advance(&mut self, deployment: &mut Deployment) -> bool {
        loop {
            let entered = match deployment.current {
                None => self.enter(deployment, 0),
                Some(_) => true,
            };
            if !entered {
                return true;
            }
            let index = deployment.current.unwrap_or(0);
            let Some(step) = deployment.steps.get_mut(index) else { return true };
            let mut done = true;
            for action in &mut step.actions {
                done &= self.act(action);
            }
            if !done {
                return false;
            }
            self.tell_step("deployment_step_success", deployment, index);
            if !self.enter(deployment, index + 1) {
                return true;
            }
        }
    }

    /// Starts a step; false when there is none.
    fn enter(&mut self, deployment: &mut Deployment, index: usize) -> bool {
        deployment.current = Some(index);
        let Some(step) = deployment.steps.get(index) else { return false };
        if index > 0 {
            self.effects.push(Effect::Store(step_line(&deployment.id, index)));
        }
        let kinds: Vec<(AppId, ActionKind)> = step.actions.iter().map(|a| (a.app.clone(), a.kind)).collect();
        self.tell_step("deployment_info", deployment, index);
        for (id, kind) in kinds {
            if matches!(kind, ActionKind::Scale | ActionKind::Restart(_)) {
                self.announce_checks(&id);
            }
        }
        true
    }

    pub(super) fn tell_step(&mut self, kind: &str, deployment: &Deployment, index: usize) {
        let step = deployment.steps.get(index).map(Step::json);
        self.hub
            .publish_plan(kind, |format| json!({"plan": deployment.plan_json(format), "currentStep": step}));
    }

    fn announce_checks(&mut self, id: &AppId) {
        let Some(state) = self.apps.get_mut(id) else { return };
        let config = state.app.version_info.last_config_change_at;
        let app = state.app.clone();
        let before = if app.health_checks.is_empty() {
            state.announced_checks.take()
        } else {
            state.announced_checks.replace(config)
        };
        if before == Some(config) {
            return;
        }
        if before.is_some() {
            self.hub.publish("remove_health_check_event", || json!({"appId": id}));
        }
        for check in &app.health_checks {
            self.hub.publish(
                "add_health_check_event",
                || json!({"appId": id, "healthCheck": check, "version": app.version}),
            );
        }
    }

    fn act(&mut self, action: &mut Action) -> bool {
        let id = action.app.clone();
        match action.kind {
            ActionKind::Start => true,
            ActionKind::Stop => {
                self.stop_app(&id);
                let gone = self.apps.get(&id).is_none_or(|state| state.instances.is_empty());
                if gone {
                    self.forget(&id);
                }
                gone
            }
            ActionKind::Scale => {
                let (started, killed) = self.scale(&id);
                action.progress.started.extend(started);
                action.progress.killed.extend(killed);
                self.scaled(&id, action)
            }
            ActionKind::Restart(replace) => self.restart(&id, replace, action),
        }
    }

    fn stop_app(&mut self, id: &AppId) {
        let Some(state) = self.apps.get_mut(id) else { return };
        if state.announced_checks.take().is_some() {
            self.hub.publish("remove_health_check_event", || json!({"appId": id}));
        }
        let active: Vec<u64> = state.instances.values().filter(|i| i.is_active()).map(|i| i.seq).collect();
        for seq in active {
            self.decommission(id, seq);
        }
    }

    /// The end of a removed app.
    fn forget(&mut self, id: &AppId) {
        if self.apps.get(id).is_none_or(|state| !state.removed) {
            return;
        }
        let Some(state) = self.apps.remove(id) else { return };
        for ended in state.ended {
            self.effects.push(Effect::RemoveSandbox(ended.sandbox));
        }
        self.hub.publish("app_terminated_event", || json!({"appId": id}));
    }

    /// Schedules what is missing and ends what is too much. Returns the instances started and ended.
    fn scale(&mut self, id: &AppId) -> (Vec<u64>, Vec<u64>) {
        let Some(state) = self.apps.get(id) else { return Default::default() };
        let wanted = state.app.instances as usize;
        let active = state.n_active();
        if active > wanted {
            let surplus = choose(state.instances.values(), active - wanted, state);
            for &seq in &surplus {
                self.decommission(id, seq);
            }
            return (Vec::new(), surplus);
        }
        let started = (active..wanted).filter_map(|_| self.add_scheduled(id)).collect();
        (started, Vec::new())
    }

    fn scaled(&self, id: &AppId, action: &Action) -> bool {
        let Some(state) = self.apps.get(id) else { return true };
        let up = |seq: &u64| state.instances.get(seq).is_none_or(Instance::is_up);
        let gone = |seq: &u64| !state.instances.contains_key(seq);
        state.n_active() == state.app.instances as usize
            && action.progress.started.iter().all(up)
            && action.progress.killed.iter().all(gone)
    }

    /// Says which instances a restart replaces, and how.
    fn begin_rollout(&mut self, id: &AppId, replace: Replace) -> Option<Rollout> {
        let state = self.apps.get_mut(id)?;
        if replace == Replace::All {
            state.instances.values_mut().for_each(|i| i.outdated = true);
        }
        // Those that have not begun need not be replaced one by one.
        let waiting = state.scheduled.iter().copied();
        let waiting: Vec<u64> =
            waiting.filter(|seq| state.instances.get(seq).is_some_and(|i| i.outdated)).collect();
        for seq in waiting {
            self.decommission(id, seq);
        }
        let state = self.apps.get(id)?;
        let old = || state.instances.values().filter(|i| i.outdated && i.is_active());
        let n_up = old().filter(|i| i.is_up()).count();
        Some(Rollout::plan(state.app.instances as usize, state.app.upgrade_strategy, old().count(), n_up))
    }

    fn restart(&mut self, id: &AppId, replace: Replace, action: &mut Action) -> bool {
        if action.progress.rollout.is_none() {
            action.progress.rollout = self.begin_rollout(id, replace);
        }
        let (Some(rollout), Some(state)) = (action.progress.rollout, self.apps.get(id)) else { return true };
        let wanted = state.app.instances as usize;
        let n_new_up = state.instances.values().filter(|i| !i.outdated && i.is_active() && i.is_up()).count();
        let may_kill =
            rollout.n_kills_allowed(n_new_up.min(wanted)).saturating_sub(action.progress.killed.len());
        let victims = choose(state.instances.values().filter(|i| i.outdated), may_kill, state);
        for seq in victims {
            action.progress.killed.insert(seq);
            self.decommission(id, seq);
        }
        let Some(state) = self.apps.get(id) else { return true };
        let n_old = state.instances.values().filter(|i| i.outdated).count();
        let new_active = || state.instances.values().filter(|i| !i.outdated && i.is_active());
        let n_new = new_active().count();
        if n_new > wanted {
            for seq in choose(new_active(), n_new - wanted, state) {
                self.decommission(id, seq);
            }
            return false;
        }
        let n_start = rollout.n_to_start(wanted, n_old, n_new);
        for _ in 0..n_start {
            self.add_scheduled(id);
        }
        n_start == 0 && n_old == 0 && n_new == wanted && n_new_up == wanted
    }
}

/// The `n` active instances that go first.
fn choose<'a>(from: impl Iterator<Item = &'a Instance>, n: usize, state: &super::AppState) -> Vec<u64> {
    let mut candidates: Vec<&Instance> = from.filter(|i| i.is_active()).collect();
    candidates.sort_by(by_kill_order(state.app.kill_selection));
    candidates.into_iter().take(n).map(|i| i.seq).collect()
}
