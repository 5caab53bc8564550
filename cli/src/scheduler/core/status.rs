//! What the agent reports about tasks and their checks, and the ends of instances.
//!
//! Not here: what follows for deployments (`drive`).

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::instance::{Condition, End, Goal, Instance, Readiness, Recorded, TaskRef};
use super::{Core, Effect, InstanceFacts, TaskFailure};
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// One report of the agent. Each launched task has exactly one `Ended`, its last.
#[derive(Debug)]
pub enum Report {
    Starting(TaskRef),
    /// The address is that of a container on a network of its engine.
    Running {
        task: TaskRef,
        address: Option<IpAddr>,
    },
    Ended {
        task: TaskRef,
        failed: bool,
        message: String,
    },
    Checked {
        task: TaskRef,
        check: usize,
        result: Result<(), String>,
    },
    Readiness {
        task: TaskRef,
        readiness: Readiness,
    },
}

impl Core {
    pub fn report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Starting(task) => self.moved_on(&task, Condition::Starting, now),
            Report::Running { task, address } => {
                if let Some(instance) = self.attempt(&task)
                    && address.is_some()
                {
                    instance.address = address;
                }
                self.moved_on(&task, Condition::Running, now);
            }
            Report::Ended { task, failed, message } => self.ended(&task, failed, &message, now),
            Report::Checked { task, check, result } => self.checked(&task, check, result, now),
            Report::Readiness { task, readiness } => {
                if let Some(instance) = self.running(&task) {
                    instance.readiness = readiness;
                    self.touched.insert(task.app);
                }
            }
        }
    }

    fn attempt(&mut self, task: &TaskRef) -> Option<&mut Instance> {
        let instance = self.apps.get_mut(&task.app)?.instances.get_mut(&task.seq)?;
        (instance.attempt == task.attempt && instance.is_task()).then_some(instance)
    }

    fn running(&mut self, task: &TaskRef) -> Option<&mut Instance> {
        self.attempt(task).filter(|instance| instance.condition == Condition::Running)
    }

    fn moved_on(&mut self, task: &TaskRef, condition: Condition, now: Instant) {
        // A task that is already being killed stays so.
        let Some(instance) = self.attempt(task).filter(|i| i.condition < condition) else { return };
        instance.condition = condition;
        if condition == Condition::Running {
            instance.started_at = Some(Timestamp::now());
            instance.running_since = Some(now);
        }
        let facts = InstanceFacts::of(instance);
        self.touched.insert(task.app.clone());
        self.tell_status(&facts, condition.task_state(), "");
        self.tell_instance(&facts, condition.as_str());
    }

    fn ended(&mut self, task: &TaskRef, failed: bool, message: &str, now: Instant) {
        let Some(instance) = self.attempt(task) else { return };
        let end = match (instance.condition, failed) {
            (Condition::Killing, _) => End::Killed,
            (_, true) => End::Failed,
            (_, false) => End::Finished,
        };
        let facts = InstanceFacts::of(instance);
        let (app, goal, outdated) = (instance.app.clone(), instance.goal, instance.outdated);
        let started_at = instance.started_at.or(instance.staged_at);
        let Some(state) = self.apps.get_mut(&task.app) else { return };
        if end != End::Killed {
            state.backoff = Some(Backoff::after_failure(state.backoff, &app, now));
        }
        if end == End::Failed {
            state.last_failure = Some(TaskFailure {
                instance: facts.id.clone(),
                task_ids: facts.task_ids.clone(),
                started_at,
                state: end.task_state(),
                message: message.to_owned(),
                at: Timestamp::now(),
                version: app.version,
            });
        }
        // An instance of an earlier configuration is replaced, not repeated.
        let repeats = goal == Goal::Run
            && !outdated
            && !state.removed
            && !self.stopping
            && app.version >= state.app.version_info.last_config_change_at;
        if repeats {
            let current = state.app.clone();
            if let Some(instance) = state.instances.get_mut(&task.seq) {
                instance.reschedule(current);
            }
            state.scheduled.insert(task.seq);
            state.wait.since.get_or_insert_with(Timestamp::now);
            self.waiting.insert(task.app.clone());
        } else {
            state.instances.remove(&task.seq);
        }
        self.release(&app, &facts.ports, facts.address);
        for task_id in &facts.task_ids {
            self.remember_sandbox(&task.app, task_id.clone());
        }
        self.touched.insert(task.app.clone());
        self.tell_status(&facts, end.task_state(), message);
        self.tell_instance(&facts, end.condition());
        if repeats {
            self.tell_instance(&facts, "Scheduled");
        }
        if goal == Goal::Expunge {
            // Marathon forgets a wiped instance at once, and is then told of the end of one that it does not know.
            self.hub.publish(
                "unknown_instance_terminated_event",
                || json!({"instanceId": facts.id, "runSpecId": facts.app, "condition": end.condition()}),
            );
        }
    }

    fn checked(&mut self, task: &TaskRef, index: usize, result: Result<(), String>, now: Instant) {
        let cause = result.as_ref().err().cloned();
        let Some(instance) = self.running(task) else { return };
        let recorded = instance.record_check(index, result, now);
        if recorded == Recorded::Ignored {
            return;
        }
        let healthy = instance.healthy();
        let told = std::mem::replace(&mut instance.told_healthy, healthy);
        let facts = InstanceFacts::of(instance);
        let check = instance.app.health_checks[index].clone();
        self.touched.insert(task.app.clone());
        let (flipped, alive) = match recorded {
            Recorded::Alive { flipped } => (flipped, true),
            Recorded::Failed { flipped, .. } => (flipped, false),
            Recorded::Ignored => return,
        };
        if !alive && check.is_marathon_level() {
            self.hub.publish(
                "failed_health_check_event",
                || json!({"appId": facts.app, "healthCheck": check, "taskId": facts.id}),
            );
        }
        if flipped && check.is_marathon_level() {
            self.hub.publish(
                "health_status_changed_event",
                || json!({"appId": facts.app, "instanceId": facts.id, "version": facts.version, "alive": alive}),
            );
        } else if flipped {
            // Mesos repeats the task status when only the health of a check next to the task changes.
            self.tell_status(&facts, "TASK_RUNNING", "");
        }
        if told != healthy {
            self.hub.publish("instance_health_changed_event", || {
                json!({"instanceId": facts.id, "runSpecId": facts.app, "healthy": healthy,
                    "runSpecVersion": facts.version})
            });
        }
        if matches!(recorded, Recorded::Failed { exhausted: true, .. }) {
            if check.is_marathon_level() {
                self.hub.publish("unhealthy_instance_kill_event", || {
                    json!({"appId": facts.app, "taskId": facts.task_ids.first(), "instanceId": facts.id,
                        "version": facts.version, "reason": cause, "host": self.settings.host,
                        "slaveId": self.agent_id})
                });
            }
            self.kill_task(&task.app, task.seq);
        }
    }

    /// Ends the instance for good.
    pub(super) fn decommission(&mut self, id: &AppId, seq: u64) {
        let Some(state) = self.apps.get_mut(id) else { return };
        let Some(instance) = state.instances.get_mut(&seq) else { return };
        instance.goal = Goal::Decommission;
        if instance.is_task() {
            self.kill_task(id, seq);
            return;
        }
        let facts = InstanceFacts::of(instance);
        state.instances.remove(&seq);
        state.scheduled.remove(&seq);
        self.touched.insert(id.clone());
        self.tell_instance(&facts, "Killed");
    }

    /// Ends the instance's task; what follows depends on its goal.
    pub(super) fn kill_task(&mut self, id: &AppId, seq: u64) {
        let Some(instance) = self.apps.get_mut(id).and_then(|s| s.instances.get_mut(&seq)) else { return };
        if !instance.is_task() || instance.condition == Condition::Killing {
            return;
        }
        instance.condition = Condition::Killing;
        let facts = InstanceFacts::of(instance);
        let grace = instance.app.task_kill_grace_period_seconds;
        let grace = grace.map_or(self.settings.kill_grace, |secs| Duration::from_secs(secs.into()));
        let task = instance.task_ref();
        self.touched.insert(id.clone());
        // The events go out before the agent hears of it: who routes traffic gets ahead of the signal.
        self.tell_status(&facts, "TASK_KILLING", "");
        self.tell_instance(&facts, "Killing");
        self.effects.push(Effect::Kill { task, grace });
    }
}
