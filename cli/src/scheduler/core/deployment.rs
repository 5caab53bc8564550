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
    pub subject: Subject,
    pub app: AppId,
    pub progress: Progress,
}

/// What an action is about; only its name and where its id stands depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    App,
    Pod,
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

/// Marathon's names, for apps and for pods.
const NAMES: [(ActionKind, &str, &str); 4] = [
    (ActionKind::Start, "StartApplication", "StartPod"),
    (ActionKind::Scale, "ScaleApplication", "ScalePod"),
    (ActionKind::Restart(Replace::All), "RestartApplication", "RestartPod"),
    (ActionKind::Stop, "StopApplication", "StopPod"),
];

/// The opposite of [`Action::name`].
pub fn read_name(name: &str) -> Option<(ActionKind, Subject)> {
    NAMES.iter().find_map(|(kind, app, pod)| match name {
        name if name == *app => Some((*kind, Subject::App)),
        name if name == *pod => Some((*kind, Subject::Pod)),
        _ => None,
    })
}

impl Action {
    pub fn new(kind: ActionKind, subject: Subject, app: AppId) -> Self {
        Self { kind, subject, app, progress: Progress::default() }
    }

    pub fn name(&self) -> &'static str {
        let kind = match self.kind {
            ActionKind::Restart(_) => ActionKind::Restart(Replace::All),
            kind => kind,
        };
        let names = NAMES.iter().find(|(of, _, _)| *of == kind).expect("every kind has its names");
        if self.subject == Subject::App { names.1 } else { names.2 }
    }

    /// As the plan shows it.
    pub fn json(&self) -> Value {
        match self.subject {
            Subject::App => json!({"action": self.name(), "app": self.app}),
            Subject::Pod => json!({"action": self.name(), "pod": self.app}),
        }
    }
}

/// One app's part of a change, as the planner needs it.
#[derive(Debug)]
pub struct Planned {
    pub app: AppId,
    pub subject: Subject,
    pub is_new: bool,
    /// `None`: nothing to do for its instances.
    pub kind: Option<ActionKind>,
    /// Length of the longest chain of dependencies below it.
    pub depth: usize,
}

/// Orders the work: removals, then the (empty) starts of new apps, then the rest with dependencies first.
pub fn plan_steps(planned: &[Planned]) -> Vec<Step> {
    let action = |kind: ActionKind, p: &Planned| Action::new(kind, p.subject, p.app.clone());
    let stops = planned.iter().filter(|p| p.kind == Some(ActionKind::Stop));
    let stops: Vec<Action> = stops.map(|p| action(ActionKind::Stop, p)).collect();
    let starts = planned.iter().filter(|p| p.is_new);
    let starts: Vec<Action> = starts.map(|p| action(ActionKind::Start, p)).collect();
    let mut levels: BTreeMap<usize, Vec<Action>> = BTreeMap::new();
    for p in planned {
        if let Some(kind) = p.kind.filter(|kind| *kind != ActionKind::Stop) {
            levels.entry(p.depth).or_default().push(action(kind, p));
        }
    }
    let steps = [stops, starts].into_iter().chain(levels.into_values());
    steps.filter(|actions| !actions.is_empty()).map(|actions| Step { actions }).collect()
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
        let actions: Vec<Value> = self.actions.iter().map(Action::json).collect();
        json!({"actions": actions})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(app: &str, is_new: bool, kind: ActionKind, depth: usize) -> Planned {
        let app = AppId::parse(app).expect("valid");
        Planned { app, subject: Subject::App, is_new, kind: Some(kind), depth }
    }

    #[test]
    fn steps_follow_dependencies() {
        let steps = plan_steps(&[
            planned("/web", true, ActionKind::Scale, 2),
            planned("/db/main", false, ActionKind::Restart(Replace::All), 0),
            planned("/cache", true, ActionKind::Scale, 1),
            planned("/old", false, ActionKind::Stop, 0),
        ]);
        let text: Vec<Vec<String>> = steps
            .iter()
            .map(|step| step.actions.iter().map(|a| format!("{} {}", a.name(), a.app)).collect())
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
    fn names_are_read_again() {
        for subject in [Subject::App, Subject::Pod] {
            for (kind, _, _) in NAMES {
                let action = Action::new(kind, subject, AppId::parse("/a").expect("valid"));
                assert_eq!(read_name(action.name()), Some((kind, subject)));
            }
        }
        assert_eq!(read_name("DanceApplication"), None);
    }
}
