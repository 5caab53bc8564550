//! The plane as a whole: started once, follows snapshots, tells about itself.
//!
//! Runs on the control side; requests are served by [`Worker`]s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use event_watcher::catalog::{Problem, Snapshot};
use event_watcher::publish::{Applied, AppliedMark, Retired, Subscriber, applied};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::error::StartError;
use crate::explain::{self, Explanation, Question};
use crate::health::Checker;
use crate::listeners::Listeners;
use crate::proxy::Entry;
use crate::route::Routes;
use crate::static_names::StaticNames;
use crate::stats::{self, BackendView, RouteView, Series, Servers};
use crate::table::{Compiler, Table};
use crate::tls;
use crate::worker::{Clients, Worker};

/// Listeners that come and go in one change; the control side waits when a worker is this far behind.
const MOST_COMMANDS: usize = 256;
/// How often service ports that are taken are tried again, and certificate files looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A handle for whoever shows or waits for what the plane does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plane {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) http_in: Arc<Series>,
    pub(crate) https_in: Arc<Series>,
    pub(crate) appid_in: Arc<Series>,
    /// Of the stats address, which somebody else serves.
    pub(crate) stats_in: Arc<Series>,
    pub(crate) config: Arc<Config>,
    /// Lines of the access log; workers alone hold the log itself, which ends with the last of them.
    n_lines_dropped: Option<Arc<AtomicU64>>,
    problems: ArcSwap<Arc<[Problem]>>,
    applied: Applied,
    http_address: Option<SocketAddr>,
    https_address: Option<SocketAddr>,
    appid_address: Option<SocketAddr>,
}

/// Binds the fixed addresses (all or none), begins to follow the subscriber's snapshots, and returns one [`Worker`] for
/// each thread that is to serve.
pub async fn start(
    config: Config,
    subscriber: Subscriber,
    n_workers: usize,
    cancel: CancellationToken,
) -> Result<(Plane, Vec<Worker>), StartError> {
    let n_workers = n_workers.max(1);
    let config = Arc::new(config);
    let tls = tls::Follower::start(&config.tls)?;
    let mut compiler = Compiler::new(config.reading.clone(), n_workers);
    let table = compiler.compile(&Snapshot::default(), Instant::now());
    let table = Arc::new(ArcSwap::from_pointee(table));
    let (mark, applied) = applied();
    let clients = Clients::new();
    let access_log = config.access_log.as_ref().map(AccessLog::start).transpose()?.map(Arc::new);
    let n_lines_dropped = access_log.as_ref().map(|log| log.n_dropped());
    let (senders, workers): (Vec<_>, Vec<_>) = (0..n_workers)
        .map(|index| {
            let (sender, commands) = mpsc::channel(MOST_COMMANDS);
            let worker = Worker {
                index,
                config: Arc::clone(&config),
                table: Arc::clone(&table),
                tls: Arc::clone(tls.table()),
                applied: applied.clone(),
                commands,
                clients: Arc::clone(&clients),
                access_log: access_log.clone(),
                cancel: cancel.clone(),
            };
            (sender, worker)
        })
        .unzip();
    let listeners = Listeners::new(config.service_address, senders);
    let bind = |address: Option<SocketAddr>, purpose| address.map(|a| listeners.bind(a, purpose)).transpose();
    let http = bind(config.http_listen, "virtual hosts")?;
    let https = bind(config.https_listen, "virtual hosts over TLS")?;
    let appid = bind(config.appid_listen, "requests by app id")?;
    let shared = Arc::new(Shared {
        table,
        http_in: Series::new(n_workers),
        https_in: Series::new(n_workers),
        appid_in: Series::new(n_workers),
        stats_in: Series::new(1),
        config,
        n_lines_dropped,
        problems: ArcSwap::from_pointee(Arc::default()),
        applied,
        http_address: http.as_ref().map(|(address, _)| *address),
        https_address: https.as_ref().map(|(address, _)| *address),
        appid_address: appid.as_ref().map(|(address, _)| *address),
    });
    if let Some((address, sockets)) = http {
        listeners.open(Entry::Hosts, address.port(), sockets, &shared.http_in).await;
    }
    if let Some((address, sockets)) = https {
        listeners.open(Entry::TlsHosts, address.port(), sockets, &shared.https_in).await;
    }
    if let Some((address, sockets)) = appid {
        listeners.open(Entry::AppIds, address.port(), sockets, &shared.appid_in).await;
    }
    tokio::spawn(sample(Arc::clone(&shared), cancel.clone()));
    let names = StaticNames::start(cancel.clone());
    let newest = Snapshot::default();
    let follower = Follower {
        shared: Arc::clone(&shared),
        compiler,
        checker: Checker::new(),
        listeners,
        tls,
        routes: None,
        mark,
        names,
        newest,
        retired: Retired::default(),
    };
    tokio::spawn(follower.run(subscriber, cancel));
    Ok((Plane { shared }, workers))
}

impl Shared {
    pub(crate) fn serves_https(&self) -> bool {
        self.https_address.is_some()
    }
}

struct Follower {
    shared: Arc<Shared>,
    compiler: Compiler,
    checker: Checker,
    listeners: Listeners,
    tls: tls::Follower,
    /// That `tls` follows.
    routes: Option<Arc<Routes>>,
    mark: AppliedMark,
    names: StaticNames,
    newest: Snapshot,
    retired: Retired<Table>,
}

