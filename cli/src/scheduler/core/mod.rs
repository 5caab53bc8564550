//! The scheduler's state and its rules, owned by one task: what happens goes in as method calls, what must be
//! done comes out as effects and events. A state is always changed before the event that tells of it, so a
//! client that asks after an event sees at least what the event said.
//!
//! Reading order: `instance`, `groups`, `deployment`, `operations` (what clients ask for), `drive` (carrying it
//! out), `launch` (placing instances), `status` (what the agent reports), `record` (what survives a restart).
//!
//! Not here: sockets, processes, files. Only port probing touches the system.

pub mod addresses;
pub mod backoff;
pub mod constraint;
pub mod dependencies;
pub mod deployment;
pub mod drive;
pub mod environment;
pub mod groups;
pub mod instance;
pub mod kills;
pub mod launch;
pub mod operations;
pub mod record;
pub mod resources;
pub mod revert;
pub mod rollout;
pub mod statistics;
pub mod status;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use backoff::Backoff;
use deployment::Deployment;
use instance::{Instance, TaskRef};
use launch::WaitStats;

use self::addresses::OwnAddresses;
use self::groups::{Group, History};
use self::record::State;
use self::resources::Resources;
use super::agent::LaunchSpec;
use super::app::App;
use super::app::fields::FieldError;
use super::app::validate::Execution;
use super::events::EventHub;
use super::id::{AppId, InstanceId};
use super::ports::{HostPorts, Probe};
use super::timestamp::{Timestamp, VersionClock};

/// Old versions kept of each app; Marathon's `--zk_max_versions`.
const MAX_VERSIONS: usize = 50;

/// Sandboxes kept of ended tasks of each app, so that `app log` can tell why the last ones failed.
const KEPT_SANDBOXES: usize = 5;

/// What the core is built with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub host: String,
    pub execution: Execution,
    pub ports: RangeInclusive<u16>,
    pub probe: Probe,
    pub service_ports: RangeInclusive<u16>,
    /// What the agent has to give.
    pub resources: Resources,
    /// What constraints may ask for besides the host name.
    pub attributes: BTreeMap<String, String>,
    pub sandboxes: PathBuf,
    /// Where the values of secrets are.
    pub secrets: PathBuf,
    pub kill_grace: Duration,
}

/// What the owner of the core must have done.
#[derive(Debug)]
pub enum Effect {
    Launch(Box<LaunchSpec>),
    Kill {
        task: TaskRef,
        grace: Duration,
    },
    RemoveSandbox(PathBuf),
    /// A line for the journal.
    Store(String),
}

/// Why an operation was not carried out.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    AppExists(AppId),
    PodExists(AppId),
    UnknownApp(AppId),
    UnknownPod(AppId),
    UnknownGroup(String),
    GroupExists(String),
    /// A group was to get the path of an app.
    PathIsApp(AppId),
    UnknownVersion(AppId, String),
    UnknownGroupVersion(String, String),
    BadTimestamp(String),
    UnknownTask(String),
    BadTaskId(String),
    UnknownDeployment(String),
    NotQueued(AppId),
    Locked(Vec<String>),
    TooManyDeployments,
    BadJson(Vec<FieldError>),
    Invalid(Vec<FieldError>),
    /// 422 with a plain message.
    Unprocessable(String),
    /// 400 with a plain message.
    BadRequest(String),
    Stopping,
}

#[derive(Debug)]
pub struct TaskFailure {
    pub instance: InstanceId,
    /// One, except for a pod.
    pub task_ids: Vec<String>,
    pub started_at: Option<Timestamp>,
    pub state: &'static str,
    pub message: String,
    pub at: Timestamp,
    pub version: Timestamp,
}

#[derive(Debug)]
pub struct AppState {
    /// The newest definition.
    pub app: Arc<App>,
    /// Every kept definition, the newest included.
    pub versions: BTreeMap<Timestamp, Arc<App>>,
    /// In the order of their creation.
    pub instances: BTreeMap<u64, Instance>,
    /// Those of them that wait to be launched.
    pub scheduled: BTreeSet<u64>,
    pub backoff: Option<Backoff>,
    pub wait: WaitStats,
    pub last_failure: Option<TaskFailure>,
    /// Deleted; stays only until its last instance is gone.
    pub removed: bool,
    /// Config version whose health checks were announced on the event stream.
    pub announced_checks: Option<Timestamp>,
    /// Sandboxes of ended tasks, oldest first.
    pub ended: VecDeque<EndedTask>,
}

