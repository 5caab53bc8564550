//! Launching: where an instance finds room, what it waits for, and the queue's view of it.
//!
//! Not here: the process (`agent`).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::constraint::Constraint;
use super::instance::{Condition, Instance};
use super::resources::{Lack, Resources};
use super::{Core, Effect, InstanceFacts, earliest};
use crate::scheduler::agent::LaunchSpec;
use crate::scheduler::app::App;
use crate::scheduler::app::ports::HostPort;
use crate::scheduler::id::{AppId, InstanceId};
use crate::scheduler::timestamp::Timestamp;

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

/// What a placed instance was given besides its resources.
struct Placement {
    ports: Vec<u16>,
    address: Option<Ipv4Addr>,
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
        let placement = match placed {
            Err(lack) => {
                state.wait.n_unused += 1;
                state.wait.last_unused_at = Some(at);
                state.wait.n_declined[lack as usize] += 1;
                state.wait.last_lack = Some(lack);
                return false;
            }
            Ok(placement) => placement,
        };
        state.wait.last_used_at = Some(at);
        state.scheduled.remove(&seq);
        if state.scheduled.is_empty() {
            state.wait = Default::default();
        }
        let Some(instance) = state.instances.get_mut(&seq) else { return false };
        instance.condition = Condition::Provisioned;
        instance.staged_at = Some(at);
        instance.ports = placement.ports;
        instance.address = placement.address.map(Into::into);
        let facts = InstanceFacts::of(instance);
        let spec = LaunchSpec::of(instance, &self.settings);
        self.used.take(&Resources::of(&app));
        self.n_tasks += 1;
        self.touched.insert(id.clone());
        self.effects.push(Effect::Launch(Box::new(spec)));
        self.tell_instance(&facts, "Provisioned");
        true
    }

    /// Finds room for one more instance of `app`; takes its ports and its address.
    fn place(&mut self, app: &App) -> Result<Placement, Lack> {
        if !self.constraints_hold(app) {
            return Err(Lack::UnfulfilledConstraint);
        }
        if let Some(lack) = self.settings.resources.lack(&self.used, &Resources::of(app)) {
            return Err(lack);
        }
        if app.gpus > 0 {
            return Err(Lack::InsufficientGpus);
        }
        let ports = self.take_ports(app).ok_or(Lack::InsufficientPorts)?;
        let address = if app.has_own_address() { self.addresses.take() } else { None };
        Ok(Placement { ports, address })
    }

    /// One host port for each port that wants one, or none at all.
    fn take_ports(&mut self, app: &App) -> Option<Vec<u16>> {
        let wanted: Vec<HostPort> = app.ports().iter().map(|port| port.host).collect();
        let exact: Vec<u16> = wanted
            .iter()
            .filter_map(|port| if let HostPort::Exactly(port) = port { Some(*port) } else { None })
            .collect();
        let n_any = wanted.iter().filter(|port| **port == HostPort::Any).count();
        let exact = self.ports.take_exactly(&exact)?;
        let Some(any) = self.ports.take(n_any) else {
            self.ports.give_back(&exact);
            return None;
        };
        let (mut exact, mut any) = (exact.into_iter(), any.into_iter());
        let given = wanted.iter().filter_map(|port| match port {
            HostPort::Exactly(_) => exact.next(),
            HostPort::Any => any.next(),
            HostPort::None => None,
        });
        Some(given.collect())
    }

    fn constraints_hold(&self, app: &App) -> bool {
        if app.constraints.is_empty() {
            return true;
        }
        let placed = |state: &super::AppState| {
            state.instances.values().filter(|i| i.is_task() && i.is_active()).count()
        };
        let n_placed = self.apps.get(&app.id).map_or(0, placed);
        let attribute = |field: &str| match field {
            "hostname" | "@hostname" => Some(self.settings.host.clone()),
            other => self.settings.attributes.get(other).cloned(),
        };
        // A constraint that cannot be read was refused when the app was defined.
        app.constraints
            .iter()
            .filter_map(|words| Constraint::parse(words).ok())
            .all(|constraint| constraint.allows(n_placed, attribute))
    }

    /// Gives back what an ended task held.
    pub(super) fn release(&mut self, app: &App, ports: &[u16], address: Option<std::net::IpAddr>) {
        self.ports.give_back(ports);
        if let Some(std::net::IpAddr::V4(address)) = address {
            self.addresses.give_back(address);
        }
        self.n_tasks -= 1;
        if self.n_tasks == 0 {
            // Fractions added and subtracted many times drift; an empty agent is exactly empty.
            self.used = Resources::default();
        } else {
            self.used.give_back(&Resources::of(app));
        }
    }

    pub(super) fn add_scheduled(&mut self, id: &AppId) -> Option<u64> {
        let app = Arc::clone(&self.apps.get(id)?.app);
        self.add_scheduled_of(id, app)
    }

    /// One more instance, of a definition that need not be the newest.
    pub(super) fn add_scheduled_of(&mut self, id: &AppId, app: Arc<App>) -> Option<u64> {
        let state = self.apps.get_mut(id)?;
        let seq = self.next_seq;
        self.next_seq += 1;
        let instance = Instance::new(InstanceId::fresh(id, &self.node), seq, app);
        let facts = InstanceFacts::of(&instance);
        state.instances.insert(seq, instance);
        state.scheduled.insert(seq);
        state.wait.since.get_or_insert_with(Timestamp::now);
        self.waiting.insert(id.clone());
        self.tell_instance(&facts, "Scheduled");
        Some(seq)
    }
}
