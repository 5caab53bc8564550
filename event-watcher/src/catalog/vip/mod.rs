//! Named virtual IPs: what identifies one, its label, its name, and the one allocation from names to addresses.
//!
//! The forwarder serves this allocation and DNS answers it, so it is made once, here. It is a pure function of the
//! apps: every node with the same apps computes the same table, in any order, after any restart.
//!
//! Reading order: `label` (what people write), `name` (what becomes of it), `address_pool` and `hash` (where a name's
//! home is), `allocation` (who gets which address), `table` (all VIPs of a snapshot), `claims` (what an app asks for),
//! `register` (how the table follows the apps, and what is refused).

mod address_pool;
mod allocation;
mod claims;
mod hash;
mod label;
mod name;
mod register;
mod table;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use address_pool::{VipPool, VipPoolError};
pub use hash::phash2;
pub use label::{VipLabel, VipLabelError};
pub use name::{VipName, dns_label};
pub(super) use register::Register;
pub use table::{Family, Reserved, Vip, Vips};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What a VIP is known by: a name that is given an address, or an address that somebody chose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipTarget {
    Named(VipName),
    Ip(IpAddr),
}

impl fmt::Display for VipTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Serialize for VipTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VipTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().map_or_else(|_| Self::Named(VipName::from_normal(&text)), Self::Ip))
    }
}

/// A VIP's identity. `/foo:80` and `foo:80` are the same VIP: names are normalised before they are compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VipKey {
    pub target: VipTarget,
    pub protocol: Protocol,
    pub port: u16,
}
