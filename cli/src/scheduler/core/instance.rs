//! One instance of an app: where it stands in its life, and what its checks say.
//!
//! Not here: when it moves on (`core`), nor the process behind it (`agent`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::scheduler::app::{App, KillSelection};
use crate::scheduler::id::{AppId, InstanceId};
use crate::scheduler::timestamp::Timestamp;

/// Names one attempt to run one instance, between core and agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskRef {
    pub app: AppId,
    pub seq: u64,
    pub attempt: u32,
}

/// How task ids of apps spell their only container.
pub const APP_CONTAINER: &str = "_app";

/// Marathon's conditions; the order is the order in which instances are given up when scaling down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Waits for resources or for the end of a back-off.
    Scheduled,
    /// Has its resources; the agent has been told.
    Provisioned,
    /// The agent is about to run the command.
    Starting,
    Running,
    Killing,
}

impl Condition {
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Scheduled => "Scheduled",
            Condition::Provisioned => "Provisioned",
            Condition::Starting => "Starting",
            Condition::Running => "Running",
            Condition::Killing => "Killing",
        }
    }

    pub fn task_state(self) -> &'static str {
        match self {
            Condition::Scheduled | Condition::Provisioned => "TASK_STAGING",
            Condition::Starting => "TASK_STARTING",
            Condition::Running => "TASK_RUNNING",
            Condition::Killing => "TASK_KILLING",
        }
    }
}

/// What should become of the instance when its task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    Run,
    Decommission,
    /// As `Decommission`, and nobody wants to know of it any more.
    Expunge,
}

/// How a task ended, with Mesos' message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    Failed,
    Killed,
}

impl End {
    pub fn condition(self) -> &'static str {
        match self {
            End::Finished => "Finished",
            End::Failed => "Failed",
            End::Killed => "Killed",
        }
    }

    pub fn task_state(self) -> &'static str {
        match self {
            End::Finished => "TASK_FINISHED",
            End::Failed => "TASK_FAILED",
            End::Killed => "TASK_KILLED",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    pub alive: bool,
    pub consecutive_failures: u32,
    pub first_success: Option<Timestamp>,
    pub last_success: Option<Timestamp>,
    pub last_failure: Option<Timestamp>,
    pub last_failure_cause: Option<String>,
}

/// The answer of a readiness check, kept while it is not ready.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessResponse {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pub ready: bool,
    pub last_response: Option<ReadinessResponse>,
}

#[derive(Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub seq: u64,
    pub attempt: u32,
    /// The definition it runs, or will run.
    pub app: Arc<App>,
    pub goal: Goal,
    pub condition: Condition,
    /// An upgrade replaces it; it is not started again when it ends.
    pub outdated: bool,
    pub ports: Vec<u16>,
    /// Its own address, on a network that is not the host's.
    pub address: Option<IpAddr>,
    pub staged_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub running_since: Option<Instant>,
    /// One per health check of `app`; `None` before its first counted result.
    pub checks: Vec<Option<CheckResult>>,
    pub readiness: Readiness,
    /// The verdict last told to the event stream.
    pub told_healthy: Option<bool>,
}

impl Instance {
    pub fn new(id: InstanceId, seq: u64, app: Arc<App>) -> Self {
        let checks = vec![None; app.health_checks.len()];
        Self {
            id,
            seq,
            attempt: 1,
            app,
            goal: Goal::Run,
            condition: Condition::Scheduled,
            outdated: false,
            ports: Vec::new(),
            address: None,
            staged_at: None,
            started_at: None,
            running_since: None,
            checks,
            readiness: Readiness::default(),
            told_healthy: None,
        }
    }

    /// Back to waiting, as the next attempt of the same instance.
    pub fn reschedule(&mut self, app: Arc<App>) {
        let fresh = Instance::new(self.id.clone(), self.seq, app);
        *self = Instance { attempt: self.attempt + 1, ..fresh };
    }

    /// The id of its task; of a pod's instance, that of the first container.
    pub fn task_id(&self) -> String {
        let first = self.app.pod.as_ref().and_then(|pod| pod.containers.first());
        self.id.task_id(first.map_or(APP_CONTAINER, |container| &container.name), self.attempt)
    }

    /// The ids of all its tasks: one for each container of a pod.
    pub fn task_ids(&self) -> Vec<String> {
        match &self.app.pod {
            None => vec![self.task_id()],
            Some(pod) => pod.containers.iter().map(|c| self.id.task_id(&c.name, self.attempt)).collect(),
        }
    }

    pub fn has_task(&self, task_id: &str) -> bool {
        // Cheaper than writing the ids of instances that are somebody else's.
        task_id.starts_with(self.id.as_str()) && self.task_ids().iter().any(|id| id == task_id)
    }

    pub fn task_ref(&self) -> TaskRef {
        TaskRef { app: self.app.id.clone(), seq: self.seq, attempt: self.attempt }
    }

    pub fn is_active(&self) -> bool {
        self.goal == Goal::Run
    }

    /// Whether it holds resources and shows up as a task.
    pub fn is_task(&self) -> bool {
        self.condition != Condition::Scheduled
    }

    /// `None` while any check has no verdict, and when there are no checks.
    pub fn healthy(&self) -> Option<bool> {
        if self.checks.is_empty() {
            return None;
        }
        let mut all = true;
        for check in &self.checks {
            all &= check.as_ref()?.alive;
        }
        Some(all)
    }

