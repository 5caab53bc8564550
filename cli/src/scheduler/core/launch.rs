//! Launching: the one agent's resources, what an instance waits for, and the queue's view of it.
//!
//! Not here: the process (`agent`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::instance::{Condition, Instance};
use super::{Core, Effect, InstanceFacts, earliest};
use crate::scheduler::agent::LaunchSpec;
use crate::scheduler::app::App;
use crate::scheduler::app::validate::Execution;
use crate::scheduler::core::environment::task_environment;
use crate::scheduler::id::AppId;
use crate::scheduler::timestamp::Timestamp;

/// Sums of fractions of a core are compared with this much slack.
const ROUNDING: f64 = 1e-6;

/// Why an instance did not fit, by Marathon's names, in the order in which offers are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    UnfulfilledRole,
    UnfulfilledConstraint,
    NoCorrespondingReservationFound,
    InsufficientCpus,
    InsufficientMemory,
    InsufficientDisk,
    InsufficientGpus,
    InsufficientPorts,
}

impl Lack {
    pub const ALL: [Lack; 8] = [
        Lack::UnfulfilledRole,
        Lack::UnfulfilledConstraint,
        Lack::NoCorrespondingReservationFound,
        Lack::InsufficientCpus,
        Lack::InsufficientMemory,
        Lack::InsufficientDisk,
        Lack::InsufficientGpus,
        Lack::InsufficientPorts,
    ];
}

/// How the waiting of an app's instances has gone; an attempt to place one counts as an offer.
#[derive(Clone, Debug, Default)]
pub struct WaitStats {
    pub since: Option<Timestamp>,
    pub n_attempts: u64,
    pub n_unused: u64,
    pub last_unused_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub n_declined: [u64; Lack::ALL.len()],
    pub last_lack: Option<Lack>,
}

impl Core {
    /// Launches every waiting instance that may start and fits. Returns when to try again because a back-off
    /// ends; what lacks resources is tried whenever something changes.
    pub(super) fn launch_waiting(&mut self, now: Instant) -> Option<Instant> {
        let mut wake = None;
        let waiting: Vec<AppId> = self.waiting.iter().cloned().collect();
        for id in waiting {
            while let Some(state) = self.apps.get(&id) {
                let Some(&seq) = state.scheduled.first() else {
                    self.waiting.remove(&id);
                    break;
                };
                if let Some(until) = state.backoff.and_then(|backoff| backoff.waits_until(now)) {
                    wake = earliest(wake, Some(until));
                    break;
                }
                if !self.try_launch(&id, seq) {
                    break;
                }
            }
        }
        wake
    }

    /// When the app's back-off ends, if it is in one.
    pub fn backoff_left(&self, id: &AppId, now: Instant) -> Option<Duration> {
        let until = self.apps.get(id)?.backoff?.waits_until(now)?;
        Some(until - now)
    }

    fn try_launch(&mut self, id: &AppId, seq: u64) -> bool {
        let at = Timestamp::now();
        let Some(app) = self.apps.get(id).and_then(|s| s.instances.get(&seq)).map(|i| i.app.clone()) else {
            return false;
        };
        let placed = self.place(&app);
        let Some(state) = self.apps.get_mut(id) else { return false };
        state.wait.n_attempts += 1;
        let ports = match placed {
            Err(lack) => {
                state.wait.n_unused += 1;
                state.wait.last_unused_at = Some(at);
                state.wait.n_declined[lack as usize] += 1;
                state.wait.last_lack = Some(lack);
                return false;
            }
            Ok(ports) => ports,
        };
        state.wait.last_used_at = Some(at);
        state.scheduled.remove(&seq);
        if state.scheduled.is_empty() {
            state.wait = Default::default();
        }
        let Some(instance) = state.instances.get_mut(&seq) else { return false };
        instance.condition = Condition::Provisioned;
        instance.staged_at = Some(at);
        instance.ports = ports;
        let facts = InstanceFacts::of(instance);
        let spec = launch_spec(instance, &self.settings);
        self.used_cpus += app.cpus;
        self.used_mem += app.mem;
        self.n_tasks += 1;
        self.touched.insert(id.clone());
        self.effects.push(Effect::Launch(Box::new(spec)));
        self.tell_instance(&facts, "Provisioned");
        true
    }

    /// Finds room for one more instance of `app`; takes its ports.
    fn place(&mut self, app: &App) -> Result<Vec<u16>, Lack> {
        if self.settings.execution == Execution::Processes && !self.constraints_hold(app) {
            return Err(Lack::UnfulfilledConstraint);
        }
        if self.used_cpus + app.cpus > self.settings.cpus + ROUNDING {
            return Err(Lack::InsufficientCpus);
        }
        if self.used_mem + app.mem > self.settings.mem + ROUNDING {
            return Err(Lack::InsufficientMemory);
        }
        if app.gpus > 0 {
            return Err(Lack::InsufficientGpus);
        }
        let ports = if app.require_ports {
            self.ports.take_exactly(&app.service_ports())
        } else {
            self.ports.take(app.port_definitions.len())
        };
        ports.ok_or(Lack::InsufficientPorts)
    }

    /// Constraints on the host name, of which there is one.
    fn constraints_hold(&self, app: &App) -> bool {
        let n_placed = self
            .apps
            .get(&app.id)
            .map_or(0, |s| s.instances.values().filter(|i| i.is_task() && i.is_active()).count());
        app.constraints.iter().all(|constraint| {
            let value = constraint.get(2).map(String::as_str);
            match constraint.get(1).map(String::as_str) {
                Some("UNIQUE") => n_placed == 0,
                Some("MAX_PER") => value.and_then(|v| v.parse().ok()).is_none_or(|max: usize| n_placed < max),
                Some("CLUSTER" | "IS") => value.is_none_or(|v| v.is_empty() || v == self.settings.host),
                _ => true,
            }
        })
    }

    /// Gives back what an ended task held.
    pub(super) fn release(&mut self, app: &App, ports: &[u16]) {
        self.ports.give_back(ports);
        self.n_tasks -= 1;
        if self.n_tasks == 0 {
            // Fractions added and subtracted many times drift; an empty agent is exactly empty.
            (self.used_cpus, self.used_mem) = (0.0, 0.0);
        } else {
            self.used_cpus = (self.used_cpus - app.cpus).max(0.0);
            self.used_mem = (self.used_mem - app.mem).max(0.0);
        }
    }

    pub(super) fn add_scheduled(&mut self, id: &AppId) -> Option<u64> {
        let state = self.apps.get_mut(id)?;
        let seq = self.next_seq;
        self.next_seq += 1;
        let instance_id = crate::scheduler::id::InstanceId::fresh(id, &self.node);
        let instance = Instance::new(instance_id, seq, Arc::clone(&state.app));
        let facts = InstanceFacts::of(&instance);
        state.instances.insert(seq, instance);
        state.scheduled.insert(seq);
        state.wait.since.get_or_insert_with(Timestamp::now);
        self.waiting.insert(id.clone());
        self.tell_instance(&facts, "Scheduled");
        Some(seq)
    }
}

fn launch_spec(instance: &Instance, settings: &super::Settings) -> LaunchSpec {
    let task_id = instance.task_id();
    let sandbox = settings.sandboxes.join(&task_id);
    LaunchSpec {
        task: instance.task_ref(),
        env: task_environment(&instance.app, &task_id, &settings.host, &instance.ports, &sandbox),
        sandbox,
        host: settings.host.clone(),
        ports: instance.ports.clone(),
        app: instance.app.clone(),
    }
}
