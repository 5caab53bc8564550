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
use crate::kernel::driver::Ticked;
use crate::kernel::serving::{Serving, Told};
use crate::kernel::{ChoiceView, Chosen, Frontend, OnExit};
use crate::leaving::Leaving;
use crate::stats::{Counter, PlaneTotals, UdpCounters, VipView};
use crate::table::{self, Frontends, Owner, VipState, Vips};
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
    kernel: Arc<ArcSwap<Told>>,
    /// Cancelled when the control task has done its last work.
    ended: CancellationToken,
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
    owner: Arc<Owner>,
    stop: CancellationToken,
}

/// Starts the userspace plane, see [`start_on`].
pub fn start(
    config: Config,
    subscriber: Subscriber,
    n_workers: usize,
    cancel: CancellationToken,
) -> (Plane, Vec<Worker>) {
    start_on(Chosen::userspace(), OnExit::Keep, config, subscriber, n_workers, cancel)
}

/// Starts the plane that was chosen: spawns its control task on the current runtime and returns one [`Worker`] per
/// worker thread. Nothing is in force yet: VIPs come with snapshots, and what cannot be served then is among
/// [`Plane::problems`].
pub fn start_on(
    chosen: Chosen,
    on_exit: OnExit,
    config: Config,
    subscriber: Subscriber,
    n_workers: usize,
    cancel: CancellationToken,
) -> (Plane, Vec<Worker>) {
    let (mark, applied) = applied();
    let serving = Serving::new(chosen, on_exit);
    let ended = CancellationToken::new();
    let shared = Arc::new(Shared {
        state: ArcSwap::default(),
        problems: ArcSwap::from_pointee(Arc::from([])),
        counts: Arc::default(),
        udp: Arc::default(),
        n_moved: Counter::default(),
        kernel: serving.told(),
        ended: ended.clone(),
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
        leaving: Leaving::default(),
        closed: false,
        frontends: Frontends::default(),
        serving,
    };
    tokio::spawn(async move {
        let _ended = ended.drop_guard();
        follower.follow(subscriber, mark).await;
    });
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
        self.views(|_| true)
    }

    /// Of the same, those that ever had a connection or flow.
    pub fn used_vips(&self) -> Vec<VipView> {
        let kernel = self.shared.kernel.load();
        self.views(|vip| vip.n_connections(&kernel) > 0)
    }

    fn views(&self, is_wanted: impl Fn(&VipState) -> bool) -> Vec<VipView> {
        let (state, kernel) = (self.shared.state.load(), self.shared.kernel.load());
        let serves = |frontend| state.open.contains_key(&frontend) || kernel.served.contains(&frontend);
        let view = |vip: &Arc<VipState>| {
            let mut view = vip.view(&serves);
            view.plane = kernel.choice.active;
            view.counts = kernel.counts(view.protocol);
            for frontend in vip.frontends() {
                kernel.add_counters(&mut view, &frontend);
            }
            view
        };
        state.vips.values().filter(|vip| is_wanted(vip)).map(view).collect()
    }

    /// Which plane serves, and why no better one does.
    pub fn choice(&self) -> ChoiceView {
        self.shared.kernel.load().choice.clone()
    }

    /// Waits, after the plane was cancelled, until the kernel is as it should be left.
    pub async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// What is listened on, old addresses of VIPs that moved or are gone included.
    pub fn listening(&self) -> Vec<Frontend> {
        self.shared.state.load().open.keys().copied().collect()
    }

    pub fn totals(&self) -> PlaneTotals {
        let (state, kernel) = (self.shared.state.load(), self.shared.kernel.load());
        let serves = |frontend| state.open.contains_key(&frontend) || kernel.served.contains(&frontend);
        PlaneTotals {
            n_vips: state.vips.len(),
            n_listening: state.vips.values().map(|vip| vip.n_listening(&serves)).sum(),
            n_in_flight: state.vips.values().map(|vip| vip.n_in_flight()).sum(),
            n_connections: state.vips.values().map(|vip| vip.n_connections(&kernel)).sum(),
            n_accept_pauses: self.shared.counts.n_accept_pauses.value(),
            n_refused_for_descriptors: self.shared.counts.n_refused_for_descriptors.value(),
            n_moved: self.shared.n_moved.value(),
            n_flows_evicted: self.shared.udp.n_evicted.value(),
            n_datagrams_dropped: self.shared.udp.n_dropped.value(),
            n_datagrams_refused: self.shared.udp.n_refused.value(),
            n_unheard: kernel.counted.n_unheard,
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
    leaving: Leaving,
    /// What should be served, by whom.
    frontends: Frontends,
    serving: Serving,
}

impl Follower {
    async fn follow(mut self, subscriber: Subscriber, mark: AppliedMark) {
        self.follow_until_cancelled(subscriber, mark).await;
        self.serving.stop().await;
    }

    async fn follow_until_cancelled(&mut self, mut subscriber: Subscriber, mark: AppliedMark) {
        let cancel = self.cancel.clone();
        let mut unmarked = None;
        let mut newest = Some(subscriber.latest()).filter(|snapshot| snapshot.is_synced());
        let mut retry_at = Instant::now() + RETRY;
        loop {
            if let Some(snapshot) = newest.take() {
                let generation = snapshot.generation;
                let (vips, outcome) = table::compile(
                    &self.state.vips,
                    &mut self.leaving,
                    &self.snapshot,
                    &snapshot,
                    &self.config,
                );
                let old = std::mem::replace(&mut self.snapshot, snapshot);
                self.state.vips = vips;
                if outcome.n_moved > 0 {
                    tracing::warn!(n_moved = outcome.n_moved, "VIPs were given other addresses");
                    self.shared.n_moved.add(outcome.n_moved);
                }
                if outcome.differs || self.closed {
                    self.serve().await;
                } else if self.serving.is_kernel() {
                    self.update(&old).await;
                }
                self.take_over().await;
                unmarked = Some(generation);
                retry_at = Instant::now() + RETRY;
            }
            // What the kernel has not taken yet is not applied.
            if self.serving.is_applied()
                && let Some(generation) = unmarked.take()
            {
                mark.set(generation);
            }
            let (kernel_at, look_at) = (self.serving.next(), self.frontends.look_at);
            tokio::select! {
                changed = subscriber.changed() => match changed {
                    Ok(snapshot) => newest = Some(snapshot),
                    // What is open stays open; only the end of the process ends it.
                    Err(_) => return cancel.cancelled().await,
                },
                () = tokio::time::sleep_until(retry_at), if self.closed || self.serving.is_taking_over() => {
                    if self.closed {
                        self.serve().await;
                    }
                    self.take_over().await;
                    retry_at = Instant::now() + RETRY;
                }
                () = tokio::time::sleep_until(look_at.unwrap_or(retry_at)), if look_at.is_some() => {
                    self.serve().await;
                }
                () = tokio::time::sleep_until(kernel_at.unwrap_or(retry_at)), if kernel_at.is_some() => {
                    if self.serving.tick().await == Ticked::Differs {
                        self.tell(self.serving.problems(&self.frontends.served));
                    }
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Makes the addresses that VIPs have now, and no others, served.
    async fn serve(&mut self) {
        self.frontends = table::frontends(&self.state.vips, &mut self.leaving);
        if self.serving.is_kernel() {
            let frontends = &self.frontends;
            let services = frontends.served.iter().map(|(f, vip)| frontends.service(*f, vip)).collect();
            let mut gone = self.serving.frontends();
            gone.retain(|frontend| !frontends.served.contains_key(frontend));
            self.serving.set(services, gone).await;
            self.shared.state.store(Arc::new(self.state.clone()));
            self.tell(self.serving.problems(&self.frontends.served));
        } else {
            self.listen().await;
        }
    }

    /// Tells the kernel the endpoints of the VIPs whose endpoints are not those of `old`.
    async fn update(&mut self, old: &Snapshot) {
        let services = table::touched(&self.state.vips, old, &self.snapshot)
            .flat_map(|vip| self.frontends.services_of(vip))
            .collect();
        if self.serving.set(services, Vec::new()).await == Ticked::Differs {
            self.tell(self.serving.problems(&self.frontends.served));
        }
    }

    /// Serving again tells what has changed, and changes nothing else.
    async fn take_over(&mut self) {
        if self.serving.take_over(&self.frontends.served).await == Ticked::Differs {
            self.serve().await;
        }
    }

    /// `found` are the plane's own; the VIPs' stand beside them.
    fn tell(&self, found: Vec<Problem>) {
        let of_vips = self.state.vips.values().flat_map(|vip| vip.problems());
        let problems: Vec<Problem> = of_vips.chain(found).collect();
        if ***self.shared.problems.load() != *problems {
            self.shared.problems.store(Arc::new(problems.into()));
        }
    }

    /// Opens what should be open and is not, then closes what should not be, and tells what could not be done.
    async fn listen(&mut self) {
        let mut open = BTreeMap::new();
        self.closed = false;
        let mut problems = self.serving.problems(&self.frontends.served);
        for (frontend, vip) in self.frontends.served.clone() {
            // An address that changed hands keeps its sockets: closing one resets what connects at that moment, and
            // ends flows.
            if let Some(known) = self.state.open.get(&frontend) {
                known.owner.before.store(self.frontends.before.get(&frontend).cloned());
                known.owner.now.store(vip);
                open.insert(frontend, known.clone());
                continue;
            }
            match Socket::open(frontend, self.workers.len()) {
                Ok(sockets) => {
                    let (owner, stop) = (Arc::new(Owner::new(vip)), self.cancel.child_token());
                    for (socket, worker) in sockets.into_iter().zip(&self.workers) {
                        let listen = Listen { socket, owner: Arc::clone(&owner), stop: stop.clone() };
                        // A worker that has stopped takes nothing any more; the plane is stopping with it.
                        let _ = worker.send(listen).await;
                    }
                    open.insert(frontend, Open { owner, stop });
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
        for (_, old) in self.state.open.iter().filter(|(frontend, _)| !open.contains_key(frontend)) {
            old.stop.cancel();
        }
        self.state.open = Arc::new(open);
        self.shared.state.store(Arc::new(self.state.clone()));
        self.tell(problems);
    }
}

pub(crate) fn not_served(vip: &VipState, address: SocketAddr, what: String, hint: String) -> Problem {
    Problem {
        app: vip.first_service().map(|service| service.app),
        at: format!("VIP {} at {address} ({})", vip.key.target, vip.key.protocol),
        what,
        hint,
    }
}
