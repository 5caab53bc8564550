//! The control side of the userspace plane: follows snapshots, keeps one socket per VIP address and worker open,
//! and answers what the plane does.
//!
//! It forwards nothing itself: sockets go to the workers. It never talks to the scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Problem, Snapshot};
use event_watcher::publish::{Applied, AppliedMark, Subscriber, applied};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::forward::descriptors::Ceiling;
use crate::forward::tcp::Options;
use crate::kernel::Frontend;
use crate::stats::{Counter, PlaneTotals, UdpCounters, VipView};
use crate::table::{self, VipState, Vips};
use crate::worker::{Counts, Listen, Socket, UdpOptions, Worker};

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
    counts: Arc<Counts>,
    udp: Arc<UdpCounters>,
    n_moved: Counter,
}

/// What is compiled and open, as of the generation that was applied last.
#[derive(Clone, Debug, Default)]
struct State {
    vips: Arc<Vips>,
    open: Arc<BTreeMap<Frontend, Open>>,
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
        counts: Arc::default(),
        udp: Arc::default(),
        n_moved: Counter::default(),
    });
    let ceiling = Ceiling::of_process();
    let (senders, workers) = (0..n_workers)
        .map(|_| {
            let (sender, listeners) = mpsc::channel(QUEUE);
            let worker = Worker {
                listeners,
                options: Options { connect_timeout: config.connect_timeout, idle_timeout: config.tcp_idle },
                udp: UdpOptions {
                    max_flows: config.max_udp_flows.div_ceil(n_workers),
                    counters: Arc::clone(&shared.udp),
                },
                ceiling,
                drain_timeout: config.drain_timeout,
                counts: Arc::clone(&shared.counts),
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
        closed: false,
        look_at: None,
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
        state.vips.values().map(|vip| vip.view(&|frontend| state.open.contains_key(&frontend))).collect()
    }

    /// What is listened on, old addresses of VIPs that moved included.
    pub fn listening(&self) -> Vec<Frontend> {
        self.shared.state.load().open.keys().copied().collect()
    }

    pub fn totals(&self) -> PlaneTotals {
        let vips = self.vips();
        PlaneTotals {
            n_vips: vips.len(),
            n_listening: vips.iter().map(|vip| vip.listening.len()).sum(),
            n_in_flight: vips.iter().map(|vip| u64::from(vip.n_in_flight)).sum(),
            n_accept_pauses: self.shared.counts.n_accept_pauses.value(),
            n_refused_for_descriptors: self.shared.counts.n_refused_for_descriptors.value(),
            n_moved: self.shared.n_moved.value(),
            n_flows_evicted: self.shared.udp.n_evicted.value(),
            n_datagrams_dropped: self.shared.udp.n_dropped.value(),
            n_datagrams_refused: self.shared.udp.n_refused.value(),
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
    /// Some address could not be opened.
    closed: bool,
    /// When the old address of a VIP that moved has been served for long enough.
    look_at: Option<Instant>,
}

impl Follower {
    async fn follow(mut self, mut subscriber: Subscriber, mark: AppliedMark) {
        let cancel = self.cancel.clone();
        let mut newest = Some(subscriber.latest()).filter(|snapshot| snapshot.is_synced());
        let mut retry_at = Instant::now() + RETRY;
        loop {
            if let Some(snapshot) = newest.take() {
                let generation = snapshot.generation;
                let (vips, outcome) =
                    table::compile(&self.state.vips, &self.snapshot, &snapshot, &self.config);
                self.snapshot = snapshot;
                self.state.vips = vips;
                if outcome.n_moved > 0 {
                    tracing::warn!(n_moved = outcome.n_moved, "VIPs were given other addresses");
                    self.shared.n_moved.add(outcome.n_moved);
                }
                if outcome.differs || self.closed {
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
                () = tokio::time::sleep_until(retry_at), if self.closed => {
                    self.listen().await;
                    retry_at = Instant::now() + RETRY;
                }
                () = tokio::time::sleep_until(self.look_at.unwrap_or(retry_at)), if self.look_at.is_some() => {
                    self.listen().await;
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Opens what should be open and is not, then closes what should not be, and tells what could not be done.
    async fn listen(&mut self) {
        let mut open = BTreeMap::new();
        self.closed = false;
        let (frontends, look_at) = table::frontends(&self.state.vips);
        self.look_at = look_at;
        let mut problems: Vec<Problem> = self.state.vips.values().flat_map(|vip| vip.problems()).collect();
        for (frontend, vip) in frontends {
            if let Some(known) = self.state.open.get(&frontend).filter(|o| Arc::ptr_eq(&o.vip, &vip)) {
                open.insert(frontend, known.clone());
                continue;
            }
            match Socket::open(frontend, self.workers.len()) {
                Ok(sockets) => {
                    let stop = self.cancel.child_token();
                    for (socket, worker) in sockets.into_iter().zip(&self.workers) {
                        let listen = Listen { socket, vip: Arc::clone(&vip), stop: stop.clone() };
                        // A worker that has stopped takes nothing any more; the plane is stopping with it.
                        let _ = worker.send(listen).await;
                    }
                    open.insert(frontend, Open { vip, stop });
                }
                Err(error) => {
                    let hint = error.hint(&self.config.pools);
                    problems.push(not_served(
                        &vip,
                        frontend.address,
                        format!("{error}: {}", error.source),
                        hint,
                    ));
                    self.closed = true;
                }
            }
        }
        for (frontend, old) in self.state.open.iter() {
            if !open.get(frontend).is_some_and(|new| Arc::ptr_eq(&new.vip, &old.vip)) {
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
