//! What names an app, a VIP or the cluster contributes, and which address or port each leads to.
//!
//! Pure: it does not know what other sources say about the same name (`compile` merges), nor how answers look.

mod app;
mod cluster;
mod vip;

use std::net::IpAddr;

use event_watcher::catalog::{Instance, InstanceState, Rotation};

pub(crate) use self::app::{of_app, of_instance, task_label};
pub(crate) use self::cluster::{of_agents, of_cluster};
pub(crate) use self::vip::{of_vip, reverse_label};
use crate::config::Compat;
use crate::names::WireName;

pub(crate) const MESOS: &str = "mesos";
pub(crate) const L4LB: &str = "l4lb.thisdcos.directory";
pub(crate) const DCOS: &str = "dcos.thisdcos.directory";

/// How good an answer is. Only the best of a name are given out: a failing instance is better than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    Preferred,
    /// Runs, but is not (yet, or any more) healthy.
    LastResort,
}

impl Tier {
    /// `None`: an instance that starts, stops or has ended is never an answer.
    /// Mesos-DNS knows no health: whatever runs is as good.
    pub fn of(instance: &Instance, compat: Compat) -> Option<Self> {
        match (instance.rotation(), instance.state) {
            (Rotation::In, _) => Some(Self::Preferred),
            (_, InstanceState::Running) if compat == Compat::MesosDns => Some(Self::Preferred),
            (_, InstanceState::Running | InstanceState::Unreachable) => Some(Self::LastResort),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// The name exists, if only to say that it has no records now.
    Exists,
    Address(IpAddr),
    Service {
        port: u16,
        target: WireName,
    },
    /// The name of an address.
    Pointer(WireName),
}

/// One thing that a source says about a name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub name: WireName,
    pub tier: Tier,
    pub data: Data,
}

/// Collects facts. A name that DNS cannot hold (too long) is left out, which concerns that name alone.
#[derive(Debug, Default)]
pub(crate) struct Facts(pub Vec<Fact>);

impl Facts {
    pub fn exists(&mut self, name: &WireName) {
        self.put(name, Tier::Preferred, Data::Exists);
    }

    /// A name in text, which exists without addresses, too.
    fn host(&mut self, name: &str, addresses: &[IpAddr]) {
        if let Some(name) = WireName::parse(name) {
            self.exists(&name);
            self.addresses(Some(&name), Tier::Preferred, addresses);
        }
    }

    /// `None`: a name that DNS cannot hold.
    pub fn addresses(&mut self, name: Option<&WireName>, tier: Tier, addresses: &[IpAddr]) {
        let Some(name) = name else { return };
        for ip in addresses {
            self.put(name, tier, Data::Address(*ip));
        }
    }

    fn service(&mut self, name: &WireName, tier: Tier, port: u16, target: &WireName) {
        self.put(name, tier, Data::Service { port, target: target.clone() });
    }

    fn put(&mut self, name: &WireName, tier: Tier, data: Data) {
        self.0.push(Fact { name: name.clone(), tier, data });
    }
}
