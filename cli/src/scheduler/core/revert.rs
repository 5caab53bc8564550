//! Ends of deployments that clients ask for: stopping one where it is, and leading back to what was before it.
//!
//! Not here: how a deployment ends by itself (`drive`).

use std::collections::BTreeSet;

use serde_json::json;

use super::deployment::Deployment;
use super::operations::{Accepted, Change, Conflict, GroupChange, Request};
use super::record::end_line;
use super::{Core, Effect, Refusal};
use crate::scheduler::app::App;
use crate::scheduler::id::AppId;

const CANCELLED: &str = "The upgrade has been cancelled";

impl Core {
    /// Stops a deployment where it is. False: there is none of that id.
    pub fn stop_deployment(&mut self, id: &str) -> bool {
        let found = self.cancel_deployment(id);
        if found {
            self.effects.push(Effect::Store(end_line(id)));
        }
        found
    }

    pub(super) fn cancel_deployment(&mut self, id: &str) -> bool {
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

    /// Replaces a deployment by one that leads back to the definitions and groups before it.
    pub fn revert_deployment(&mut self, id: &str) -> Result<Accepted, Refusal> {
        let unknown = || Refusal::UnknownDeployment(id.to_owned());
        let deployment = self.deployments.iter().find(|d| d.id == id).ok_or_else(unknown)?;
        let changes: Vec<Change> = deployment
            .affected
            .iter()
            .filter_map(|app| match deployment.original.get(app) {
                Some(before) => Some(Change::Define(Box::new(App::clone(before)))),
                None => self.run_spec(app).map(|_| Change::Remove(app.clone())),
            })
            .collect();
        let groups = self.groups_before(deployment, &changes);
        self.apply(Request { changes, groups, conflict: Conflict::Override, ..Request::default() })
    }

    /// What takes back the deployment's changes of groups, once `changes` have taken back those of apps. A group
    /// that it made stays while something else is in it.
    fn groups_before(&self, deployment: &Deployment, changes: &[Change]) -> Vec<GroupChange> {
        let Some(made) = self.history.changes().find(|change| change.version == deployment.version) else {
            return Vec::new();
        };
        let mut left: BTreeSet<&AppId> = self.run_specs().map(|state| &state.app.id).collect();
        left.extend(self.groups.keys());
        for change in changes {
            match change {
                Change::Define(app) => left.insert(&app.id),
                Change::Remove(id) => left.remove(id),
                Change::Restart(_) => false,
            };
        }
        let mut back = Vec::new();
        // Inner groups come behind those around them in the order of ids, and have to go first.
        for (id, before) in made.groups.iter().rev() {
            let now = self.groups.get(id);
            match before {
                Some(group) if now.is_none_or(|now| now.dependencies != group.dependencies) => {
                    let dependencies = group.dependencies.clone();
                    back.push(GroupChange::Define { id: id.clone(), dependencies });
                }
                None if now.is_some()
                    && !id.is_root()
                    && !left.iter().any(|other| other.is_inside(id.as_str())) =>
                {
                    left.remove(id);
                    back.push(GroupChange::Remove(id.clone()));
                }
                _ => {}
            }
        }
        back
    }
}
