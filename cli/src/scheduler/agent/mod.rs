//! The one agent: runs tasks as local processes on a thread of its own and reports what becomes of them.
//!
//! A thread of its own, because the signal that ends instances with their scheduler (`PR_SET_PDEATHSIG`) is
//! tied to the thread that forked them, and because forking and log copying must not hold up the API.
//!
//! Not here: which tasks run (`core`).

pub mod check;
pub mod docker;
mod fetch;
pub mod leftovers;
pub mod logs;
pub mod process;
mod secrets;
pub mod spec;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::app::NetworkMode;
use super::app::validate::Execution;
use super::core::instance::{Readiness, TaskRef};
use super::core::status::Report;

use process::Process;
use spec::ContainerSpec;
pub use spec::LaunchSpec;

/// Orders and reports under way between core and agent.
pub const QUEUE: usize = 1024;

/// Time between telling everybody that a task is being killed and its SIGTERM. A balancer that watches the
/// event stream takes the endpoint out within this time, so that no request is sent to a process that has
/// stopped listening. A watcher needs a few milliseconds, tens on a loaded machine.
pub const DRAIN_HEAD_START: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub enum Order {
    Launch(Box<LaunchSpec>),
    Kill { task: TaskRef, grace: Duration },
    RemoveSandbox(PathBuf),
}

/// Starts the agent's thread. It ends when the orders' sender is dropped and its tasks are gone, or at once
/// when `abandon` is cancelled; then what still runs is killed by the kernel with the thread.
pub fn start(
    execution: Execution,
    reports: mpsc::Sender<Report>,
    abandon: CancellationToken,
) -> std::io::Result<(mpsc::Sender<Order>, JoinHandle<()>)> {
    let (orders, receiver) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = async move {
        match execution {
            Execution::Processes | Execution::ProcessesAndImages => run_tasks(receiver, reports).await,
            Execution::Simulated => pretend(receiver, reports).await,
        }
    };
    let thread = std::thread::Builder::new().name("agent".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = run => {}
                () = abandon.cancelled() => {}
            }
        });
    })?;
    Ok((orders, thread))
}

async fn run_tasks(mut orders: mpsc::Receiver<Order>, reports: mpsc::Sender<Report>) {
    process::adopt_orphans();
    let mut kills: HashMap<TaskRef, watch::Sender<Option<Duration>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut open = true;
    while open || !tasks.is_empty() {
        tokio::select! {
            order = orders.recv(), if open => match order {
                Some(Order::Launch(spec)) => {
                    let (kill, killed) = watch::channel(None);
                    kills.insert(spec.task.clone(), kill);
                    tasks.spawn(run_task(spec, killed, reports.clone()));
                }
                Some(Order::Kill { task, grace }) => {
                    if let Some(kill) = kills.get(&task) {
                        kill.send_replace(Some(grace));
                    }
                }
                Some(Order::RemoveSandbox(path)) => remove_sandbox(path).await,
                None => open = false,
            },
            Some(ended) = tasks.join_next() => {
                if let Ok(task) = ended {
                    kills.remove(&task);
                }
            }
        }
    }
}

async fn remove_sandbox(path: PathBuf) {
    if let Err(error) = tokio::fs::remove_dir_all(&path).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove a sandbox");
    }
}

async fn run_task(
    spec: Box<LaunchSpec>,
    mut kill: watch::Receiver<Option<Duration>>,
    reports: mpsc::Sender<Report>,
) -> TaskRef {
    let task = spec.task.clone();
    let (failed, message) = if kill.borrow().is_some() {
        (false, "Killed before it was started".to_owned())
    } else {
        live(Arc::new(*spec), &mut kill, &reports).await
    };
    // The core only goes away when nobody is interested any more.
    let _ = reports.send(Report::Ended { task: task.clone(), failed, message }).await;
    task
}

/// A wish to end: how much time there is for it.
type Stop = watch::Receiver<Option<Duration>>;

async fn stopped(stop: &mut Stop) -> Duration {
    match stop.wait_for(Option::is_some).await.map(|grace| grace.unwrap_or_default()) {
        Ok(grace) => grace,
        // Whoever could have asked is gone without asking.
        Err(_) => std::future::pending().await,
    }
}