#[derive(Debug)]
pub struct EndedTask {
    pub task_id: String,
    pub sandbox: PathBuf,
}

impl AppState {
    fn new(app: Arc<App>) -> Self {
        Self {
            versions: BTreeMap::from([(app.version, app.clone())]),
            app,
            instances: BTreeMap::new(),
            scheduled: BTreeSet::new(),
            backoff: None,
            wait: WaitStats::default(),
            last_failure: None,
            removed: false,
            announced_checks: None,
            ended: VecDeque::new(),
        }
    }

    pub fn n_active(&self) -> usize {
        self.instances.values().filter(|i| i.is_active()).count()
    }
}

pub struct Core {
    pub settings: Settings,
    pub apps: BTreeMap<AppId, AppState>,
    pub deployments: Vec<Deployment>,
    pub hub: EventHub,
    pub clock: VersionClock,
    pub agent_id: String,
    pub groups: BTreeMap<AppId, Group>,
    pub history: History,
    /// What instances hold of the agent.
    pub used: Resources,
    ports: HostPorts,
    addresses: OwnAddresses,
    n_tasks: usize,
    effects: Vec<Effect>,
    /// Apps something happened to since the last `settle`.
    touched: BTreeSet<AppId>,
    /// Apps with instances that wait to be launched.
    waiting: BTreeSet<AppId>,
    next_seq: u64,
    node: [u8; 6],
    stopping: bool,
}

impl Core {
    /// A core that knows what was stored, wants it running, and goes on with its open deployments.
    pub fn new(settings: Settings, stored: State) -> Self {
        let uuid = uuid::Uuid::new_v4();
        let of_apps = stored.apps.values().filter_map(|versions| Some(*versions.last_key_value()?.0));
        let of_changes = stored.history.changes().map(|change| change.version);
        let newest = of_apps.chain(of_changes).max();
        let mut core = Self {
            ports: HostPorts::new(settings.ports.clone(), settings.probe),
            addresses: OwnAddresses::default(),
            settings,
            apps: BTreeMap::new(),
            deployments: stored.deployments,
            hub: EventHub::default(),
            clock: VersionClock::after(newest.unwrap_or_else(Timestamp::now)),
            agent_id: format!("{uuid}-S0"),
            groups: stored.groups,
            history: stored.history,
            used: Resources::default(),
            n_tasks: 0,
            effects: Vec::new(),
            touched: BTreeSet::new(),
            waiting: BTreeSet::new(),
            next_seq: 0,
            node: uuid.as_bytes()[..6].try_into().expect("a UUID has 16 bytes"),
            stopping: false,
        };
        for versions in stored.apps.into_values() {
            let Some((_, newest)) = versions.last_key_value() else { continue };
            let mut state = AppState::new(newest.clone());
            core.touched.insert(newest.id.clone());
            let id = newest.id.clone();
            state.versions = versions;
            core.apps.insert(id, state);
        }
        core.touched.extend(core.deployments.iter().flat_map(|d| d.affected.iter().cloned()));
        core.resume_instances();
        core
    }

    /// Apps that an open deployment has still to change run as they were before it, so that the deployment
    /// finds what it would have found.
    fn resume_instances(&mut self) {
        let mut before: BTreeMap<AppId, Arc<App>> = BTreeMap::new();
        for deployment in &self.deployments {
            let from = deployment.current.unwrap_or(0);
            let actions = deployment.steps.iter().skip(from).flat_map(|step| &step.actions);
            for action in actions {
                if let Some(app) = deployment.original.get(&action.app) {
                    before.insert(action.app.clone(), app.clone());
                }
            }
        }
        for (id, app) in before {
            for _ in 0..app.instances {
                self.add_scheduled_of(&id, app.clone());
            }
        }
        // A deployment gives up at once what has not begun.
        self.launch_waiting(Instant::now());
    }

    /// The app or pod, unless it is unknown or being removed.
    pub fn run_spec<Q: Ord + ?Sized>(&self, id: &Q) -> Option<&AppState>
    where
        AppId: Borrow<Q>,
    {
        self.apps.get(id).filter(|state| !state.removed)
    }

