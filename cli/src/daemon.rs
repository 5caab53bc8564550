//! The wiring: the planes, the watcher, the stats server and, for `dev`, the scheduler, put together and taken apart.
//!
//! [`build`] is all of it. Everything fixed is bound or nothing is; what starts last stops first, so traffic is
//! drained before instances are stopped.

mod bind;
mod dev;
mod loopback;
mod node;
mod plane_config;
mod resolver;

pub use dev::scheduler_config;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use event_watcher::catalog::VipPool;
use event_watcher::publish::{self, Applied, Publisher, Subscriber};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Addresses, Admin, Plane, Sources};
use crate::args::{Compat, Mode, PlaneName};
use crate::config::Config;
use crate::failure::Failure;
use crate::{output, planes, readiness, runtime, scheduler, shutdown};

/// A daemon that has bound everything and serves as soon as the scheduler has been read.
pub struct Running {
    pub addresses: Addresses,
    /// Cancelling it drains and stops everything.
    pub shutdown: CancellationToken,
    /// What every plane has applied.
    pub applied: Applied,
    subscriber: Subscriber,
    workers: Vec<JoinHandle<()>>,
    /// The stats server tells that the process stops until the planes have drained.
    drained: CancellationToken,
    scheduler: Option<(scheduler::Running, CancellationToken)>,
    /// It may have to put the kernel in order before the process ends.
    vip_plane: Option<l4_vip::Plane>,
    /// Nobody else's as long as DNS listens there.
    _resolver: Option<dev::Resolver>,
    demo: bool,
}

/// Binds and starts everything on the current runtime; the workers get threads of their own.
pub async fn build(mut config: Config) -> Result<Running, Failure> {
    let n_workers = runtime::n_workers(config.workers);
    let vip_pools = config.vip_pools()?;
    let resolver_addresses = resolver::addresses(&mut config);
    let resolver = dev::Resolver::claim(&config);
    let dns_config = plane_config::dns(&config, resolver.as_ref().map(|resolver| resolver.address))?;
    bind::probe(&config)?;
    let shutdown = CancellationToken::new();
    tokio::spawn(resolver_addresses.keep(shutdown.clone()));
    // Whatever was started when a later part fails stops with this.
    let started = shutdown.clone().drop_guard();
    let (publisher, subscriber) = publish::channel();
    let mut addresses = Addresses::default();
    let mut parts: Vec<(PlaneName, Arc<dyn Plane>)> = Vec::new();
    let mut haproxy = None;

    let stats = TcpListener::bind(config.stats.listen)
        .await
        .map_err(|e| bind::failure(config.stats.listen, "the stats page", "--stats-listen", &e))?;
    addresses.stats = stats.local_addr().ok();

    let (mut vip_workers, mut http_workers, mut dns_workers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut vips_applied, mut vip_plane, mut vip_traffic) = (None, None, None);
    if config.runs(PlaneName::Vip) {
        let vip = plane_config::vip(&config, vip_pools.clone());
        let chosen = l4_vip::kernel::choose(plane_config::vip_choice(&config, vip_pools.clone()))
            .map_err(|e| Failure::chain("the VIP plane did not start", &e).hint(e.hint))?;
        let on_exit = plane_config::vip_on_exit(&config);
        let (plane, workers) =
            l4_vip::start_on(chosen, on_exit, vip, publisher.subscribe(), n_workers, shutdown.clone());
        vip_plane = Some(plane.clone());
        vips_applied = Some(plane.applied());
        vip_traffic = Some(planes::vip_traffic(plane.clone()));
        vip_workers = workers;
        parts.push((PlaneName::Vip, Arc::new(planes::Vip(plane))));
    }
    if config.runs(PlaneName::Http) {
        let http = plane_config::http(&config)?;
        let (plane, workers) = lb_http::start(http, publisher.subscribe(), n_workers, shutdown.clone())
            .await
            .map_err(|e| Failure::chain("the HTTP plane did not start", &e).hint(e.hint()))?;
        addresses.http = plane.http_address();
        addresses.https = plane.https_address();
        addresses.appid = plane.appid_address();
        addresses.service = Some(config.service.address);
        http_workers = workers;
        let plane = Arc::new(planes::Http(plane));
        haproxy = Some(Arc::clone(&plane) as Arc<dyn admin::Haproxy>);
        parts.push((PlaneName::Http, plane));
    }
    if config.runs(PlaneName::Dns) {
        // Names of new VIPs wait for the plane that serves them.
        let started =
            dns::start(dns_config, publisher.subscribe(), vips_applied, n_workers, shutdown.clone());
        let (plane, workers) =
            started.await.map_err(|e| Failure::chain("the DNS plane did not start", &e).hint(e.hint()))?;
        addresses.dns = plane.addresses().to_vec();
        addresses.dns_zones = plane.zones();
        addresses.dns_http = plane.http_address();
        if let Some(traffic) = vip_traffic {
            plane.set_vip_traffic(traffic);
        }
        addresses.dns53 = addresses.dns.iter().copied().find(|address| address.port() == 53);
        dns_workers = workers;
        parts.push((PlaneName::Dns, Arc::new(planes::Dns(plane))));
    }
    let applied = readiness::of_all(parts.iter().map(|(_, plane)| plane.applied()).collect());

    let mut scheduler = None;
    if config.mode == Mode::Dev {
        // Its instances outlive the planes' drain, so that what is in flight can finish.
        let stop = CancellationToken::new();
        let running = scheduler::start(dev::scheduler_config(&config)?, stop.clone())
            .await
            .map_err(|e| Failure::chain("the scheduler did not start", &e).hint(e.hint()))?;
        addresses.scheduler = Some(running.address);
        scheduler = Some((running, stop));
    }
    let demo = config.mode == Mode::Dev && config.scheduler.demo;
    let mut running = Running {
        addresses,
        shutdown: started.disarm(),
        applied,
        subscriber,
        workers: Vec::with_capacity(n_workers),
        drained: CancellationToken::new(),
        scheduler,
        vip_plane,
        _resolver: resolver,
        demo,
    };
    let work = Work { stats, parts, haproxy, publisher, vip_pools, vip_workers, http_workers, dns_workers };
    match running.begin(&config, work).await {
        Ok(()) => Ok(running),
        Err(failure) => {
            // The scheduler may have started instances of an earlier run again.
            running.stop().await;
            Err(failure)
        }
    }
}