    /// Running, and healthy and ready as far as anybody asks for that.
    pub fn is_up(&self) -> bool {
        self.condition == Condition::Running
            && (self.checks.is_empty() || self.healthy() == Some(true))
            && (self.app.readiness_check().is_none() || self.readiness.ready)
    }

    /// Takes in one result of check `index`.
    pub fn record_check(&mut self, index: usize, result: Result<(), String>, now: Instant) -> Recorded {
        let Some(check) = self.app.health_checks.get(index) else { return Recorded::Ignored };
        let grace = Duration::from_secs(check.grace_period_seconds.into());
        let in_grace = self.running_since.is_some_and(|since| now < since + grace);
        let known = self.checks[index].as_ref();
        if result.is_err() && in_grace && known.is_none_or(|known| known.first_success.is_none()) {
            return Recorded::Ignored;
        }
        let was_alive = known.map(|known| known.alive);
        let state = self.checks[index].get_or_insert_default();
        let at = Timestamp::now();
        state.alive = result.is_ok();
        match result {
            Ok(()) => {
                state.consecutive_failures = 0;
                state.first_success.get_or_insert(at);
                state.last_success = Some(at);
                Recorded::Alive { flipped: was_alive != Some(true) }
            }
            Err(cause) => {
                state.consecutive_failures += 1;
                state.last_failure = Some(at);
                state.last_failure_cause = Some(cause);
                let exhausted = check.kill_at().is_some_and(|at| state.consecutive_failures >= at);
                Recorded::Failed { flipped: was_alive != Some(false), exhausted }
            }
        }
    }
}

/// What a check result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// A failure within the grace period, or a check that is no longer there.
    Ignored,
    Alive {
        flipped: bool,
    },
    Failed {
        flipped: bool,
        exhausted: bool,
    },
}

/// Orders instances by who goes first when some must go (spec 6.5): unhealthy ones, then the least started,
/// then by age as the app wants it.
pub fn by_kill_order(selection: KillSelection) -> impl Fn(&&Instance, &&Instance) -> std::cmp::Ordering {
    move |a, b| {
        let rank = |i: &Instance| (i.condition, i.healthy() != Some(false));
        rank(a).cmp(&rank(b)).then_with(|| match selection {
            KillSelection::YoungestFirst => (b.started_at, b.seq).cmp(&(a.started_at, a.seq)),
            KillSelection::OldestFirst => (a.started_at, a.seq).cmp(&(b.started_at, b.seq)),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::app::input::read_app;

    fn instance(seq: u64, checks: serde_json::Value) -> Instance {
        let id = AppId::parse("/a").expect("valid");
        let update = read_app(&json!({"cmd": "x", "healthChecks": checks}), "").expect("readable");
        let app = update.apply(&App::with_defaults(id.clone(), Timestamp::now())).expect("readable");
        let mut instance = Instance::new(InstanceId::fresh(&id, &[0; 6]), seq, Arc::new(app));
        instance.condition = Condition::Running;
        instance.running_since = Some(Instant::now());
        instance
    }

    #[test]
    fn failures_in_the_grace_period_do_not_count_until_the_first_success() {
        let mut one = instance(1, json!([{"gracePeriodSeconds": 60, "maxConsecutiveFailures": 1}]));
        let now = Instant::now();
        let failure = || Err("503 Service Unavailable".to_owned());
        assert_eq!(one.record_check(0, failure(), now), Recorded::Ignored);
        assert_eq!(one.healthy(), None);
        assert_eq!(one.record_check(0, Ok(()), now), Recorded::Alive { flipped: true });
        assert!(one.is_up());
        assert_eq!(one.record_check(0, failure(), now), Recorded::Failed { flipped: true, exhausted: false });
        assert!(!one.is_up());
        // The kill comes with failure max + 1.
        assert_eq!(one.record_check(0, failure(), now), Recorded::Failed { flipped: false, exhausted: true });
    }

    #[test]
    fn zero_failures_allowed_means_never_for_marathon_and_at_once_for_the_executor() {
        for (protocol, exhausted) in [("HTTP", false), ("MESOS_HTTP", true)] {
            let checks =
                json!([{"protocol": protocol, "gracePeriodSeconds": 0, "maxConsecutiveFailures": 0}]);
            let mut one = instance(1, checks);
            let recorded = one.record_check(0, Err(String::new()), Instant::now());
            assert_eq!(recorded, Recorded::Failed { flipped: true, exhausted }, "{protocol}");
        }
    }

    #[test]
    fn unhealthy_and_unstarted_go_first_then_age() {
        let mut all: Vec<Instance> =
            (0..5).map(|seq| instance(seq, json!([{"gracePeriodSeconds": 0}]))).collect();
        all[0].condition = Condition::Scheduled;
        for (index, result) in [(1, Ok(())), (2, Err("x".to_owned())), (3, Ok(())), (4, Ok(()))] {
            all[index].record_check(0, result, Instant::now());
        }
        for (selection, expect) in
            [(KillSelection::YoungestFirst, [0, 2, 4, 3, 1]), (KillSelection::OldestFirst, [0, 2, 1, 3, 4])]
        {
            let mut order: Vec<&Instance> = all.iter().collect();
            order.sort_by(by_kill_order(selection));
            assert_eq!(order.iter().map(|i| i.seq).collect::<Vec<_>>(), expect);
        }
    }
}
