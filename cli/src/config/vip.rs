//! The section `[vip]`: pools, the plane, and what holds for VIPs whose labels do not say.

use std::path::PathBuf;
use std::time::Duration;

use l4_vip::kernel::PlaneChoice;
use l4_vip::policy::Policy;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vip {
    pub pool: Vec<String>,
    pub plane: PlaneChoice,
    /// For eBPF. Absent: the root of the cgroup2 hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Leave nothing in the kernel at the end.
    pub flush_on_exit: bool,
    /// Of VIPs whose labels do not say.
    pub policy: Policy,
    /// The same: how long a client without a connection stays with its endpoint. 0: it does not.
    #[serde(with = "super::humantime_text")]
    pub affinity: Duration,
    pub tcp: VipTcp,
    pub udp: VipUdp,
}

/// Of VIPs that the userspace plane serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VipTcp {
    /// 0: idle connections live for ever.
    #[serde(with = "super::humantime_text")]
    pub idle: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VipUdp {
    /// At least a second.
    #[serde(with = "super::humantime_text")]
    pub idle: Duration,
    /// Flows of all workers together.
    pub flows: usize,
}

impl Default for VipUdp {
    fn default() -> Self {
        Self { idle: l4_vip::UDP_IDLE, flows: l4_vip::UDP_FLOWS }
    }
}