    pub fn run_specs(&self) -> impl Iterator<Item = &AppState> {
        self.apps.values().filter(|state| !state.removed)
    }

    pub fn app(&self, id: &AppId) -> Option<&AppState> {
        self.run_spec(id).filter(|state| !state.app.is_pod())
    }

    pub fn pod(&self, id: &AppId) -> Option<&AppState> {
        self.run_spec(id).filter(|state| state.app.is_pod())
    }

    pub fn live_pods(&self) -> impl Iterator<Item = &AppState> {
        self.run_specs().filter(|state| state.app.is_pod())
    }

    pub fn live_apps(&self) -> impl Iterator<Item = &AppState> {
        self.run_specs().filter(|state| !state.app.is_pod())
    }

    pub fn deployments_of<'a>(&'a self, app: &'a AppId) -> impl Iterator<Item = &'a str> {
        self.deployments.iter().filter(|d| d.affected.contains(app)).map(|d| d.id.as_str())
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Instances that hold resources.
    pub fn n_tasks(&self) -> usize {
        self.n_tasks
    }

    /// Ends every instance and starts no more. `n_tasks` reaches 0 as they go.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.waiting.clear();
        let ids: Vec<AppId> = self.apps.keys().cloned().collect();
        for id in ids {
            let seqs: Vec<u64> = self.apps[&id].instances.keys().copied().collect();
            for seq in seqs {
                self.decommission(&id, seq);
            }
        }
    }

    fn remember_sandbox(&mut self, app: &AppId, task_id: String) {
        let Some(state) = self.apps.get_mut(app) else { return };
        let sandbox = self.settings.sandboxes.join(&task_id);
        state.ended.push_back(EndedTask { task_id, sandbox });
        while state.ended.len() > KEPT_SANDBOXES {
            if let Some(oldest) = state.ended.pop_front() {
                self.effects.push(Effect::RemoveSandbox(oldest.sandbox));
            }
        }
    }

    /// The sandbox of a task that runs or ended not long ago.
    pub fn sandbox_of(&self, task_id: &str) -> Option<PathBuf> {
        let (app, _) = super::id::split_task_id(task_id)?;
        let state = self.apps.get(&app)?;
        let runs = state.instances.values().any(|i| i.is_task() && i.has_task(task_id));
        let ended = state.ended.iter().any(|ended| ended.task_id == task_id);
        (runs || ended).then(|| self.settings.sandboxes.join(task_id))
    }

    fn tell_instance(&mut self, instance: &InstanceFacts, condition: &str) {
        let (agent, host) = match condition {
            "Scheduled" => (Value::Null, Value::Null),
            _ => (self.agent_id.as_str().into(), self.settings.host.as_str().into()),
        };
        self.hub.publish("instance_changed_event", || {
            json!({"instanceId": instance.id, "condition": condition, "runSpecId": instance.app,
                "agentId": agent, "host": host, "runSpecVersion": instance.version})
        });
    }

    fn tell_status(&mut self, instance: &InstanceFacts, state: &str, message: &str) {
        for task_id in &instance.task_ids {
            self.hub.publish("status_update_event", || {
                json!({"slaveId": self.agent_id, "taskId": task_id, "taskStatus": state,
                    "message": message, "appId": instance.app, "host": self.settings.host,
                    "ipAddresses": ip_addresses(&self.settings.host, instance.address),
                    "ports": instance.ports, "version": instance.version})
            });
        }
    }
}

/// What events say about an instance, copied out before its state moves on.
struct InstanceFacts {
    id: InstanceId,
    /// One, except for a pod.
    task_ids: Vec<String>,
    app: AppId,
    ports: Vec<u16>,
    address: Option<IpAddr>,
    version: Timestamp,
}

impl InstanceFacts {
    fn of(instance: &Instance) -> Self {
        Self {
            id: instance.id.clone(),
            task_ids: instance.task_ids(),
            app: instance.app.id.clone(),
            ports: instance.ports.clone(),
            address: instance.address,
            version: instance.app.version,
        }
    }
}

/// The addresses of a task: its own, or the agent's. A host name that is no address stands for this machine.
pub fn ip_addresses(host: &str, own: Option<IpAddr>) -> Value {
    let address = own.or_else(|| host.parse().ok()).unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let protocol = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!([{"ipAddress": address.to_string(), "protocol": protocol}])
}

/// When the earliest of two moments comes, where either may be absent.
fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
