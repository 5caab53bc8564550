//! Counters of VIPs, and their view for people and tools (`/api/vips`).
//!
//! Relaxed atomics, written by workers; a view is a moment's reading, not a transaction. Counters only grow: a change
//! of a VIP's endpoints does not reset them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use event_watcher::catalog::{Protocol, ServiceId, VipTarget};
use serde::Serialize;

use crate::policy::Policy;
use crate::pool::EndpointView;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What happened to the connections of one VIP, or of whoever else uses the forwarder.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted connections.
    pub n_connections: Counter,
    /// Reset because there was no usable endpoint.
    pub n_no_endpoint: Counter,
    /// Reset because no endpoint that was tried accepted.
    pub n_unreachable: Counter,
    /// Ended by RST from either side.
    pub n_resets: Counter,
    /// Connects that an endpoint refused or did not answer.
    pub n_connect_failures: Counter,
    /// Connects that failed for a reason of this host: no descriptors, no ports, no memory.
    pub n_local_failures: Counter,
    /// Reset because nothing moved for too long.
    pub n_idle: Counter,
    /// From clients to endpoints.
    pub bytes_in: Counter,
    /// From endpoints to clients.
    pub bytes_out: Counter,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountersView {
    pub n_connections: u64,
    pub n_no_endpoint: u64,
    pub n_unreachable: u64,
    pub n_resets: u64,
    pub n_connect_failures: u64,
    pub n_local_failures: u64,
    pub n_idle: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Counters {
    pub fn view(&self) -> CountersView {
        CountersView {
            n_connections: self.n_connections.value(),
            n_no_endpoint: self.n_no_endpoint.value(),
            n_unreachable: self.n_unreachable.value(),
            n_resets: self.n_resets.value(),
            n_connect_failures: self.n_connect_failures.value(),
            n_local_failures: self.n_local_failures.value(),
            n_idle: self.n_idle.value(),
            bytes_in: self.bytes_in.value(),
            bytes_out: self.bytes_out.value(),
        }
    }
}

/// What happened to the datagrams of all VIPs, beside what each VIP counts.
#[derive(Debug, Default)]
pub struct UdpCounters {
    /// Flows that made room for another because the table was full or descriptors were short.
    pub n_evicted: Counter,
    /// Datagrams that a socket did not take at once.
    pub n_dropped: Counter,
    /// Clients told by ICMP that nobody takes their datagrams.
    pub n_refused: Counter,
}

/// Which plane serves a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaneKind {
    Ebpf,
    Nft,
    Userspace,
}

impl PlaneKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nft => "nft",
            Self::Userspace => "userspace",
        }
    }
}

/// What a plane counts at a VIP beside connections and refusals. What it does not count is not known; it is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub bytes: bool,
    pub connect_failures: bool,
}

impl Counts {
    /// What a forwarder sees.
    pub const ALL: Self = Self { bytes: true, connect_failures: true };
    pub const NONE: Self = Self { bytes: false, connect_failures: false };
}

/// One VIP at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct VipView {
    /// The name without its zone, or the address of an IP VIP.
    pub vip: VipTarget,
    pub protocol: Protocol,
    pub port: u16,
    pub addresses: Vec<IpAddr>,
    /// Those of `addresses` that are served now; the reason for the others is among the problems.
    pub listening: Vec<IpAddr>,
    pub plane: PlaneKind,
    pub counts: Counts,
    pub policy: Policy,
    /// How long a client without a new connection or flow stays with its endpoint; absent without session affinity.
    pub affinity_seconds: Option<u64>,
    pub services: Vec<ServiceId>,
    /// In rotation or draining, then those that left the scheduler's list but still have connections.
    pub endpoints: Vec<EndpointView>,
    /// Connections being made or established, at all endpoints.
    pub n_in_flight: u32,
    #[serde(flatten)]
    pub counters: CountersView,
}

/// What concerns the plane as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlaneTotals {
    pub n_vips: usize,
    /// Addresses that are listened on.
    pub n_listening: usize,
    pub n_in_flight: u64,
    /// Accepted since the start, at the VIPs that there are.
    pub n_connections: u64,
    /// Pauses in accepting because no descriptor or memory was left.
    pub n_accept_pauses: u64,
    /// Connections reset at once because only the descriptors that others need were left.
    pub n_refused_for_descriptors: u64,
    /// VIPs that were given another address while they were served.
    pub n_moved: u64,
    pub n_flows_evicted: u64,
    pub n_datagrams_dropped: u64,
    pub n_datagrams_refused: u64,
    /// Times when more connections ended at once than the kernel could tell of, so that bytes of them are missing.
    pub n_unheard: u64,
}
