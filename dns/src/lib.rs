//! Answers the names that Mesos-DNS and DC/OS give apps, VIPs and the cluster, from the newest snapshot alone.
//!
//! Reading order: [`config`], `names` (wire names and label grammars), `authority` (which zones), `records` (what an
//! app's names are), `zone` (the lookup table), `compile` (snapshot to zone, by what changed), `wire` (packets),
//! `handler` (one query), `forward` (names of other zones), `udp`, `tcp`, `server` (sockets and workers), `follow`
//! (what is applied when), `http` (the same over HTTP), [`install`] (as the resolver of its host).
//!
//! It never talks to the scheduler, allocates no VIP address, and takes no lock to answer. Before anything has been
//! heard from the scheduler its answer is "I cannot tell" (SERVFAIL), never "there is no such name".

mod authority;
mod compile;
pub mod config;
mod cookies;
mod error;
mod explain;
mod follow;
mod forward;
mod handler;
mod http;
pub mod install;
mod metrics;
mod names;
mod networks;
mod offline;
mod rate;
mod records;
mod server;
mod stats;
mod tcp;
mod udp;
mod wire;
mod zone;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::VipKey;
use event_watcher::publish::{Applied, Retired, Subscriber, applied};
use tokio_util::sync::CancellationToken;

use crate::compile::Compiler;
pub use crate::config::Config;
use crate::config::{MAX_UDP_PAYLOAD_BYTES, MIN_UDP_PAYLOAD_BYTES};
pub use crate::error::Error;
use crate::follow::Follow;
use crate::forward::Forwarder;
pub use crate::forward::{LATENCY_BOUNDS_MS, UpstreamStatistics};
use crate::handler::{Recursion, Terms};
pub use crate::networks::{Network, NotANetwork};
pub use crate::offline::{Fate, Offline, Question};
pub use crate::server::Worker;
use crate::stats::Counters;
pub use crate::stats::{Statistics, Transport};
use crate::zone::Zone;

const SYSTEM_UPSTREAMS_INTERVAL: Duration = Duration::from_secs(5);

/// The running server, as everybody else sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plane {
    applied: Applied,
    addresses: Arc<[SocketAddr]>,
    forwarder: Arc<Forwarder>,
    zone: Arc<ArcSwap<Zone>>,
    counters: Arc<[Arc<Counters>]>,
    n_vip_waits_expired: Arc<AtomicU64>,
    http_address: Option<SocketAddr>,
    vip_traffic: Arc<OnceLock<VipTrafficSource>>,
}

/// What one VIP was used for, as whoever serves it counts.
#[derive(Clone, Debug)]
pub struct VipTraffic {
    pub key: VipKey,
    /// Since the start, failed ones included.
    pub n_connections: u64,
    pub n_failures: u64,
    pub backends: Vec<BackendTraffic>,
}

#[derive(Clone, Debug)]
pub struct BackendTraffic {
    pub address: SocketAddr,
    pub n_in_flight: u64,
    pub n_connections: u64,
    pub n_failures: u64,
}

/// Asks whoever serves the VIPs.
pub struct VipTrafficSource(pub Box<dyn Fn() -> Vec<VipTraffic> + Send + Sync>);

impl std::fmt::Debug for VipTrafficSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VipTrafficSource")
    }
}

impl Plane {
    /// Where Mesos-DNS's HTTP API and DNS over HTTPS are.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Says who counts the VIPs' traffic, for the networking API. The first one counts.
    pub fn set_vip_traffic(&self, source: VipTrafficSource) {
        let _ = self.vip_traffic.set(source);
    }

    fn vip_traffic(&self) -> Vec<VipTraffic> {
        self.vip_traffic.get().map(|source| (source.0)()).unwrap_or_default()
    }

    /// Appends all counters in Prometheus text format.
    pub fn metrics(&self, text: &mut String) {
        metrics::write(&self.statistics(), text);
    }

    /// Which generation is answered from.
    pub fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// Where it listens, over UDP and TCP, in the order of [`Config::listen`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The names at and below which it answers itself, and nobody else is to be asked.
    pub fn zones(&self) -> Vec<String> {
        self.zone.load().authority().zones()
    }

