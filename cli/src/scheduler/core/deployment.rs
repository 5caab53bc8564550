//! Deployments: the plan that leads from one set of definitions to the next, and how Marathon writes it.
//!
//! Not here: carrying a plan out (`drive`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::rollout::Rollout;
use crate::scheduler::app::App;
use crate::scheduler::events::PlanFormat;
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

#[derive(Debug)]
pub struct Deployment {
    pub id: String,
    pub version: Timestamp,
    pub steps: Vec<Step>,
    /// Index of the step under way; `None` before the first one.
    pub current: Option<usize>,
    /// The definitions before, of the touched apps that existed.
    pub original: BTreeMap<AppId, Arc<App>>,
    pub affected: BTreeSet<AppId>,
}

#[derive(Debug)]
pub struct Step {
    pub actions: Vec<Action>,
}

#[derive(Debug)]
pub struct Action {
    pub kind: ActionKind,
    pub app: AppId,
    pub progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    Start,
    Scale,
    Restart(Replace),
    Stop,
}

/// Which instances a restart replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    All,
    /// Those that an earlier, cancelled upgrade left behind.
    Outdated,
}

#[derive(Debug, Default)]
pub struct Progress {
    /// Instances this action started; it ends when they are up.
    pub started: BTreeSet<u64>,
    /// Instances this action ended; it ends when they are gone.
    pub killed: BTreeSet<u64>,
    pub rollout: Option<Rollout>,
}

impl ActionKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ActionKind::Start => "StartApplication",
            ActionKind::Scale => "ScaleApplication",
            ActionKind::Restart(_) => "RestartApplication",
            ActionKind::Stop => "StopApplication",
        }
    }
}

/// One app's part of a change, as the planner needs it.
#[derive(Debug)]
pub struct Planned {
    pub app: AppId,
    pub is_new: bool,
    /// `None`: nothing to do for its instances.
    pub kind: Option<ActionKind>,
    pub dependencies: Vec<AppId>,
}

/// Orders the work: removals, then the (empty) starts of new apps, then the rest with dependencies first.
pub fn plan_steps(planned: &[Planned]) -> Vec<Step> {
    let action =
        |kind: ActionKind, app: &AppId| Action { kind, app: app.clone(), progress: Progress::default() };
    let stops: Vec<Action> = planned
        .iter()
        .filter(|p| p.kind == Some(ActionKind::Stop))
        .map(|p| action(ActionKind::Stop, &p.app))
        .collect();
    let starts: Vec<Action> =
        planned.iter().filter(|p| p.is_new).map(|p| action(ActionKind::Start, &p.app)).collect();
    let mut levels: BTreeMap<usize, Vec<Action>> = BTreeMap::new();
    let known: BTreeMap<&AppId, &Planned> = planned.iter().map(|p| (&p.app, p)).collect();
    for p in planned {
        if let Some(kind) = p.kind.filter(|kind| *kind != ActionKind::Stop) {
            levels.entry(depth(p, &known, known.len())).or_default().push(action(kind, &p.app));
        }
    }
    let steps = [stops, starts].into_iter().chain(levels.into_values());
    steps.filter(|actions| !actions.is_empty()).map(|actions| Step { actions }).collect()
}

/// Length of the longest chain of dependencies within the plan; `limit` ends circles.
fn depth(planned: &Planned, known: &BTreeMap<&AppId, &Planned>, limit: usize) -> usize {
    if limit == 0 {
        return 0;
    }
    let below = planned.dependencies.iter().flat_map(|dependency| {
        // A dependency may name a group: then every app in it comes first.
        known.values().filter(move |p| p.app == *dependency || p.app.is_inside(dependency.as_str()))
    });
    below.filter(|p| p.app != planned.app).map(|p| 1 + depth(p, known, limit - 1)).max().unwrap_or(0)
}

impl Deployment {
    /// The plan as events carry it.
    pub fn plan_json(&self, format: PlanFormat) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(Step::json).collect();
        let mut plan = json!({"id": self.id, "steps": steps, "version": self.version});
        if format == PlanFormat::Heavy {
            // Clients only look at whether these are groups; the definitions themselves they fetch.
            let group = |version| json!({"id": "/", "apps": [], "groups": [], "pods": [], "dependencies": [], "version": version});
            plan["original"] = group(self.version);
            plan["target"] = group(self.version);
        }
        plan
    }

    pub fn current_step(&self) -> Option<&Step> {
        self.steps.get(self.current?)
    }

    /// 1-based, as the API shows it.
    pub fn current_number(&self) -> usize {
        self.current.map_or(1, |index| index + 1).min(self.steps.len().max(1))
    }
}

impl Step {
    pub fn json(&self) -> Value {
        let actions: Vec<Value> =
            self.actions.iter().map(|a| json!({"action": a.kind.as_str(), "app": a.app})).collect();
        json!({"actions": actions})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(app: &str, is_new: bool, kind: ActionKind, dependencies: &[&str]) -> Planned {
        let id = |text: &str| AppId::parse(text).expect("valid");
        let dependencies = dependencies.iter().map(|d| id(d)).collect();
        Planned { app: id(app), is_new, kind: Some(kind), dependencies }
    }

    #[test]
    fn steps_follow_dependencies() {
        let steps = plan_steps(&[
            planned("/web", true, ActionKind::Scale, &["/db", "/cache"]),
            planned("/db/main", false, ActionKind::Restart(Replace::All), &[]),
            planned("/cache", true, ActionKind::Scale, &["/db/main"]),
            planned("/old", false, ActionKind::Stop, &[]),
        ]);
        let text: Vec<Vec<String>> = steps
            .iter()
            .map(|step| step.actions.iter().map(|a| format!("{} {}", a.kind.as_str(), a.app)).collect())
            .collect();
        assert_eq!(
            text,
            [
                vec!["StopApplication /old"],
                vec!["StartApplication /web", "StartApplication /cache"],
                vec!["RestartApplication /db/main"],
                vec!["ScaleApplication /cache"],
                vec!["ScaleApplication /web"],
            ]
        );
    }

    #[test]
    fn circles_end() {
        let steps = plan_steps(&[
            planned("/a", false, ActionKind::Scale, &["/b"]),
            planned("/b", false, ActionKind::Scale, &["/a"]),
        ]);
        assert_eq!(steps.iter().map(|s| s.actions.len()).sum::<usize>(), 2);
    }
}
