//! A host for either kernel plane: a network namespace, and a control group for the processes that the plane serves.
//!
//! Threads that should see a VIP run in both.

use l4_vip::kernel::KernelPlane;
use l4_vip::kernel::ebpf::{Ebpf, EbpfConfig, Limits};
use tests::cgroup::Cgroup;
use tests::netns::Netns;

/// How a plane is opened on a host.
pub type Open = fn(&Host) -> anyhow::Result<Box<dyn KernelPlane>>;

pub const NFT: Open = |host| Ok(Box::new(super::nft::open(&host.netns)?));

pub const EBPF: Open = |host| Ok(Box::new(open_ebpf(&host.netns, &host.cgroup)?));

pub struct Host {
    pub netns: Netns,
    pub cgroup: Cgroup,
}

impl Host {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { netns: Netns::new("host")?, cgroup: Cgroup::new()? })
    }

    /// Runs `work` on a thread of its own, as a process of this host.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(|| self.cgroup.run(work))
    }
}

pub fn open_ebpf(host: &Netns, cgroup: &Cgroup) -> anyhow::Result<Ebpf> {
    let pools = ["11.0.0.0/8", "fd01:c::/64"].map(|pool| pool.parse().expect("a network"));
    let config =
        EbpfConfig { cgroup: Some(cgroup.path().to_owned()), pools: pools.into(), limits: Limits::default() };
    Ok(host.run(|| Ebpf::open(config))?)
}