    /// Who is asked for names of other zones; empty: they are refused.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.forwarder.upstreams()
    }

    pub fn statistics(&self) -> Statistics {
        let zone = self.zone.load();
        let (n_cached, cache_bytes) = self.forwarder.cache_size();
        let mut statistics = Statistics {
            upstreams: self.forwarder.statistics(),
            n_loops: self.forwarder.n_loops(),
            n_cached,
            cache_bytes,
            n_vip_waits_expired: self.n_vip_waits_expired.load(Ordering::Relaxed),
            n_names: zone.n_names(),
            serial: zone.serial,
            ..Statistics::default()
        };
        for counters in self.counters.iter() {
            statistics.add(counters, zone.authority().zone_labels());
        }
        statistics
    }
}

/// Binds all addresses or none, begins to follow the subscriber, and gives one worker per thread that is to serve.
///
/// `vips_applied` tells how far the plane that serves the VIPs is: names of new VIPs wait for it. `None`: nobody serves
/// them here, so nothing waits.
///
/// To be called on a tokio runtime; the task that follows runs there until cancelled.
pub async fn start(
    config: Config,
    subscriber: Subscriber,
    vips_applied: Option<Applied>,
    n_workers: usize,
    cancel: CancellationToken,
) -> Result<(Plane, Vec<Worker>), Error> {
    if config.listen.is_empty() {
        return Err(Error::NoAddress);
    }
    if !(MIN_UDP_PAYLOAD_BYTES..=MAX_UDP_PAYLOAD_BYTES).contains(&config.udp_payload_bytes) {
        return Err(Error::UdpPayload(config.udp_payload_bytes));
    }
    let (addresses, sockets) = server::bind(&config, n_workers)?;
    let listeners = http::Listeners::bind(&config)?;
    let forwarder = Arc::new(Forwarder::new(&config, &addresses));
    let terms = Arc::new(Terms::new(&config));
    set_recursion(&terms, &forwarder);
    let mut compiler = Compiler::new(&config);
    let zone = Arc::new(ArcSwap::from_pointee(compiler.zone()));
    let n_zones = zone.load().authority().zone_labels().len();
    let (mark, applied) = applied();
    let config = Arc::new(config);
    let of_http = Arc::new(Counters::new(n_zones));

    let workers: Vec<Worker> = sockets
        .into_iter()
        .map(|sockets| Worker {
            sockets,
            config: Arc::clone(&config),
            zone: Arc::clone(&zone),
            terms: Arc::clone(&terms),
            forwarder: Arc::clone(&forwarder),
            counters: Arc::new(Counters::new(n_zones)),
            cancel: cancel.clone(),
        })
        .collect();
    let plane = Plane {
        applied,
        addresses: addresses.into(),
        forwarder: Arc::clone(&forwarder),
        zone: Arc::clone(&zone),
        counters: workers
            .iter()
            .map(|worker| Arc::clone(&worker.counters))
            .chain([Arc::clone(&of_http)])
            .collect(),
        n_vip_waits_expired: Arc::default(),
        http_address: listeners.address(),
        vip_traffic: Arc::default(),
    };
    let api = http::Api {
        plane: plane.clone(),
        zone: Arc::clone(&zone),
        terms: Arc::clone(&terms),
        forwarder: Arc::clone(&forwarder),
        counters: of_http,
        subscriber: subscriber.clone(),
        config: Arc::clone(&config),
        samples: Default::default(),
    };
    listeners.serve(api, &cancel)?;
    let follow = Follow {
        compiler,
        zone,
        mark,
        vips_applied,
        vip_wait: config.vip_wait,
        n_vip_waits_expired: Arc::clone(&plane.n_vip_waits_expired),
        retired: Retired::default(),
    };
    tokio::spawn(cancel.clone().run_until_cancelled_owned(follow.run(subscriber)));
    if config.upstreams.is_none() {
        tokio::spawn(cancel.run_until_cancelled_owned(follow_system(terms, forwarder)));
    }
    Ok((plane, workers))
}

/// The host's resolvers change with its networks.
async fn follow_system(terms: Arc<Terms>, forwarder: Arc<Forwarder>) {
    let mut ticks = tokio::time::interval(SYSTEM_UPSTREAMS_INTERVAL);
    loop {
        ticks.tick().await;
        forwarder.refresh();
        set_recursion(&terms, &forwarder);
    }
}

fn set_recursion(terms: &Terms, forwarder: &Forwarder) {
    let nobody = forwarder.upstreams().is_empty();
    terms.set_recursion(if nobody { Recursion::Unavailable } else { Recursion::Available });
}
