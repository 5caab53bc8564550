//! What the userspace plane can be told, with its defaults.
//!
//! It parses nothing: flags, file and environment are the caller's.

use std::time::Duration;

use event_watcher::catalog::VipPool;

use crate::policy::Policy;

/// A SYN that is not answered within this is tried at the next endpoint. One second is also the kernel's first
/// retransmission time-out, so waiting longer helps only against loss, and another endpoint helps sooner.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stopping worker lets established connections end by themselves.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A silent UDP flow lives this long. Every common request has been answered or given up by then, and most protocols
/// that keep a flow open send something at least every 30 s because of NAT.
pub const UDP_IDLE: Duration = Duration::from_secs(60);

/// UDP flows of all workers together. Each takes a descriptor, so the process's limit may be the tighter bound.
pub const UDP_FLOWS: usize = 65_536;

/// How long the old address of a VIP that was given another one is still served: twice the five seconds for which DNS
/// answers hold, and time for programs that look names up once in a while.
pub const MOVE_OVERLAP: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Config {
    /// Of VIPs whose labels do not say.
    pub policy: Policy,
    /// The same; `None`: no session affinity.
    pub affinity: Option<Duration>,
    pub connect_timeout: Duration,
    /// `None`: idle connections live for ever.
    pub tcp_idle: Option<Duration>,
    /// Of VIPs whose labels do not say.
    pub udp_idle: Duration,
    /// For all workers together; at least one for each.
    pub max_udp_flows: usize,
    pub move_overlap: Duration,
    /// How long a VIP that is gone still takes connections. Its name is not answered any more, so this is how long
    /// answers of DNS hold, and a little; zero where nobody answers names.
    pub removal_overlap: Duration,
    pub drain_timeout: Duration,
    /// The pools that named VIPs come from. Only for hints: the addresses themselves come with each snapshot.
    pub pools: Vec<VipPool>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            affinity: None,
            connect_timeout: CONNECT_TIMEOUT,
            tcp_idle: None,
            udp_idle: UDP_IDLE,
            max_udp_flows: UDP_FLOWS,
            move_overlap: MOVE_OVERLAP,
            removal_overlap: Duration::ZERO,
            drain_timeout: DRAIN_TIMEOUT,
            pools: Vec::new(),
        }
    }
}
