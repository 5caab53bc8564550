//! What the benchmarks against a peer share: processes pinned to a core, their CPU time, an app to serve, and the life
//! of a child that serves it.
//!
//! It starts no load.

#![allow(dead_code, reason = "each benchmark uses what it needs of it")]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use event_watcher::catalog::{
    App, AppId, Endpoint, Health, Instance, InstanceId, InstanceState, Problem, Protocols, Readiness,
    Service, ServiceId,
};
use event_watcher::publish::Applied;
use tokio::runtime::Runtime;

/// The core of the program that is measured.
pub const PROXY_CORE: usize = 0;
/// The core of everything else.
pub const LOAD_CORE: usize = 1;

/// A process that is ended when this is dropped.
pub struct Pinned(pub Child);

impl Pinned {
    pub fn start(command: &mut Command) -> io::Result<Self> {
        pinned(command, PROXY_CORE).spawn().map(Self)
    }

    /// User and system time of all its threads, from the scheduler's own account (nanoseconds).
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut total = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let account = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            total += account.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn pinned(command: &mut Command, core: usize) -> &mut Command {
    // SAFETY: the closure makes system calls on memory of its own and allocates nothing.
    unsafe { command.pre_exec(move || pin(core)) }
}

/// Pins this thread, and those that it starts, to one core; on a machine with one core all share it.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: an all-zero set is a valid one, and the calls only touch it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let n_cores = libc::sysconf(libc::_SC_NPROCESSORS_ONLN).max(1) as usize;
        libc::CPU_SET(core % n_cores, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The child: serves with each worker on a thread of its own, tells its parent that the first snapshot is in use, and
/// ends with it.
pub fn serve<W: Send + 'static, F: Future<Output = ()> + 'static>(
    control: &Runtime,
    workers: Vec<W>,
    run: fn(W) -> F,
    mut applied: Applied,
    problems: impl FnOnce() -> Arc<[Problem]>,
) -> anyhow::Result<()> {
    for worker in workers {
        thread::spawn(move || -> io::Result<()> {
            tokio::runtime::LocalRuntime::new()?.block_on(run(worker));
            Ok(())
        });
    }
    control.block_on(async {
        applied.changed().await?;
        let problems = problems();
        anyhow::ensure!(problems.is_empty(), "{problems:?}");
        println!("ready");
        // The parent holds the other end.
        tokio::task::spawn_blocking(|| io::stdin().read(&mut [0])).await??;
        anyhow::Ok(())
    })
}

/// What this machine's kernel gives to new connections: both programs of a comparison have the same.
pub fn congestion_control() -> String {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    name.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// The peer's program is not on this machine.
pub fn is_not_installed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// An app with one port and one instance, at `endpoint`.
pub fn app(name: &str, endpoint: SocketAddr) -> App {
    let id = AppId::new(name);
    let instance = Instance {
        id: InstanceId::new(&format!("{name}.1")),
        host: endpoint.ip().to_string().into(),
        host_address: Some(endpoint.ip()),
        agent: Some("bench-S1".into()),
        version: "v1".into(),
        state: InstanceState::Running,
        health: Health::Unchecked,
        readiness: Readiness::Unchecked,
        started_at: None,
        addresses: vec![endpoint.ip()],
        endpoints: vec![Endpoint { port_index: 0, address: endpoint }],
    };
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: None,
        service_port: None,
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vec![],
    };
    App {
        id,
        version: "v1".into(),
        labels: BTreeMap::new(),
        n_instances_wanted: 1,
        services: vec![service],
        health_checks: vec![],
        instances: vec![Arc::new(instance)],
        deployments: vec![],
    }
}
