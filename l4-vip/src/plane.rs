//! The control side of the userspace plane: follows snapshots, keeps one listener per VIP address and worker open,
//! and answers what the plane does.
//!
//! It forwards nothing itself: sockets go to the workers. It never talks to the scheduler.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::kernel::driver::Ticked;
use crate::kernel::serving::{Serving, Told};
use crate::kernel::{ChoiceView, Chosen, Frontend, OnExit, Service};
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
    kernel: Arc<ArcSwap<Told>>,
    /// Cancelled when the control task has done its last work.
    ended: CancellationToken,
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
        n_accept_pauses: Arc::default(),
        kernel: serving.told(),
        ended: ended.clone(),
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
        let (state, kernel) = (self.shared.state.load(), self.shared.kernel.load());
        let view = |vip: &Arc<VipState>| {
            let frontend = |address| Frontend { protocol: vip.key.protocol, address };
            let mut view = vip.view(&|address| {
                state.open.contains_key(&address) || kernel.served.contains(&frontend(address))
            });
            view.plane = kernel.choice.active;
            for address in vip.socket_addresses() {
                add_kernel_counters(&mut view, &kernel, &frontend(address));
            }
            view
        };
        state.vips.values().map(view).collect()
    }

    /// Which plane serves, and why no better one does.
    pub fn choice(&self) -> ChoiceView {
        self.shared.kernel.load().choice.clone()
    }

    /// Waits, after the plane was cancelled, until the kernel is as it should be left.
    pub async fn ended(&self) {
        self.shared.ended.cancelled().await;
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

/// What the kernel counted of one of the VIP's addresses.
fn add_kernel_counters(view: &mut VipView, kernel: &Told, frontend: &Frontend) {
    let counted = kernel.frontend(frontend);
    view.counters.n_connections += counted.n_connections;
    view.counters.n_no_endpoint += counted.n_refused;
    for endpoint in &mut view.endpoints {
        endpoint.n_picked += kernel.backend(frontend, endpoint.address).n_connections;
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
    serving: Serving,
}

impl Follower {
    async fn follow(mut self, subscriber: Subscriber, mark: AppliedMark) {
        self.follow_until_cancelled(subscriber, mark).await;
        self.serving.stop().await;
    }

    async fn follow_until_cancelled(&mut self, mut subscriber: Subscriber, mark: AppliedMark) {
        let cancel = self.cancel.clone();
        let mut newest = Some(subscriber.latest()).filter(|snapshot| snapshot.is_synced());
        let mut retry_at = Instant::now() + RETRY;
        let mut unmarked = None;
        loop {
            if let Some(snapshot) = newest.take() {
                let generation = snapshot.generation;
                let vips = table::compile(&self.state.vips, &self.snapshot, &snapshot, self.config.policy);
                let is_new = !Arc::ptr_eq(&vips, &self.state.vips);
                let old = std::mem::replace(&mut self.snapshot, snapshot);
                self.state.vips = vips;
                if self.serving.is_kernel() {
                    self.program(&old).await;
                } else if is_new || !self.closed.is_empty() {
                    self.listen().await;
                }
                self.serving.take_over(self.served()).await;
                unmarked = Some(generation);
                retry_at = Instant::now() + RETRY;
            }
            // What the kernel has not taken yet is not applied.
            if self.serving.is_applied()
                && let Some(generation) = unmarked.take()
            {
                mark.set(generation);
            }
            let kernel_at = self.serving.next();
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
                () = tokio::time::sleep_until(kernel_at.unwrap_or(retry_at)), if kernel_at.is_some() => {
                    if self.serving.tick().await == Ticked::Differs {
                        self.tell_kernel_problems();
                    }
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Tells the kernel what differs from `old`.
    async fn program(&mut self, old: &Snapshot) {
        let (services, gone) = match table::touched(&self.state.vips, old, &self.snapshot) {
            Some(touched) => (touched.iter().flat_map(|vip| table::services(vip)).collect(), Vec::new()),
            None => {
                let services: Vec<Service> =
                    self.state.vips.values().flat_map(|vip| table::services(vip)).collect();
                let wanted: BTreeSet<Frontend> = services.iter().map(|service| service.frontend).collect();
                let mut gone = self.serving.frontends();
                gone.retain(|frontend| !wanted.contains(frontend));
                (services, gone)
            }
        };
        self.serving.set(services, gone).await;
        self.shared.state.store(Arc::new(self.state.clone()));
        self.tell_kernel_problems();
    }

    fn served(&self) -> Vec<Frontend> {
        let vips = self.state.vips.values();
        let of = |vip: &Arc<VipState>| {
            let protocol = vip.key.protocol;
            vip.socket_addresses().into_iter().map(move |address| Frontend { protocol, address })
        };
        vips.flat_map(of).collect()
    }

    fn tell_kernel_problems(&self) {
        let kernel = self.shared.kernel.load();
        let plane = kernel.choice.active.as_str();
        let failure = kernel.choice.failure.iter().map(|what| Problem {
            app: None,
            at: format!("{plane} VIP plane"),
            what: what.clone(),
            hint: "what was in force stays in force; it is tried again every few seconds".into(),
        });
        let refused = self.state.vips.values().flat_map(|vip| {
            vip.socket_addresses().into_iter().filter_map(|address| {
                let reason = kernel.refused.get(&Frontend { protocol: vip.key.protocol, address })?;
                let hint = "remove VIPs that nobody needs, or choose another --vip-plane";
                Some(not_served(vip, address, reason.clone(), hint.into()))
            })
        });
        self.tell(failure.chain(refused).collect());
    }

    fn tell(&self, problems: Vec<Problem>) {
        if ***self.shared.problems.load() != *problems {
            self.shared.problems.store(Arc::new(problems.into()));
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
        self.tell(problems);
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
