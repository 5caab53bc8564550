//! All VIPs of a snapshot: what the apps ask for, less what this node must not serve, with addresses.
//!
//! A VIP exists as long as a definition names it, with or without instances. How the table comes about is
//! `register`'s affair; who listens on a VIP and how its endpoints are picked, the VIP plane's.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::Serialize;

use super::{Protocol, VipKey, VipName, VipTarget};
use crate::catalog::app::ServiceId;

/// An address that is somebody else's on this node, so no VIP's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub address: IpAddr,
    /// What it is, as in "10.0.0.1 is …": `an address of this host`.
    pub what: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

/// One VIP with its addresses and the services that feed it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vip {
    #[serde(flatten)]
    pub key: VipKey,
    /// A name's: one of each pool whose family its endpoints have, and of IPv4 while it has none. Or the address
    /// itself (an IP VIP). An endpoint serves the addresses of its own family.
    pub addresses: Vec<IpAddr>,
    /// In id order; several apps may share a VIP on purpose.
    pub services: Vec<ServiceId>,
}

/// All VIPs of a snapshot. What did not change is shared with the table before, so comparing two costs what differs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vips {
    pub(super) vips: OrdMap<VipKey, Vip>,
    pub(super) names: OrdMap<VipName, Vec<IpAddr>>,
}

impl Vips {
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Vip> {
        self.vips.values()
    }

    /// The VIPs that a name has: one for each protocol and port.
    pub fn of_name(&self, name: &VipName) -> impl Iterator<Item = &Vip> {
        let at = |protocol, port| VipKey { target: VipTarget::Named(name.clone()), protocol, port };
        self.vips.range(at(Protocol::Tcp, 0)..=at(Protocol::Udp, u16::MAX)).map(|(_, vip)| vip)
    }

    /// The VIPs that came, went or differ between two tables, in key order.
    pub fn changed_since<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = &'a VipKey> {
        old.vips.diff(&self.vips).map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => key,
        })
    }

    pub fn get(&self, key: &VipKey) -> Option<&Vip> {
        self.vips.get(key)
    }

    /// Every VIP name with its addresses.
    pub fn names(&self) -> impl ExactSizeIterator<Item = (&VipName, &[IpAddr])> {
        self.names.iter().map(|(name, addresses)| (name, addresses.as_slice()))
    }

    pub fn addresses(&self, name: &VipName) -> &[IpAddr] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// Nothing was changed since one was copied from the other.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        self.vips.ptr_eq(&other.vips) && self.names.ptr_eq(&other.names)
    }
}
