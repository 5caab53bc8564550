//! What the stats address answers: the page for people, Marathon-LB's endpoints, metrics, health, and JSON for tools.
//!
//! Everything here only reads, but for one command of the operator on this machine (`waymark sync`). Counters come from
//! the planes, state from the published snapshot; no plane waits for this server, and it runs on the control thread.
//!
//! Reading order: [`plane`] (what it reads of a plane), [`view`] (the shapes of its answers), [`server`].

mod events;
mod guard;
mod haproxy;
mod history;
mod metrics;
mod page;
mod plane;
mod sample;
mod server;
#[cfg(test)]
mod tests;
mod view;
mod vips;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use event_watcher::publish::{Applied, Subscriber};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::PlaneName;

pub use guard::{COMMAND_HEADER, Signals};
pub use haproxy::Haproxy;
pub use plane::{EndpointSample, Plane, Which};
pub use server::serve;
pub use vips::VipPlane;

use events::Feed;
use history::History;
use sample::Samples;

/// Where everything listens: the ready file, the stats page and `/api/status` say the same.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Addresses {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// Service ports (10000…) are served on this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appid: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<SocketAddr>,
    /// The address of `dns` that has port 53.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns53: Option<SocketAddr>,
    /// What is to be asked there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_zones: Vec<String>,
    /// Mesos-DNS's HTTP API and DNS over HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_http: Option<SocketAddr>,
}

/// What the server reads.
pub struct Sources {
    pub subscriber: Subscriber,
    pub planes: Vec<(PlaneName, Arc<dyn Plane>)>,
    /// Marathon-LB's endpoints, when the HTTP plane runs.
    pub haproxy: Option<Arc<dyn Haproxy>>,
    /// When the VIP plane runs.
    pub vips: Option<Arc<dyn VipPlane>>,
    /// What every plane has applied.
    pub applied: Applied,
    pub addresses: Addresses,
    /// The effective configuration, for people.
    pub config: String,
    pub watcher: Option<event_watcher::Handle>,
    pub signals: Signals,
    /// Cancelled when the process begins to stop: from then on it is not ready.
    pub stopping: CancellationToken,
    /// Cancelled when the planes have drained and this server ends, too.
    pub closing: CancellationToken,
}

/// The state that all requests share.
pub struct Admin {
    sources: Sources,
    samples: Samples,
    history: History,
    feed: Feed,
    started: Instant,
}

impl Admin {
    /// Starts the tasks that take samples and follow changes; they end when `sources.closing` is cancelled.
    pub fn start(sources: Sources) -> Arc<Self> {
        let admin = Arc::new(Self {
            sources,
            samples: Samples::default(),
            history: History::default(),
            feed: Feed::default(),
            started: Instant::now(),
        });
        tokio::spawn(sample::keep_sampling(Arc::clone(&admin)));
        tokio::spawn(history::follow_changes(Arc::clone(&admin)));
        tokio::spawn(history::follow_applied(Arc::clone(&admin)));
        admin
    }

    /// How old what is served may be; `None` before the first sync.
    pub fn age(&self) -> Option<std::time::Duration> {
        use event_watcher::publish::Freshness;
        match self.sources.subscriber.freshness() {
            Freshness::Unsynced { .. } => None,
            Freshness::Live => Some(std::time::Duration::ZERO),
            Freshness::Stale { since, .. } => Some(since.elapsed()),
        }
    }

    /// After the first sync, once every plane has applied it, until the process begins to stop.
    pub fn is_ready(&self) -> bool {
        self.sources.applied.generation() > event_watcher::catalog::Generation::UNSYNCED
            && !self.sources.stopping.is_cancelled()
    }
}
