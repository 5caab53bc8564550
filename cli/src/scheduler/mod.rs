//! The embedded scheduler: enough of Marathon to run apps as local processes, reached over HTTP only.
//!
//! Reading order: `core` (state and rules, no IO), `driver` (the task that owns it), `agent` (processes),
//! `store` (the journal on disk), `api` (HTTP), `events` (the bus behind `/v2/events`).
//!
//! Not here: anything the data planes or the watcher use. They meet this scheduler as they meet a real one.

mod access;
mod agent;
mod api;
mod app;
mod core;
mod driver;
mod events;
mod id;
mod ports;
mod store;
#[cfg(test)]
mod tests;
mod timestamp;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::access::Access;
use self::app::validate::Execution;
use self::core::record::State;
use self::core::resources::Resources;
use self::core::{Core, Settings};

/// Mesos' agents offer these by default.
const HOST_PORTS: RangeInclusive<u16> = 31000..=32000;

/// Marathon's `--local_port_min` and `--local_port_max`.
const SERVICE_PORTS: RangeInclusive<u16> = 10000..=20000;

/// Simulated instances bind nothing, so they may have nearly every number.
const SIMULATED_PORTS: RangeInclusive<u16> = 1025..=65535;

/// SIGTERM to SIGKILL when an app does not say how long.
const KILL_GRACE: Duration = Duration::from_secs(3);

/// Larger than any app or group definition that people write.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// What the scheduler is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API listens. Beyond loopback only with `access`.
    pub listen: SocketAddr,
    /// Who may use the API; empty: everybody who reaches it.
    pub access: Access,
    pub state_dir: PathBuf,
    /// The agent's host as tasks show it, and where health checks go: this machine.
    pub host: String,
    /// Host names besides the loopback ones that requests may be addressed to.
    pub names: Vec<String>,
    /// Host ports for instances.
    pub ports: RangeInclusive<u16>,
    /// Assigned to port definitions with port 0.
    pub service_ports: RangeInclusive<u16>,
    /// Cores to give to instances; `None`: the machine's.
    pub cpus: Option<f64>,
    /// MiB to give to instances; `None`: the machine's.
    pub mem: Option<f64>,
    /// MiB of disk to give to instances; `None`: what is free where the state is kept.
    pub disk: Option<f64>,
    /// What constraints may ask for besides the host name.
    pub attributes: BTreeMap<String, String>,
    pub kill_grace: Duration,
    pub body_bytes: usize,
    pub instances: Instances,
}

/// How instances are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instances {
    /// As local processes.
    Processes,
    /// They only pretend to run: for tests of what watches a scheduler.
    Simulated,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            access: Access::default(),
            state_dir: PathBuf::from("waymark-state/scheduler"),
            host: Ipv4Addr::LOCALHOST.to_string(),
            names: Vec::new(),
            ports: HOST_PORTS,
            service_ports: SERVICE_PORTS,
            cpus: None,
            mem: None,
            disk: None,
            attributes: BTreeMap::new(),
            kill_grace: KILL_GRACE,
            body_bytes: MAX_BODY_BYTES,
            instances: Instances::Processes,
        }
    }
}

impl Config {
    /// Instances that only pretend to run, with ports and resources that do not run out.
    pub fn simulated() -> Self {
        Self { ports: SIMULATED_PORTS, instances: Instances::Simulated, ..Self::default() }
    }
}

/// Why the scheduler could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not listen on {address} for the scheduler's API")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the scheduler's API may only listen on {address} with a token or credentials")]
    Open { address: SocketAddr },
    #[error("could not use the scheduler's state in {}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("another scheduler uses the state in {}", path.display())]
    Locked { path: PathBuf },
    #[error("line {line} of the stored state {} cannot be read: {reason}", path.display())]
    Corrupt { path: PathBuf, line: usize, reason: String },
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}

impl Error {
    /// What to do about it, in one line.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Bind { .. } => {
                "end the program that uses this address, or choose another with --scheduler-listen"
            }
            Error::Open { .. } => {
                "set WAYMARK_SCHEDULER_TOKEN or WAYMARK_SCHEDULER_CREDENTIALS=user:password, or choose a loopback address"
            }
            Error::State { .. } => "check the rights and the free space there, or choose another --state-dir",
            Error::Locked { .. } => "end the other one, or choose another --state-dir",
            Error::Corrupt { .. } => "repair the line, or move the file away to start without apps",
            Error::Thread(_) => "check the limit of processes and threads (ulimit -u)",
        }
    }
}

/// Why an app could not be added from within.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("the scheduler refused the app: {0}")]
    Refused(String),
    #[error("the scheduler has stopped")]
    Stopped,
}

