//! What the stats server reads of a plane, whichever it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{InstanceId, Problem, VipKey};
use event_watcher::publish::Applied;

pub trait Plane: Send + Sync {
    fn applied(&self) -> Applied;

    fn problems(&self) -> Arc<[Problem]>;

    /// Calls `each` for every endpoint that the plane sends traffic to or has sent traffic to and still drains.
    fn endpoints(&self, which: Which, each: &mut dyn FnMut(EndpointSample));

    /// Appends the plane's own metrics in Prometheus text format.
    fn metrics(&self, text: &mut String);

    /// Totals for the page and `/api/status`, named as people say them.
    fn totals(&self) -> Vec<(&'static str, u64)>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Those that may have been given anything yet: of a large cluster, a few.
    Used,
}

/// What a plane counts of one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSample {
    pub instance: InstanceId,
    pub address: SocketAddr,
    /// The VIP through which it is reached; `None` for the HTTP plane.
    pub vip: Option<VipKey>,
    pub n_in_flight: u64,
    /// Requests (HTTP) or connections (VIP) since the endpoint appeared.
    pub n_total: u64,
    pub n_failures: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Mean time to the answer, over what the plane keeps.
    pub latency: Option<Duration>,
    pub ejected: bool,
}
