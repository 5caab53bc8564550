//! A range of addresses for named VIPs, and the home that DC/OS gives a name in it.
//!
//! It does not know which addresses are taken.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::hash::{phash2, sha1_mod};
use super::name::VipName;

/// A range of addresses that named VIPs are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipPool {
    first: IpAddr,
    /// Number of addresses minus one.
    span: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipPoolError {
    #[error("{0:?} is not a network like 127.11.0.0/16 or fd01:c::/64")]
    NotANetwork(String),
    #[error("{0} has bits set behind its prefix; write {1}")]
    HostBits(String, String),
    #[error("{0} is too small for a pool of VIPs (at least 8 addresses)")]
    TooSmall(String),
    #[error("{0} is too large: an IPv6 pool has a prefix of at least 64 bits")]
    TooLarge(String),
}

impl FromStr for VipPool {
    type Err = VipPoolError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || VipPoolError::NotANetwork(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let prefix: u32 = prefix.parse().map_err(|_| malformed())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::checked_sub(width, prefix).ok_or_else(malformed)?;
        if host_bits > 64 {
            return Err(VipPoolError::TooLarge(text.to_owned()));
        }
        if host_bits < 3 {
            return Err(VipPoolError::TooSmall(text.to_owned()));
        }
        let span = (1_u128 << host_bits) - 1;
        let number = to_number(address);
        if number & span != 0 {
            let network = from_number(number & !span, address.is_ipv4());
            return Err(VipPoolError::HostBits(text.to_owned(), format!("{network}/{prefix}")));
        }
        Ok(Self { first: address, span: span as u64 })
    }
}

impl fmt::Display for VipPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits())
    }
}

impl VipPool {
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// The address that the network is called by.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn prefix_bits(&self) -> u8 {
        let width = if self.first.is_ipv4() { 32 } else { 128 };
        width - (64 - self.span.leading_zeros()) as u8
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    pub(super) fn offset(&self, address: IpAddr) -> Option<u64> {
        if address.is_ipv4() != self.first.is_ipv4() {
            return None;
        }
        let offset = to_number(address).checked_sub(to_number(self.first))?;
        u64::try_from(offset).ok().filter(|offset| *offset <= self.span)
    }

    /// The address `distance` probes away from the home of `hash`, as an offset into the pool.
    pub(super) fn probe(&self, home: u64, distance: u64) -> u64 {
        ((u128::from(home) + u128::from(distance)) % (u128::from(self.span) + 1)) as u64
    }

    /// DC/OS's home of a name: `first + hash mod (last - first)`; the hash is phash2 for IPv4, SHA-1 for IPv6.
    pub(super) fn home(&self, name: &VipName) -> u64 {
        if self.first.is_ipv4() {
            u64::from(phash2(name.as_str().as_bytes())) % self.span
        } else {
            sha1_mod(name.as_str().as_bytes(), self.span)
        }
    }

    /// The offset of the last address.
    pub(super) fn span(&self) -> u64 {
        self.span
    }

    pub(super) fn address(&self, offset: u64) -> IpAddr {
        from_number(to_number(self.first) + u128::from(offset), self.first.is_ipv4())
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_number(number: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        IpAddr::V4(Ipv4Addr::from_bits(number as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_networks() {
        let pool: VipPool = "127.11.0.0/16".parse().unwrap();
        assert_eq!(pool.to_string(), "127.11.0.0/16");
        assert!(pool.contains("127.11.255.255".parse().unwrap()));
        assert!(!pool.contains("127.12.0.0".parse().unwrap()));
        for bad in ["", "11.0.0.0", "11.0.0.0/33", "11.0.0.1/8", "fd01:c::/32", "11.0.0.0/31", "x/8"] {
            assert!(bad.parse::<VipPool>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn homes_are_those_of_dcos() {
        let home = |pool: VipPool, name: &str| {
            let (label, framework) = name.split_once('.').unwrap();
            pool.address(pool.home(&VipName::new(label, framework).unwrap())).to_string()
        };
        for (pool, name, expect) in [
            ("11.0.0.0/8", "dcos-101app2.marathon", "11.68.84.23"),
            ("11.0.0.0/8", "redis.marathon", "11.202.66.36"),
            ("11.0.0.0/8", "l4lbtest.marathon", "11.128.73.162"),
            ("11.0.0.0/8", "acme.marathon", "11.9.179.74"),
            ("11.0.0.0/8", "web.marathon", "11.225.36.193"),
            ("11.0.0.0/8", "broker.kafka", "11.175.100.139"),
            ("11.0.0.0/8", "api.hello-world.marathon", "11.46.7.19"),
            ("11.0.0.0/8", "app1115.marathon", "11.16.7.113"),
            ("11.0.0.0/8", "app3307.marathon", "11.16.7.113"),
            ("fd01:c::/64", "dcos-101app2.marathon", "fd01:c::68c7:ae1c:a5d:109c"),
            ("fd01:c::/64", "redis.marathon", "fd01:c::da94:49ac:1e87:4a07"),
            ("fd01:c::/64", "qux.ipv6", "fd01:c::6d6d:9c64:fd19:f251"),
        ] {
            assert_eq!(home(pool.parse().unwrap(), name), expect, "{name} in {pool}");
        }
        // Ranges that are no networks: dcos-net's own default and its test suite's, whose last address is one lower.
        for (first, last, name, expect) in [
            ("11.0.0.0", "11.255.255.254", "dcos-101app2.marathon", "11.68.84.114"),
            ("11.0.0.0", "11.255.255.254", "redis.marathon", "11.202.66.162"),
            ("11.0.0.0", "11.255.255.254", "l4lbtest.marathon", "11.128.73.175"),
            ("11.0.0.0", "11.0.0.254", "foo.bar", "11.0.0.37"),
            ("11.0.0.0", "11.0.0.254", "baz.qux", "11.0.0.39"),
        ] {
            let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
            let pool = VipPool { first, span: (to_number(last) - to_number(first)) as u64 };
            assert_eq!(home(pool, name), expect, "{name} in {first} to {last}");
        }
    }
}
