//! Counts and ages of an app's tasks: `tasksRunning` and its like, and `taskStats`.
//!
//! Not here: counts over all apps (`api::metrics`).

use serde_json::{Value, json};

use super::AppState;
use super::instance::{Condition, Instance};
use crate::scheduler::timestamp::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    pub staged: u32,
    pub running: u32,
    pub healthy: u32,
    pub unhealthy: u32,
}

impl TaskCounts {
    pub fn of<'a>(instances: impl Iterator<Item = &'a Instance>) -> Self {
        let mut counts = Self::default();
        for instance in instances.filter(|i| i.is_task()) {
            match instance.condition {
                Condition::Running | Condition::Killing => counts.running += 1,
                _ => counts.staged += 1,
            }
            match instance.healthy().filter(|_| instance.condition == Condition::Running) {
                Some(true) => counts.healthy += 1,
                Some(false) => counts.unhealthy += 1,
                None => {}
            }
        }
        counts
    }
}

/// Marathon's four summaries; one over no task at all is left out.
pub fn task_stats(state: &AppState, now: Timestamp) -> Value {
    let info = state.app.version_info;
    let mut stats = json!({});
    let mut add = |name: &str, belongs: &dyn Fn(&Instance) -> bool| {
        let tasks: Vec<&Instance> = state.instances.values().filter(|i| i.is_task() && belongs(i)).collect();
        if !tasks.is_empty() {
            stats[name] = summary(&tasks, now);
        }
    };
    add("startedAfterLastScaling", &|i| i.app.version >= info.last_scaling_at);
    add("withLatestConfig", &|i| i.app.version >= info.last_config_change_at);
    add("withOutdatedConfig", &|i| i.app.version < info.last_config_change_at);
    add("totalSummary", &|_| true);
    stats
}

fn summary(tasks: &[&Instance], now: Timestamp) -> Value {
    let counts = TaskCounts::of(tasks.iter().copied());
    let mut summary = json!({"counts": {"staged": counts.staged, "running": counts.running,
        "healthy": counts.healthy, "unhealthy": counts.unhealthy}});
    let mut ages: Vec<f64> =
        tasks.iter().filter_map(|i| i.started_at).map(|at| now.seconds_since(at)).collect();
    if !ages.is_empty() {
        ages.sort_by(f64::total_cmp);
        let middle = ages.len() / 2;
        let median = if ages.len() % 2 == 1 { ages[middle] } else { (ages[middle - 1] + ages[middle]) / 2.0 };
        let average = ages.iter().sum::<f64>() / ages.len() as f64;
        summary["lifeTime"] = json!({"averageSeconds": average, "medianSeconds": median});
    }
    json!({"stats": summary})
}
