//! The balancer's own health checks: every server of a service that has a network check is probed from here.
//!
//! Reading order: `probe` (one question to one server), `state` (what the answers come to), this file (who is probed
//! when). It takes nobody out of use: a verdict that changes is told to the plane, which compiles the servers anew.
//! Runs on the control side; requests never wait for it.

mod probe;
mod state;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use imbl::ordmap::DiffItem;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

pub(crate) use state::Change;
pub use state::{CheckResult, CheckState, Judged, Report};

use crate::labels::{CheckSpec, ProxyVersion, ServiceLabels};
use crate::table::{Backend, Probed};

/// Probes that may wait for an answer at the same time; more are late rather than a burden.
const MOST_AT_ONCE: usize = 256;

#[derive(Debug)]
pub(crate) struct Checker {
    /// By the address of the server's state, which the value keeps alive.
    watched: HashMap<usize, Watched>,
    /// The backends of the last table.
    followed: Probed,
    permits: Arc<Semaphore>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Watched {
    state: Arc<CheckState>,
    subject: Subject,
    task: AbortHandle,
}

/// What is asked of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    address: SocketAddr,
    spec: CheckSpec,
    /// The server reads nothing before such a header.
    announced: Option<ProxyVersion>,
}

impl Subject {
    fn of(address: SocketAddr, labels: &ServiceLabels, spec: &CheckSpec) -> Self {
        Self { address, spec: spec.clone(), announced: labels.proxy_protocol.send }
    }
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self {
            watched: HashMap::new(),
            followed: Probed::new(),
            permits: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            changed: Arc::default(),
        }
    }

    /// Returns when the verdict about a server has changed since the last time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Probes the servers of these backends, and no others. Costs what differs from the last time.
    pub(crate) fn follow(&mut self, probed: &Probed) {
        let before = std::mem::replace(&mut self.followed, probed.clone());
        let mut gone = HashSet::new();
        let keys = |backend: &Backend| -> Vec<usize> {
            subjects(backend).map(|(state, _)| Arc::as_ptr(state).addr()).collect()
        };
        let mut news = Vec::new();
        for item in before.diff(probed) {
            let (old, new) = match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            gone.extend(old.into_iter().flat_map(|backend| keys(backend)));
            news.extend(new);
        }
        for server in news.iter().flat_map(|backend| &backend.servers) {
            server.check.set_judged(server.judged);
        }
        for (state, subject) in news.iter().flat_map(|backend| subjects(backend)) {
            gone.remove(&Arc::as_ptr(state).addr());
            self.watch(state, subject);
        }
        for watched in gone.iter().filter_map(|key| self.watched.remove(key)) {
            watched.task.abort();
            // Whoever is checked again one day begins anew.
            watched.state.reset();
        }
    }

    fn watch(&mut self, state: &Arc<CheckState>, subject: Subject) {
        let key = Arc::as_ptr(state).addr();
        if self.watched.get(&key).is_some_and(|known| known.subject == subject) {
            return;
        }
        let watch =
            watch(Arc::clone(state), subject.clone(), Arc::clone(&self.permits), Arc::clone(&self.changed));
        let task = tokio::spawn(watch).abort_handle();
        let watched = Watched { state: Arc::clone(state), subject, task };
        if let Some(before) = self.watched.insert(key, watched) {
            before.task.abort();
        }
    }
}

/// The servers of a backend that are asked, and what.
fn subjects(backend: &Backend) -> impl Iterator<Item = (&Arc<CheckState>, Subject)> {
    backend.labels.check.iter().flat_map(move |spec| {
        backend.servers.iter().filter_map(move |server| {
            let subject = Subject::of(server.check_address?, &backend.labels, spec);
            Some((&server.check, subject))
        })
    })
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.watched.values().for_each(|watched| watched.task.abort());
    }
}

/// Probes one server for ever. The first time comes anywhere in the interval, so that servers do not come all at once.
async fn watch(state: Arc<CheckState>, subject: Subject, permits: Arc<Semaphore>, changed: Arc<Notify>) {
    let spec = &subject.spec;
    let began = Instant::now();
    tokio::time::sleep(spec.interval.mul_f64(rand::random::<f64>())).await;
    let mut turns = tokio::time::interval(spec.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        // The semaphore is never closed.
        let Ok(_permit) = permits.acquire().await else { return };
        let report = probe::run(subject.address, spec, subject.announced).await;
        tracing::trace!(address = %subject.address, result = report.result.word(), "checked");
        if state.note(report, spec, began.elapsed()) == Change::Yes {
            let verdict = if state.is_down() { "down" } else { "up" };
            tracing::info!(address = %subject.address, verdict, "the balancer's own check");
            changed.notify_one();
        }
    }
}
