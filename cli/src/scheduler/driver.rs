//! The task that owns the core: takes jobs and reports one after the other, and has the effects carried out.
//!
//! Not here: rules (`core`).

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent::{self, Order};
use super::core::status::Report;
use super::core::{Core, Effect};
use super::store::{Change, Content, Store, Written};

/// Jobs waiting for the core. Each client waits for its answer, so this only fills when many ask at once.
const QUEUE: usize = 256;

/// Reports taken in before the core looks at what follows from them.
const BATCH: usize = 256;

/// Longest wait for instances to go when the scheduler stops, whatever grace period an app asked for.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Wait for the disk before a change is answered all the same.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// The journal is not rewritten before it has grown by this much, nor before it has doubled.
const REWRITE_BYTES: usize = 4 * 1024 * 1024;

/// Runs on the core; what it returns is called once the effects are under way, with the numbers of the first
/// and the one after the last change it stored.
type Job = Box<dyn FnOnce(&mut Core) -> Finish + Send>;
type Finish = Box<dyn FnOnce(std::ops::Range<u64>) + Send>;

/// A way to the core. `None` from its methods: the scheduler has stopped.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    written: watch::Receiver<Written>,
}

impl Handle {
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Option<T> {
        self.send(work).await.map(|(result, _)| result)
    }

    /// Like `call`, but returns only when what the work changed is on disk.
    pub async fn call_stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Option<T> {
        let (result, numbers) = self.send(work).await?;
        if !numbers.is_empty() {
            let mut written = self.written.clone();
            let all = written.wait_for(|written| written.number + 1 >= numbers.end);
            match tokio::time::timeout(STORE_PATIENCE, all).await {
                Ok(Ok(_)) => {}
                _ => tracing::error!("a change is in effect but not on disk yet"),
            }
        }
        Some(result)
    }

    async fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Option<(T, std::ops::Range<u64>)> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |core| {
            let result = work(core);
            // Who asked may have gone away meanwhile.
            Box::new(move |numbers| drop(reply.send((result, numbers))))
        });
        self.jobs.send(job).await.ok()?;
        answer.await.ok()
    }

    /// For the end of an event stream, which cannot wait. Lost when the queue is full: the next event then
    /// finds the stream closed.
    pub fn tell(&self, work: impl FnOnce(&mut Core) + Send + 'static) {
        let job: Job = Box::new(move |core| {
            work(core);
            Box::new(|_| {})
        });
        let _ = self.jobs.try_send(job);
    }

    /// The last failure to write to disk, if the newest change met it.
    pub fn store_failure(&self) -> Option<String> {
        let written = self.written.borrow();
        written.failed.as_ref().filter(|(number, _)| *number == written.number).map(|(_, why)| why.clone())
    }
}

struct Driver {
    core: Core,
    orders: mpsc::Sender<Order>,
    changes: mpsc::Sender<Change>,
    last_change: u64,
    /// Bytes of the journal since it was last written as a whole, and how many make it time again.
    n_appended: usize,
    rewrite_at: usize,
}

pub fn start(
    core: Core,
    store: Store,
    cancel: CancellationToken,
) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let (jobs, job_queue) = mpsc::channel(QUEUE);
    let (report_sender, reports) = mpsc::channel(agent::QUEUE);
    let abandon = CancellationToken::new();
    let (orders, agent) = agent::start(core.settings.execution, report_sender, abandon.clone())?;
    let (changes, written, writer) = store.write_behind()?;
    let sandboxes = core.settings.sandboxes.clone();
    let driver = Driver { core, orders, changes, last_change: 0, n_appended: 0, rewrite_at: 0 };
    let task = tokio::spawn(async move {
        driver.run(job_queue, reports, cancel).await;
        // Whatever has not gone by now goes with the agent's thread.
        abandon.cancel();
        let join = move || {
            let joined = (agent.join(), writer.join());
            // What left its process group to become a daemon.
            agent::leftovers::end(&sandboxes);
            joined
        };
        let joined = tokio::task::spawn_blocking(join).await;
        if !matches!(joined, Ok((Ok(()), Ok(())))) {
            tracing::error!("a thread of the scheduler ended badly");
        }
    });
    Ok((Handle { jobs, written }, task))
}

impl Driver {
    async fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        mut reports: mpsc::Receiver<Report>,
        cancel: CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut stop_at: Option<Instant> = None;
        // A journal that has been read is written as the state it led to.
        self.rewrite().await;
        // Stored apps are started before anything else happens.
        let mut wake = self.core.settle(Instant::now());
        self.carry_out().await;
        loop {
            let mut finish = None;
            tokio::select! {
                Some(job) = jobs.recv() => finish = Some(job(&mut self.core)),
                n = reports.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        tracing::error!("the agent is gone");
                        return;
                    }
                    let now = Instant::now();
                    batch.drain(..).for_each(|report| self.core.report(report, now));
                }
                () = sleep_until(wake) => {}
                () = sleep_until(stop_at) => {
                    tracing::error!("instances did not end in time and are killed");
                    return;
                }
                () = cancel.cancelled(), if stop_at.is_none() => {
                    stop_at = Some(Instant::now() + STOP_PATIENCE);
                    self.core.stop();
                }
            }
            wake = self.core.settle(Instant::now());
            let first = self.last_change + 1;
            self.carry_out().await;
            if let Some(finish) = finish {
                finish(first..self.last_change + 1);
            }
            if stop_at.is_some() && self.core.n_tasks() == 0 {
                return;
            }
        }
    }

    async fn carry_out(&mut self) {
        for effect in self.core.take_effects() {
            let order = match effect {
                Effect::Launch(spec) => Order::Launch(spec),
                Effect::Kill { task, grace } => Order::Kill { task, grace },
                Effect::RemoveSandbox(path) => Order::RemoveSandbox(path),
                Effect::Store(line) => {
                    self.n_appended += line.len();
                    self.store(Content::Append(line)).await;
                    continue;
                }
            };
            if self.orders.send(order).await.is_err() {
                tracing::error!("the agent is gone");
            }
        }
        if self.n_appended > self.rewrite_at {
            self.rewrite().await;
        }
    }

    async fn rewrite(&mut self) {
        let lines = self.core.snapshot();
        self.n_appended = 0;
        self.rewrite_at = lines.iter().map(String::len).sum::<usize>().max(REWRITE_BYTES);
        self.store(Content::Rewrite(lines)).await;
    }

    async fn store(&mut self, content: Content) {
        self.last_change += 1;
        let change = Change { number: self.last_change, content };
        if self.changes.send(change).await.is_err() {
            tracing::error!("the writer of the state is gone");
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
