//! The one agent: runs tasks as local processes on a thread of its own and reports what becomes of them.
//!
//! A thread of its own, because the signal that ends instances with their scheduler (`PR_SET_PDEATHSIG`) is
//! tied to the thread that forked them, and because forking and log copying must not hold up the API.
//!
//! Not here: which tasks run (`core`).

pub mod check;
pub mod leftovers;
pub mod logs;
pub mod process;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::app::validate::Execution;
use super::core::instance::{Readiness, TaskRef};
use super::core::status::Report;

use process::Process;

/// Orders and reports under way between core and agent.
pub const QUEUE: usize = 1024;

/// Time between telling everybody that a task is being killed and its SIGTERM. A balancer that watches the
/// event stream takes the endpoint out within this time, so that no request is sent to a process that has
/// stopped listening. A watcher needs a few milliseconds, tens on a loaded machine.
pub const DRAIN_HEAD_START: Duration = Duration::from_millis(50);

/// Everything needed to run one task.
#[derive(Debug)]
pub struct LaunchSpec {
    pub task: TaskRef,
    pub app: Arc<App>,
    pub env: BTreeMap<String, String>,
    pub sandbox: PathBuf,
    pub host: String,
    pub ports: Vec<u16>,
}

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
            Execution::Processes => run_tasks(receiver, reports).await,
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

/// Runs the process to its end. Returns whether it failed, and Mesos' message.
async fn live(
    spec: Arc<LaunchSpec>,
    kill: &mut watch::Receiver<Option<Duration>>,
    reports: &mpsc::Sender<Report>,
) -> (bool, String) {
    let _ = reports.send(Report::Starting(spec.task.clone())).await;
    let mut process = match Process::spawn(&spec).await {
        Ok(process) => process,
        Err(error) => return (true, format!("Failed to launch the command: {error}")),
    };
    let _ = reports.send(Report::Running(spec.task.clone())).await;
    // Dropping the set ends the checks with the task.
    let mut checks = JoinSet::new();
    for index in 0..spec.app.health_checks.len() {
        checks.spawn(check::watch_health(spec.clone(), index, reports.clone()));
    }
    if spec.app.readiness_check().is_some() {
        checks.spawn(check::watch_readiness(spec.clone(), reports.clone()));
    }
    let status = tokio::select! {
        status = process.exited() => {
            process.end_group_now().await;
            status
        }
        Ok(grace) = async { kill.wait_for(Option::is_some).await.map(|grace| grace.unwrap_or_default()) } => {
            drop(checks);
            tokio::time::sleep(DRAIN_HEAD_START).await;
            process.terminate(grace).await
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
                    pending.push_back(Report::Running(task.clone()));
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