impl Follower {
    async fn run(mut self, mut subscriber: Subscriber, cancel: CancellationToken) {
        let first = subscriber.latest();
        if first.is_synced() {
            self.apply(&first).await;
        }
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = subscriber.changed() => match changed {
                    Ok(snapshot) => self.apply(&snapshot).await,
                    // The last table goes on serving.
                    Err(_) => return cancel.cancelled().await,
                },
                _ = looks.tick() => {
                    self.retired.free();
                    let table = self.shared.table.load_full();
                    let has_news = self.tls.look();
                    if self.listeners.has_failed() {
                        self.listen(&table).await;
                    } else if has_news {
                        self.tell(&table);
                    }
                }
                names = self.names.changed() => {
                    self.compiler.set_names(names);
                    self.compile().await;
                }
                () = self.checker.changed() => {
                    self.compiler.heed_checks();
                    self.compile().await;
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn apply(&mut self, snapshot: &Snapshot) {
        if snapshot.generation <= self.shared.applied.generation() {
            return;
        }
        self.newest = snapshot.clone();
        self.compile().await;
        self.mark.set(snapshot.generation);
    }

    async fn compile(&mut self) {
        let table = Arc::new(self.compiler.compile(&self.newest, Instant::now()));
        let before = self.shared.table.swap(Arc::clone(&table));
        table.awaited.iter().for_each(|backend| backend.queue.follow(&backend.pool));
        self.names.want(&table.unknown_names);
        self.checker.follow(&table.probed);
        let same =
            Arc::ptr_eq(&before.routes, &table.routes) && Arc::ptr_eq(&before.problems, &table.problems);
        self.retired.keep(before);
        if !same || self.listeners.has_failed() {
            self.listen(&table).await;
        }
    }

    async fn listen(&mut self, table: &Table) {
        // Policies come from labels, and whatever labels change changes routes.
        if !self.routes.as_ref().is_some_and(|known| Arc::ptr_eq(known, &table.routes)) {
            self.tls.follow(table.tls_policies());
            self.routes = Some(Arc::clone(&table.routes));
        }
        self.listeners.follow(table).await;
        self.tell(table);
    }

    fn tell(&self, table: &Table) {
        let problems = table.problems.iter().cloned().chain(self.listeners.problems(table));
        let problems = problems.chain(self.tls.problems().iter().cloned()).collect();
        self.shared.problems.store(Arc::new(problems));
    }
}

/// Makes rates of counters, once a second.
async fn sample(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for second in 0.. {
        tokio::select! {
            _ = seconds.tick() => {}
            () = cancel.cancelled() => return,
        }
        shared.http_in.sample(second);
        shared.https_in.sample(second);
        shared.appid_in.sample(second);
        shared.stats_in.sample(second);
        for backend in &shared.table.load().backends {
            backend.frontend.sample(second);
            if !backend.is_used() {
                continue;
            }
            backend.series.sample(second);
            backend.servers.iter().for_each(|server| server.series.sample(second));
        }
    }
}

impl Plane {
    /// The generation that requests are routed by.
    pub fn applied(&self) -> Applied {
        self.shared.applied.clone()
    }

    /// What is wrong with labels, routes and service ports.
    pub fn problems(&self) -> Arc<[Problem]> {
        Arc::clone(&self.shared.problems.load())
    }

    /// Where virtual hosts are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.shared.http_address
    }

    /// Where virtual hosts are served over TLS.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.shared.https_address
    }

    pub fn appid_address(&self) -> Option<SocketAddr> {
        self.shared.appid_address
    }

    /// The newest table, for whoever explains a route.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// What a request would reach now.
    pub fn explain(&self, question: &Question<'_>) -> Explanation {
        explain::explain(&self.shared.table.load(), question)
    }

    /// Where whoever serves the stats address counts what it does; one thread may.
    pub fn stats_series(&self) -> &Arc<Series> {
        &self.shared.stats_in
    }

    /// HAProxy's statistics as CSV, as behind `/haproxy?stats;csv`.
    pub fn stats_csv(&self, servers: Servers) -> String {
        stats::csv(&stats::rows(&self.shared, servers))
    }

    /// The same as HAProxy's JSON.
    pub fn stats_json(&self, servers: Servers) -> String {
        stats::json(&stats::rows(&self.shared, servers))
    }

    /// The same as an HTML page.
    pub fn stats_page(&self, servers: Servers) -> String {
        stats::page(&stats::rows(&self.shared, servers))
    }

    /// Appends Prometheus text with the names of HAProxy's exporter.
    pub fn metrics(&self, text: &mut String) {
        stats::metrics(&stats::rows(&self.shared, Servers::All), text);
        stats::own_metrics(&self.shared, text);
        text.push_str("# HELP waymark_http_access_log_dropped_total Lines that the log was too slow for.\n");
        text.push_str("# TYPE waymark_http_access_log_dropped_total counter\n");
        let n_dropped = self.shared.n_lines_dropped.as_ref().map_or(0, |n| n.load(Relaxed));
        text.push_str(&format!("waymark_http_access_log_dropped_total {n_dropped}\n"));
    }

    /// What each port, host and path leads to.
    pub fn routes(&self) -> Vec<RouteView> {
        stats::routes(&self.shared.table.load())
    }

    /// Every backend with its servers and what was counted of them.
    pub fn backends(&self) -> Vec<BackendView> {
        stats::backends(&self.shared.table.load())
    }

    /// `host backend` lines.
    pub fn vhost_map(&self) -> String {
        stats::vhost_map(&self.shared.table.load())
    }

    /// `app backend` lines.
    pub fn app_map(&self) -> String {
        stats::app_map(&self.shared.table.load())
    }
}
