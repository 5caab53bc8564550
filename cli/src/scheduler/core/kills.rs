//! Kills that clients ask for, and the end of a back-off.
//!
//! Not here: how a kill goes on (`status`).

use std::collections::BTreeMap;

use super::instance::Goal;
use super::operations::{Accepted, Change, Conflict, Request};
use super::{Core, Refusal};
use crate::scheduler::app::App;
use crate::scheduler::id::{AppId, split_task_id};

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

impl Core {
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
                        KillMode::Wipe => self.expunge(&app, seq),
                        _ => self.kill_task(&app, seq),
                    }
                }
            }
            return Ok(None);
        }
        let mut changes = Vec::new();
        for (id, seqs) in &found {
            let Some(state) = self.run_spec(id) else { continue };
            let n_active =
                seqs.iter().filter(|seq| state.instances.get(seq).is_some_and(|i| i.is_active())).count();
            let mut app = App::clone(&state.app);
            app.instances = app.instances.saturating_sub(n_active as u32);
            changes.push(Change::Define(Box::new(app)));
        }
        let accepted = self.apply(Request { changes, conflict, ..Request::default() })?;
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

    fn expunge(&mut self, id: &AppId, seq: u64) {
        self.decommission(id, seq);
        if let Some(instance) = self.apps.get_mut(id).and_then(|state| state.instances.get_mut(&seq)) {
            instance.goal = Goal::Expunge;
        }
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