/// Runs the instance to its end. Returns whether it failed, and Mesos' message.
async fn live(spec: Arc<LaunchSpec>, kill: &mut Stop, reports: &mpsc::Sender<Report>) -> (bool, String) {
    let _ = reports.send(Report::Starting(spec.task.clone())).await;
    let prepared = tokio::select! {
        prepared = prepare(&spec) => prepared,
        _ = stopped(kill) => return (false, "Killed while its files were fetched".to_owned()),
    };
    let (stop, stopping) = watch::channel(None);
    let mut containers = JoinSet::new();
    let mut failure = prepared.err();
    for index in 0..spec.containers.len() {
        if failure.is_some() {
            break;
        }
        match Process::spawn(&spec, &spec.containers[index]).await {
            Ok(process) => {
                containers.spawn(run_container(process, spec.clone(), index, stopping.clone()));
            }
            Err(error) => failure = Some(format!("Failed to launch the command: {error}")),
        }
    }
    // Dropping the set ends the checks with the task.
    let mut checks = JoinSet::new();
    if failure.is_none() {
        let address = own_address(&spec).await;
        let _ = reports.send(Report::Running { task: spec.task.clone(), address }).await;
        watch(&spec, address, reports, &mut checks);
    } else {
        stop.send_replace(Some(Duration::ZERO));
    }
    let mut last = String::new();
    let mut killed = false;
    loop {
        tokio::select! {
            ended = containers.join_next() => match ended {
                None => break,
                Some(Ok((failed, message))) => {
                    if failed && failure.is_none() && !killed {
                        // One container that fails takes its pod with it.
                        failure = Some(message.clone());
                        stop.send_replace(Some(spec.grace()));
                    }
                    last = message;
                }
                Some(Err(error)) => tracing::error!(%error, "a container's task ended badly"),
            },
            grace = stopped(kill), if !killed => {
                killed = true;
                checks.abort_all();
                tokio::time::sleep(DRAIN_HEAD_START).await;
                stop.send_replace(Some(grace));
            }
        }
    }
    match failure {
        Some(message) => (true, message),
        None => (false, last),
    }
}

/// Everything that must be there before the first program starts.
async fn prepare(spec: &LaunchSpec) -> Result<(), String> {
    for container in &spec.containers {
        let sandbox = &container.sandbox;
        let failed = |error: std::io::Error| format!("{}: {error}", sandbox.display());
        tokio::fs::create_dir_all(sandbox).await.map_err(failed)?;
        let cache = spec.secrets.with_file_name("fetched");
        fetch::all(&container.fetch, sandbox, &cache).await?;
        if container.image.is_none()
            && let Some(user) = &container.user
        {
            process::hand_over(sandbox, user).map_err(|error| error.to_string())?;
        }
        if let Some(image) = container.image.as_ref().filter(|image| image.force_pull) {
            docker::pull(&image.image).await?;
        }
    }
    Ok(())
}

/// The address that the engine gave the container; other instances know theirs already.
async fn own_address(spec: &LaunchSpec) -> Option<IpAddr> {
    let container: &ContainerSpec = spec.containers.first()?;
    if container.image.is_none() || spec.app.network_mode() == NetworkMode::Host {
        return None;
    }
    docker::address_of(container).await
}

fn watch(
    spec: &Arc<LaunchSpec>,
    address: Option<IpAddr>,
    reports: &mpsc::Sender<Report>,
    checks: &mut JoinSet<()>,
) {
    let address = address.or(spec.address);
    for index in 0..spec.app.health_checks.len() {
        checks.spawn(check::watch_health(spec.clone(), index, address, reports.clone()));
    }
    if spec.app.readiness_check().is_some() {
        checks.spawn(check::watch_readiness(spec.clone(), address, reports.clone()));
    }
}

/// Runs one container's program to its end.
async fn run_container(
    mut process: Process,
    spec: Arc<LaunchSpec>,
    index: usize,
    mut stop: Stop,
) -> (bool, String) {
    let status = tokio::select! {
        status = process.exited() => {
            process.end_group_now().await;
            status
        }
        grace = stopped(&mut stop) => {
            let status = process.terminate(grace).await;
            if let Some(container) = spec.containers.get(index).filter(|c| c.image.is_some()) {
                docker::remove(container).await;
            }
            status
        }
    };
    process.close_logs().await;
    match status {
        Ok(status) => (!status.success(), process::describe(status)),
        Err(error) => (true, format!("Failed to wait for the command: {error}")),
    }
}

/// Tasks that run at once, are always healthy and end when told to.
async fn pretend(mut orders: mpsc::Receiver<Order>, reports: mpsc::Sender<Report>) {
    // Bounded by the number of tasks. Waiting for the core here could lock both up: it may wait for us.
    let mut pending: VecDeque<Report> = VecDeque::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Launch(spec)) => {
                    let task = spec.task;
                    pending.push_back(Report::Starting(task.clone()));
                    pending.push_back(Report::Running { task: task.clone(), address: None });
                    for check in 0..spec.app.health_checks.len() {
                        pending.push_back(Report::Checked { task: task.clone(), check, result: Ok(()) });
                    }
                    if spec.app.readiness_check().is_some() {
                        let readiness = Readiness { ready: true, last_response: None };
                        pending.push_back(Report::Readiness { task, readiness });
                    }
                }
                Some(Order::Kill { task, .. }) => {
                    let message = "Command terminated with signal Terminated".into();
                    pending.push_back(Report::Ended { task, failed: true, message });
                }
                Some(Order::RemoveSandbox(_)) => {}
                None => break,
            },
            permit = reports.reserve(), if !pending.is_empty() => match (permit, pending.pop_front()) {
                (Ok(permit), Some(report)) => permit.send(report),
                _ => break,
            },
        }
    }
}