/// What is bound and waits for its task or thread.
struct Work {
    stats: TcpListener,
    parts: Vec<(PlaneName, Arc<dyn Plane>)>,
    haproxy: Option<Arc<dyn admin::Haproxy>>,
    publisher: Publisher,
    vip_pools: Vec<VipPool>,
    vip_workers: Vec<l4_vip::Worker>,
    http_workers: Vec<lb_http::Worker>,
    dns_workers: Vec<dns::Worker>,
}

impl Running {
    async fn begin(&mut self, config: &Config, work: Work) -> Result<(), Failure> {
        let watcher = plane_config::watcher(config, self.addresses.scheduler, work.vip_pools).await?;
        let watcher = event_watcher::start(watcher, work.publisher, self.shutdown.clone())
            .map_err(|e| Failure::chain("the watcher did not start", &e))?;
        let admin = Admin::start(Sources {
            subscriber: self.subscriber.clone(),
            watcher: Some(watcher),
            signals: match config.compat.contains(&Compat::MarathonLb) {
                true => admin::Signals::ByGetToo,
                false => admin::Signals::ByPost,
            },
            planes: work.parts,
            haproxy: work.haproxy,
            vips: self
                .vip_plane
                .clone()
                .map(|plane| Arc::new(planes::Vip(plane)) as Arc<dyn admin::VipPlane>),
            applied: self.applied.clone(),
            addresses: self.addresses.clone(),
            config: config.to_toml()?,
            stopping: self.shutdown.clone(),
            closing: self.drained.clone(),
        });
        tokio::spawn(admin::serve(work.stats, admin));
        let (mut vip, mut http, mut dns) =
            (work.vip_workers.into_iter(), work.http_workers.into_iter(), work.dns_workers.into_iter());
        for index in 0..runtime::n_workers(config.workers) {
            let (vip, http, dns) = (vip.next(), http.next(), dns.next());
            let serve = move || async move {
                tokio::join!(
                    async {
                        if let Some(worker) = vip {
                            worker.run().await
                        }
                    },
                    async {
                        if let Some(worker) = http {
                            worker.run().await
                        }
                    },
                    async {
                        if let Some(worker) = dns {
                            worker.run().await
                        }
                    },
                );
            };
            let thread = runtime::spawn_worker(format!("worker-{index}"), serve)
                .map_err(|e| Failure::chain("cannot start a worker thread", &e))?;
            self.workers.push(thread);
        }
        match &self.scheduler {
            Some((scheduler, _)) if self.demo => dev::ensure_demo(scheduler).await,
            _ => Ok(()),
        }
    }