/// A started scheduler.
#[derive(Debug)]
pub struct Running {
    /// Where the API listens.
    pub address: SocketAddr,
    handle: driver::Handle,
    driver: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Running {
    /// Adds the app unless one of its id is known already. `definition` is as for `POST /v2/apps`.
    pub async fn ensure_app(&self, definition: serde_json::Value) -> Result<(), EnsureError> {
        let added = self.handle.call_stored(move |core| api::apps::ensure(core, &definition)).await;
        match added {
            Some(Ok(())) => Ok(()),
            Some(Err(refusal)) => Err(EnsureError::Refused(api::reply::reason(&refusal))),
            None => Err(EnsureError::Stopped),
        }
    }

    /// Waits, after the token was cancelled, until every instance is gone: each has its grace period, then
    /// it is killed.
    pub async fn stopped(self) {
        for task in [self.driver, self.server] {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the scheduler ended badly");
            }
        }
    }
}

/// Starts the scheduler on the current runtime; stored apps are started again. It runs until `cancel`.
pub async fn start(config: Config, cancel: CancellationToken) -> Result<Running, Error> {
    if !config.listen.ip().is_loopback() && config.access.is_open() {
        return Err(Error::Open { address: config.listen });
    }
    let state_error = |source| Error::State { path: config.state_dir.clone(), source };
    std::fs::create_dir_all(&config.state_dir).map_err(state_error)?;
    let state_dir = config.state_dir.canonicalize().map_err(state_error)?;
    let store = store::Store::open(&state_dir)?;
    let mut stored = State::default();
    store.load(|line| stored.replay(line))?;
    let bind_error = |source| Error::Bind { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(bind_error)?;
    let address = listener.local_addr().map_err(bind_error)?;
    let cluster_id = cluster_id(&state_dir).map_err(state_error)?;
    let sandboxes = state_dir.join("sandboxes");
    let engine = agent::docker::find();
    let mut n_ended = agent::leftovers::end(&sandboxes);
    if engine.is_some() && sandboxes.exists() {
        n_ended += agent::docker::end_leftovers(&sandboxes).await;
    }
    if n_ended > 0 {
        tracing::warn!(n_ended, "ended processes that an earlier run left behind");
    }
    match std::fs::remove_dir_all(&sandboxes) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(state_error(error)),
        _ => {}
    }
    let core = Core::new(settings(&config, sandboxes, engine.is_some()), stored);
    let (handle, driver) = driver::start(core, store, cancel.clone()).map_err(Error::Thread)?;
    let server = tokio::spawn(api::serve(
        listener,
        api::Context {
            handle: handle.clone(),
            address,
            config: config.into(),
            cluster_id,
            started: std::time::Instant::now(),
        },
        cancel,
    ));
    Ok(Running { address, handle, driver, server })
}

fn settings(config: &Config, sandboxes: PathBuf, has_engine: bool) -> Settings {
    let simulated = config.instances == Instances::Simulated;
    let state_dir = sandboxes.parent().unwrap_or(&sandboxes).to_owned();
    let or_machine = |set: Option<f64>, of_machine: &dyn Fn() -> f64| {
        set.unwrap_or_else(|| if simulated { f64::INFINITY } else { of_machine() })
    };
    Settings {
        host: config.host.clone(),
        execution: match (simulated, has_engine) {
            (true, _) => Execution::Simulated,
            (false, true) => Execution::ProcessesAndImages,
            (false, false) => Execution::Processes,
        },
        ports: config.ports.clone(),
        probe: if simulated { |_| true } else { ports::bindable },
        service_ports: config.service_ports.clone(),
        resources: Resources {
            cpus: or_machine(config.cpus, &machine_cpus),
            mem: or_machine(config.mem, &machine_mem),
            disk: or_machine(config.disk, &|| free_disk(&state_dir)),
        },
        attributes: config.attributes.clone(),
        secrets: state_dir.join("secrets"),
        sandboxes,
        kill_grace: config.kill_grace,
    }
}

/// A version 4 UUID that stays with the state.
fn cluster_id(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join("cluster-id");
    if let Some(known) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(uuid::Uuid::to_string(&known));
    }
    let fresh = uuid::Uuid::new_v4().to_string();
    std::fs::write(&path, &fresh)?;
    Ok(fresh)
}

fn machine_cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

/// In MiB; a gigabyte when the system does not tell.
fn machine_mem() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(1024.0, |kib| (kib / 1024.0).floor())
}

/// In MiB; a gigabyte when the system does not tell.
fn free_disk(directory: &Path) -> f64 {
    let unknown = 1024.0;
    let Ok(path) = CString::new(directory.as_os_str().as_encoded_bytes()) else { return unknown };
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: both pointers are to memory of ours; `stat` is only read when the call filled it.
    unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return unknown;
        }
        let stat = stat.assume_init();
        (stat.f_bavail as f64 * stat.f_frsize as f64 / 1_048_576.0).floor()
    }
}
