//! The control side of the userspace plane: follows snapshots, keeps one listener per VIP address and worker open,
//! and answers what the plane does.
//!
//! It forwards nothing itself: sockets go to the workers. It never talks to the scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Problem, Protocol, Snapshot};
use event_watcher::publish::{Applied, AppliedMark, Subscriber, applied};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addresses;
use crate::config::Config;
use crate::forward::tcp::Options;
use crate::stats::{Counter, PlaneTotals, VipView};
use crate::table::{self, VipState, Vips};
use crate::worker::{Listen, Worker};

/// Addresses that could not be opened are tried again after this, and with every snapshot.
const RETRY: Duration = Duration::from_secs(5);

/// Listeners on their way to a worker. When a worker is behind, the control side waits for it.
const QUEUE: usize = 256;

/// The plane as others see it.
#[derive(Clone, Debug)]
pub struct Plane {
    shared: Arc<Shared>,
    applied: Applied,
}

#[derive(Debug)]
struct Shared {
    state: ArcSwap<State>,
    problems: ArcSwap<Arc<[Problem]>>,
    n_accept_pauses: Arc<Counter>,
}

/// What is compiled and open, as of the generation that was applied last.
#[derive(Clone, Debug, Default)]
struct State {
    vips: Arc<Vips>,
    open: Arc<BTreeMap<SocketAddr, Open>>,
}

/// An address that is listened on.
#[derive(Clone, Debug)]
struct Open {
    vip: Arc<VipState>,
    stop: CancellationToken,
}

/// Starts the plane: spawns its control task on the current runtime and returns one [`Worker`] per worker thread.
/// Nothing is bound yet: VIPs come with snapshots, and what cannot be bound then is among [`Plane::problems`].
pub fn start(
    config: Config,
    subscriber: Subscriber,
    n_workers: usize,
    cancel: CancellationToken,
) -> (Plane, Vec<Worker>) {
    let (mark, applied) = applied();
    let shared = Arc::new(Shared {
        state: ArcSwap::default(),
        problems: ArcSwap::from_pointee(Arc::from([])),
        n_accept_pauses: Arc::default(),
    });
    let (senders, workers) = (0..n_workers)
        .map(|_| {
            let (sender, listeners) = mpsc::channel(QUEUE);
            let worker = Worker {
                listeners,
                options: Options { connect_timeout: config.connect_timeout },
                drain_timeout: config.drain_timeout,
                n_accept_pauses: Arc::clone(&shared.n_accept_pauses),
                cancel: cancel.clone(),
            };
            (sender, worker)
        })
        .unzip();
    let follower = Follower {
        config,
        workers: senders,
        cancel,
        shared: Arc::clone(&shared),
        snapshot: Arc::default(),
        state: State::default(),
        closed: Vec::new(),
    };
    tokio::spawn(follower.follow(subscriber, mark));
    (Plane { shared, applied }, workers)
}

impl Plane {
    /// The generation that new connections follow.
    pub fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// VIPs that are not served, each with the reason.
    pub fn problems(&self) -> Arc<[Problem]> {
        Arc::clone(&self.shared.problems.load())
    }

    /// Every VIP with its endpoints and counters, in key order.
    pub fn vips(&self) -> Vec<VipView> {
        let state = self.shared.state.load();
        state.vips.values().map(|vip| vip.view(&|address| state.open.contains_key(&address))).collect()
    }

    /// The addresses that are listened on.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.shared.state.load().open.keys().copied().collect()
    }

    pub fn totals(&self) -> PlaneTotals {
        let vips = self.vips();
        PlaneTotals {
            n_vips: vips.len(),
            n_listening: vips.iter().map(|vip| vip.listening.len()).sum(),
            n_in_flight: vips.iter().map(|vip| u64::from(vip.n_in_flight)).sum(),
            n_accept_pauses: self.shared.n_accept_pauses.value(),
        }
    }
}

struct Follower {
    config: Config,
    workers: Vec<mpsc::Sender<Listen>>,
    cancel: CancellationToken,
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    state: State,
    /// Addresses that could not be opened.
    closed: Vec<SocketAddr>,
}

impl Follower {
    async fn follow(mut self, mut subscriber: Subscriber, mark: AppliedMark) {
        let cancel = self.cancel.clone();
        let mut newest = Some(subscriber.latest()).filter(|snapshot| snapshot.is_synced());
        let mut retry_at = Instant::now() + RETRY;
        loop {
            if let Some(snapshot) = newest.take() {
                let generation = snapshot.generation;
                let vips = table::compile(&self.state.vips, &self.snapshot, &snapshot, self.config.policy);
                self.snapshot = snapshot;
                let is_new = !Arc::ptr_eq(&vips, &self.state.vips);
                self.state.vips = vips;
                if is_new || !self.closed.is_empty() {
                    self.listen().await;
                }
                mark.set(generation);
                retry_at = Instant::now() + RETRY;
            }
            tokio::select! {
                changed = subscriber.changed() => match changed {
                    Ok(snapshot) => newest = Some(snapshot),
                    // What is open stays open; only the end of the process ends it.
                    Err(_) => return cancel.cancelled().await,
                },
                () = tokio::time::sleep_until(retry_at), if !self.closed.is_empty() => {
                    self.listen().await;
                    retry_at = Instant::now() + RETRY;
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Opens what should be open and is not, then closes what should not be, and tells what could not be done.
    async fn listen(&mut self) {
        let mut problems = Vec::new();
        let mut open = BTreeMap::new();
        self.closed.clear();
        for vip in self.state.vips.values() {
            for address in vip.socket_addresses() {
                if vip.key.protocol == Protocol::Udp {
                    problems.push(not_served(
                        vip,
                        address,
                        "UDP is not served by the userspace plane yet".into(),
                        "use a TCP port, or a kernel plane once there is one".into(),
                    ));
                    continue;
                }
                if let Some(known) = self.state.open.get(&address).filter(|o| Arc::ptr_eq(&o.vip, vip)) {
                    open.insert(address, known.clone());
                    continue;
                }
                match addresses::listen(address, self.workers.len()) {
                    Ok(sockets) => {
                        let stop = self.cancel.child_token();
                        for (socket, worker) in sockets.into_iter().zip(&self.workers) {
                            let listen = Listen { socket, vip: Arc::clone(vip), stop: stop.clone() };
                            // A worker that has stopped takes nothing any more; the plane is stopping with it.
                            let _ = worker.send(listen).await;
                        }
                        open.insert(address, Open { vip: Arc::clone(vip), stop });
                    }
                    Err(error) => {
                        let hint = error.hint(&self.config.pools);
                        problems.push(not_served(vip, address, format!("{error}: {}", error.source), hint));
                        self.closed.push(address);
                    }
                }
            }
        }
        for (address, old) in self.state.open.iter() {
            if !open.get(address).is_some_and(|new| Arc::ptr_eq(&new.vip, &old.vip)) {
                old.stop.cancel();
            }
        }
        self.state.open = Arc::new(open);
        self.shared.state.store(Arc::new(self.state.clone()));
        if ***self.shared.problems.load() != *problems {
            self.shared.problems.store(Arc::new(problems.into()));
        }
    }
}

fn not_served(vip: &VipState, address: SocketAddr, what: String, hint: String) -> Problem {
    Problem {
        app: vip.first_service().map(|service| service.app),
        at: format!("VIP {} at {address} ({})", vip.key.target, vip.key.protocol),
        what,
        hint,
    }
}
