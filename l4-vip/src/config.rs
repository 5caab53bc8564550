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

#[derive(Clone, Debug)]
pub struct Config {
    pub policy: Policy,
    pub connect_timeout: Duration,
    pub drain_timeout: Duration,
    /// The pools that named VIPs come from. Only for hints: the addresses themselves come with each snapshot.
    pub pools: Vec<VipPool>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            connect_timeout: CONNECT_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            pools: Vec::new(),
        }
    }
}
