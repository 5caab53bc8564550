//! Networks in the notation `10.0.0.0/8`, and which of them a cluster's own hosts are in.
//!
//! Pure; nothing is looked up on this host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Loopback, private, link-local and carrier-grade shared networks (RFC 1918, 3927, 4193, 4291, 6598).
const PRIVATE: [Network; 9] = [
    Network::v4(Ipv4Addr::new(127, 0, 0, 0), 8),
    Network::v4(Ipv4Addr::new(10, 0, 0, 0), 8),
    Network::v4(Ipv4Addr::new(172, 16, 0, 0), 12),
    Network::v4(Ipv4Addr::new(192, 168, 0, 0), 16),
    Network::v4(Ipv4Addr::new(169, 254, 0, 0), 16),
    Network::v4(Ipv4Addr::new(100, 64, 0, 0), 10),
    Network::v6(Ipv6Addr::LOCALHOST, 128),
    Network::v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Network::v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix_bits: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network like 10.0.0.0/8")]
pub struct NotANetwork(String);

impl Network {
    const fn v4(first: Ipv4Addr, prefix_bits: u8) -> Self {
        Self { first: IpAddr::V4(first), prefix_bits }
    }

    const fn v6(first: Ipv6Addr, prefix_bits: u8) -> Self {
        Self { first: IpAddr::V6(first), prefix_bits }
    }

    /// A network of one.
    pub(crate) fn host(ip: IpAddr) -> Self {
        Self { first: ip, prefix_bits: if ip.is_ipv4() { 32 } else { 128 } }
    }

    /// Where a cluster's own hosts usually are.
    pub fn private() -> Vec<Self> {
        PRIVATE.into()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.first, ip) {
            (IpAddr::V4(first), IpAddr::V4(ip)) => {
                mask(first.to_bits().into(), self.prefix_bits, 32)
                    == mask(ip.to_bits().into(), self.prefix_bits, 32)
            }
            (IpAddr::V6(first), IpAddr::V6(ip)) => {
                mask(first.to_bits(), self.prefix_bits, 128) == mask(ip.to_bits(), self.prefix_bits, 128)
            }
            _ => false,
        }
    }
}

/// Networks as they are looked up for every packet: IPv4 by 32-bit masks.
#[derive(Debug)]
pub(crate) struct Networks {
    /// Mask and first address.
    v4: Box<[(u32, u32)]>,
    others: Box<[Network]>,
}

impl Networks {
    pub fn new(networks: &[Network]) -> Self {
        let v4 = networks.iter().filter_map(|network| match network.first {
            IpAddr::V4(first) => {
                let bits = u32::MAX.checked_shl(32 - u32::from(network.prefix_bits)).unwrap_or(0);
                Some((bits, first.to_bits() & bits))
            }
            IpAddr::V6(_) => None,
        });
        let others = networks.iter().filter(|network| network.first.is_ipv6());
        Self { v4: v4.collect(), others: others.copied().collect() }
    }

    /// IPv4 addresses in IPv6's clothes count as what they are.
    pub fn contain(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.iter().any(|(mask, first)| ip.to_bits() & mask == *first),
            ip => self.others.iter().any(|network| network.contains(ip)),
        }
    }
}

/// The first bits of an address, as a number.
pub(crate) fn mask(bits: u128, prefix_bits: u8, width: u8) -> u128 {
    bits.checked_shr(u32::from(width - prefix_bits)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NotANetwork;

    /// A lone address is a network of one.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let malformed = || NotANetwork(text.to_owned());
        let (first, bits) = text.split_once('/').unwrap_or((text, ""));
        let host = Self::host(first.parse().map_err(|_| malformed())?);
        let prefix_bits =
            if bits.is_empty() { host.prefix_bits } else { bits.parse().map_err(|_| malformed())? };
        if prefix_bits > host.prefix_bits {
            return Err(malformed());
        }
        Ok(Self { prefix_bits, ..host })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_what_begins_alike() {
        for (network, ip, expect) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.8", false),
            ("fd00::/8", "fd01:c::1", true),
            ("::/0", "2001:db8::1", true),
            ("::/0", "127.0.0.1", false),
        ] {
            let (network, ip): (Network, IpAddr) = (network.parse().unwrap(), ip.parse().unwrap());
            assert_eq!(network.contains(ip), expect, "{network} {ip}");
            assert_eq!(Networks::new(&[network]).contain(ip), expect, "{network} {ip}");
        }
        for bad in ["", "10.0.0.0/33", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
        let all = Networks::new(&Network::private());
        let private = |ip: &str| all.contain(ip.parse().unwrap());
        assert!(private("::ffff:10.1.2.3") && !private("::ffff:8.8.8.8"));
        assert!(private("127.8.9.1") && private("172.31.0.1") && private("fe80::1"));
        assert!(!private("172.32.0.1") && !private("8.8.8.8") && !private("2001:db8::1"));
    }
}