    /// Waits until every plane serves what the scheduler runs; in `dev`, also for the demo app's first instance.
    /// Does not return before the first sync, however long that takes.
    pub async fn ready(&self) {
        // The planes' own mark ends only with the planes.
        let _ = self.applied.clone().reached(event_watcher::catalog::Generation(1)).await;
        if self.demo {
            dev::demo_serves(self.subscriber.clone(), self.applied.clone()).await;
        }
    }

    /// Drains and stops everything, in order. Returns when no thread and no instance is left.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let workers = self.workers;
        let joined =
            tokio::task::spawn_blocking(move || workers.into_iter().map(JoinHandle::join).all(|r| r.is_ok()));
        if !matches!(joined.await, Ok(true)) {
            tracing::error!("a worker thread ended badly");
        }
        if let Some(plane) = self.vip_plane {
            plane.ended().await;
        }
        self.drained.cancel();
        if let Some((scheduler, stop)) = self.scheduler {
            stop.cancel();
            scheduler.stopped().await;
        }
    }
}

/// `waymark dev` and `waymark serve`: build, say so, serve until told to stop.
pub fn run(config: Config) -> Result<ExitCode, Failure> {
    start_logging();
    raise_descriptor_limit();
    runtime::single_threaded("control")?.block_on(async {
        let stop = shutdown::on_signals()?;
        let ready_file = config.ready.file.clone();
        let (mode, install) = (config.mode, config.dns.install);
        let running = build(config).await?;
        if mode == Mode::Serve {
            runtime::yield_to_workers();
        }
        let mut installed = None;
        let ready = async {
            running.ready().await;
            if install {
                installed = Some(resolver::install(&running.addresses)?);
            }
            if let Some(path) = &ready_file {
                write_ready_file(path, &running.addresses)?;
            }
            match mode {
                Mode::Dev => {
                    output::print(&dev::banner(&running.addresses, running.demo, output::Style::of_stdout()))
                }
                Mode::Serve => Ok(()),
            }
        };
        let outcome = tokio::select! {
            outcome = ready => outcome,
            () = stop.cancelled() => Ok(()),
        };
        if outcome.is_ok() {
            stop.cancelled().await;
        }
        // Before names stop being answered.
        drop(installed);
        running.stop().await;
        if let Some(path) = &ready_file {
            // Whoever reads it later would look for a process that is gone.
            let _ = std::fs::remove_file(path);
        }
        outcome.map(|()| ExitCode::SUCCESS)
    })
}

/// Readers see the whole file or none.
fn write_ready_file(path: &Path, addresses: &Addresses) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        Failure::chain(format!("cannot write {}", path.display()), &e)
            .hint("--ready-file names a file in a directory that exists")
    };
    let json = serde_json::to_vec_pretty(addresses).map_err(|e| failed(e.into()))?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, json).and_then(|()| std::fs::rename(&partial, path)).map_err(failed)
}

fn start_logging() {
    let ours = "cli=info,event_watcher=info,lb_http=info,l4_vip=info,dns=info,warn";
    let filter = tracing_subscriber::EnvFilter::try_from_env("WAYMARK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(ours));
    // A second daemon in one process keeps the first one's log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// Every connection through a plane needs two descriptors; the usual soft limit of 1,024 is for programs that use
/// `select(2)`. Root may also go beyond a hard limit that is a system's default.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call gets a pointer to a valid rlimit that outlives it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        tracing::warn!("the limit of open files could not be read");
        return;
    }
    let set = |hard| {
        let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: the same.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 }
    };
    let is_default = (LEAST_DEFAULT_LIMIT..WANTED_DESCRIPTORS).contains(&limit.rlim_max);
    let went_beyond = is_default && set(WANTED_DESCRIPTORS);
    if !went_beyond && !set(limit.rlim_max) {
        tracing::warn!("the limit of open files could not be raised");
    }
}

/// What systemd gives to services; enough for a quarter of a million connections.
const WANTED_DESCRIPTORS: u64 = 524_288;
/// The kernel's own default of the hard limit. Somebody meant one below it.
const LEAST_DEFAULT_LIMIT: u64 = 4096;

/// The demo's first instance has this long before `dev` calls itself ready without it.
const DEMO_DEADLINE: Duration = Duration::from_secs(10);
