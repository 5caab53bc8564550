//! Named virtual IPs: the label grammar, the name, and the one allocation from names to addresses.
//!
//! The forwarder serves this allocation and DNS answers it, so it is made once, here. It is a pure function of the
//! set of names: every node with the same apps computes the same table, in any order, after any restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha1::{Digest, Sha1};

use super::app::{App, AppId, ServiceId};
use super::problem::Problem;

/// The longest DNS label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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

/// A VIP's DNS name below its zone, normalised: `dcos-101app2.marathon`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VipName(Arc<str>);

impl VipName {
    /// Joins a label as written (`/dcos-101/app2`) and the framework's name; `None` when nothing of the label is left.
    pub fn new(label: &str, framework: &str) -> Option<Self> {
        let (label, framework) = (dns_fragment(label), dns_fragment(framework));
        if label.is_empty() || framework.is_empty() {
            return None;
        }
        Some(Self(format!("{label}.{framework}").into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// DC/OS's `mesos_state:domain_frag`: dots separate, each part is mangled on its own, empty parts vanish.
fn dns_fragment(text: &str) -> String {
    let parts: Vec<String> = text.split('.').map(dns_label).filter(|l| !l.is_empty()).collect();
    parts.join(".")
}

/// DC/OS's `mesos_state:label`: lower case, `_` and `.` become `-`, everything else but letters, digits and `-` is deleted.
/// A label over 63 octets loses trailing dashes at the cut and is filled up from the remaining letters and digits.
pub fn dns_label(text: &str) -> String {
    let mangled: String = text
        .bytes()
        .filter_map(|b| match b {
            b'A'..=b'Z' => Some(b.to_ascii_lowercase() as char),
            b'a'..=b'z' | b'0'..=b'9' => Some(b as char),
            b'-' | b'_' | b'.' => Some('-'),
            _ => None,
        })
        .collect();
    let mangled = mangled.trim_matches('-');
    if mangled.len() <= MAX_LABEL {
        return mangled.to_owned();
    }
    let (head, rest) = mangled.split_at(MAX_LABEL);
    let mut label = head.trim_end_matches('-').to_owned();
    let missing = MAX_LABEL - label.len();
    label.extend(rest.chars().filter(char::is_ascii_alphanumeric).take(missing));
    label
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

/// A VIP's identity. `/foo:80` and `foo:80` are the same VIP: names are normalised before they are compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VipKey {
    pub target: VipTarget,
    pub protocol: Protocol,
    pub port: u16,
}

/// The value of a `VIP_…` label, `<vip>:<port>`; the protocol is the port definition's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipLabel {
    pub target: VipTarget,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipLabelError {
    #[error("{0:?} has no port; a VIP is written NAME:PORT or ADDRESS:PORT")]
    NoPort(String),
    #[error("{0:?} is not a port between 1 and 65535")]
    BadPort(String),
    #[error("{0:?} has no letter or digit that a DNS name could be made of")]
    EmptyName(String),
    #[error("{0} is not a unicast address")]
    NotUnicast(IpAddr),
}

impl VipLabel {
    /// Splits at the last `:`, as DC/OS does, so that `fd01:c::1:80` is port 80 of `fd01:c::1`; `[fd01:c::1]:80` too.
    pub fn parse(value: &str, framework: &str) -> Result<Self, VipLabelError> {
        let value = value.trim();
        let (host, port) = value.rsplit_once(':').ok_or_else(|| VipLabelError::NoPort(value.to_owned()))?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| VipLabelError::BadPort(port.to_owned()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let target = match bare.parse::<IpAddr>() {
            Ok(ip) if ip.is_multicast() || ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => {
                return Err(VipLabelError::NotUnicast(ip));
            }
            Ok(ip) => VipTarget::Ip(ip),
            Err(_) => VipName::new(host, framework)
                .map(VipTarget::Named)
                .ok_or_else(|| VipLabelError::EmptyName(host.to_owned()))?,
        };
        Ok(Self { target, port })
    }

    pub fn for_protocol(&self, protocol: Protocol) -> VipKey {
        VipKey { target: self.target.clone(), protocol, port: self.port }
    }
}

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
        let (first, n_bits) = self.network();
        write!(f, "{first}/{n_bits}")
    }
}

impl VipPool {
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// The first address and the number of bits that all addresses share with it.
    pub fn network(&self) -> (IpAddr, u8) {
        let width = if self.first.is_ipv4() { 32 } else { 128 };
        (self.first, (width - (64 - self.span.leading_zeros())) as u8)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    fn offset(&self, address: IpAddr) -> Option<u64> {
        if address.is_ipv4() != self.first.is_ipv4() {
            return None;
        }
        let offset = to_number(address).checked_sub(to_number(self.first))?;
        u64::try_from(offset).ok().filter(|offset| *offset <= self.span)
    }

    /// The address `distance` probes away from the home of `hash`, as an offset into the pool.
    fn probe(&self, home: u64, distance: u64) -> u64 {
        ((u128::from(home) + u128::from(distance)) % (u128::from(self.span) + 1)) as u64
    }

    /// DC/OS's home of a name: `first + hash mod (last - first)`; the hash is phash2 for IPv4, SHA-1 for IPv6.
    fn home(&self, name: &VipName) -> u64 {
        if self.first.is_ipv4() {
            u64::from(phash2(name.as_str().as_bytes())) % self.span
        } else {
            let digest = Sha1::digest(name.as_str().as_bytes());
            let modulus = u128::from(self.span);
            digest.iter().fold(0_u128, |rest, byte| (rest * 256 + u128::from(*byte)) % modulus) as u64
        }
    }

    fn address(&self, offset: u64) -> IpAddr {
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

/// Erlang's `erlang:phash2/2` of a binary before the range is applied: Bob Jenkins' lookup2 with Erlang's start values.
pub fn phash2(bytes: &[u8]) -> u32 {
    const GOLDEN: u32 = 0x9e37_79b9;
    /// `13 * GOLDEN`: what phash2 has mixed in before it meets the bytes of a binary.
    const START: u32 = 0x08d1_2e65;
    if bytes.is_empty() {
        return START;
    }
    let (mut a, mut b, mut c) = (GOLDEN, GOLDEN, START);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte));
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        a = a.wrapping_add(word(&chunk[..4]));
        b = b.wrapping_add(word(&chunk[4..8]));
        c = c.wrapping_add(word(&chunk[8..]));
        mix(&mut a, &mut b, &mut c);
    }
    let tail = chunks.remainder();
    let part = |from: usize, to: usize| word(&tail[from.min(tail.len())..to.min(tail.len())]);
    a = a.wrapping_add(part(0, 4));
    b = b.wrapping_add(part(4, 8));
    // The lowest byte of the last word is kept for the length.
    c = c.wrapping_add(bytes.len() as u32).wrapping_add(part(8, 11) << 8);
    mix(&mut a, &mut b, &mut c);
    c
}

fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    macro_rules! step {
        ($x:ident, $y:ident, $z:ident, $shift:tt, $by:literal) => {
            *$x = $x.wrapping_sub(*$y).wrapping_sub(*$z) ^ (*$z $shift $by);
        };
    }
    step!(a, b, c, >>, 13);
    step!(b, c, a, <<, 8);
    step!(c, a, b, >>, 13);
    step!(a, b, c, >>, 12);
    step!(b, c, a, <<, 16);
    step!(c, a, b, >>, 5);
    step!(a, b, c, >>, 3);
    step!(b, c, a, <<, 10);
    step!(c, a, b, >>, 15);
}

/// One VIP with its addresses and the services that feed it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vip {
    #[serde(flatten)]
    pub key: VipKey,
    /// One address of each pool's family (a name), or the address itself (an IP VIP).
    pub addresses: Vec<IpAddr>,
    /// In id order; several apps may share a VIP on purpose.
    pub services: Vec<ServiceId>,
}

/// All VIPs of a snapshot. A VIP exists as long as a definition names it, with or without instances.
#[derive(Debug, Default, PartialEq)]
pub struct Vips {
    vips: BTreeMap<VipKey, Vip>,
    names: BTreeMap<VipName, Vec<IpAddr>>,
}

impl Vips {
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Vip> {
        self.vips.values()
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

    /// Allocates addresses for all VIPs that `apps` name.
    pub(super) fn allocate<'a>(
        apps: impl Iterator<Item = &'a App>,
        pools: &[VipPool],
    ) -> (Self, Vec<Problem>) {
        let mut vips: BTreeMap<VipKey, Vip> = BTreeMap::new();
        let mut problems = Vec::new();
        for service in apps.flat_map(|app| &app.services) {
            for key in &service.vips {
                if let VipTarget::Ip(ip) = key.target
                    && ip.is_loopback()
                    && !pools.iter().any(|pool| pool.contains(ip))
                {
                    problems.push(vip_problem(
                        &service.id,
                        format!("{ip} is a loopback address outside the VIP pool and would shadow this host"),
                        "the VIP is not served; choose another address",
                    ));
                    continue;
                }
                let vip = vips.entry(key.clone()).or_insert_with(|| Vip {
                    key: key.clone(),
                    addresses: Vec::new(),
                    services: Vec::new(),
                });
                if vip.services.last() != Some(&service.id) {
                    vip.services.push(service.id.clone());
                }
            }
        }
        let wanted: BTreeSet<VipName> = vips
            .keys()
            .filter_map(|key| match &key.target {
                VipTarget::Named(name) => Some(name.clone()),
                VipTarget::Ip(_) => None,
            })
            .collect();
        let chosen: BTreeSet<IpAddr> = vips
            .keys()
            .filter_map(|key| match key.target {
                VipTarget::Ip(ip) => Some(ip),
                VipTarget::Named(_) => None,
            })
            .collect();
        let mut names: BTreeMap<VipName, Vec<IpAddr>> = BTreeMap::new();
        for pool in pools {
            for (name, address) in settle(&wanted, &chosen, pool) {
                names.entry(name).or_default().push(address);
            }
        }
        for vip in vips.values_mut() {
            match &vip.key.target {
                VipTarget::Ip(ip) => vip.addresses = vec![*ip],
                VipTarget::Named(name) => match names.get(name) {
                    Some(addresses) => vip.addresses.clone_from(addresses),
                    None => problems.extend(vip.services.first().map(|service| {
                        vip_problem(
                            service,
                            format!("no address is left in the VIP pool for {name}"),
                            "the VIP is not served; configure a larger --vip-pool",
                        )
                    })),
                },
            }
        }
        (Self { vips, names }, problems)
    }
}

fn vip_problem(service: &ServiceId, what: String, hint: &str) -> Problem {
    let app: AppId = service.app.clone();
    Problem {
        app: Some(app),
        at: format!("VIP label of port {}", service.port_index),
        what,
        hint: hint.into(),
    }
}

/// Gives each name an address by deferred acceptance: every name proposes its home, home + 1, …; an address keeps
/// the claimant with the smaller (distance, SHA-1, name), and the loser moves on. The outcome is the only stable one,
/// whatever the order of the proposals. Names that found the pool full are absent.
fn settle(names: &BTreeSet<VipName>, chosen: &BTreeSet<IpAddr>, pool: &VipPool) -> BTreeMap<VipName, IpAddr> {
    struct Claim<'a> {
        distance: u64,
        digest: [u8; 20],
        name: &'a VipName,
        home: u64,
    }
    let reserved: BTreeSet<u64> =
        chosen.iter().filter_map(|ip| pool.offset(*ip)).chain([0, pool.span]).collect();
    let mut owners: BTreeMap<u64, Claim<'_>> = BTreeMap::new();
    for name in names {
        let digest = Sha1::digest(name.as_str().as_bytes()).into();
        let mut claim = Claim { distance: 0, digest, name, home: pool.home(name) };
        loop {
            let offset = pool.probe(claim.home, claim.distance);
            if !reserved.contains(&offset) {
                match owners.get_mut(&offset) {
                    None => {
                        owners.insert(offset, claim);
                        break;
                    }
                    Some(owner) => {
                        let rank = |c: &Claim<'_>| (c.distance, c.digest, c.name.clone());
                        if rank(&claim) < rank(owner) {
                            std::mem::swap(owner, &mut claim);
                        }
                    }
                }
            }
            if claim.distance == pool.span {
                break;
            }
            claim.distance += 1;
        }
    }
    owners.into_iter().map(|(offset, claim)| (claim.name.clone(), pool.address(offset))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> VipName {
        VipName(text.into())
    }

    fn addresses(pool: &str, names: &[&str]) -> BTreeMap<VipName, IpAddr> {
        let pool = pool.parse().unwrap();
        settle(&names.iter().map(|n| name(n)).collect(), &BTreeSet::new(), &pool)
    }

    #[test]
    fn names_have_the_addresses_that_dcos_gives_them() {
        for (pool, vip, expect) in [
            ("11.0.0.0/8", "dcos-101app2.marathon", "11.68.84.23"),
            ("11.0.0.0/8", "redis.marathon", "11.202.66.36"),
            ("11.0.0.0/8", "l4lbtest.marathon", "11.128.73.162"),
            ("11.0.0.0/8", "acme.marathon", "11.9.179.74"),
            ("11.0.0.0/8", "web.marathon", "11.225.36.193"),
            ("11.0.0.0/8", "broker.kafka", "11.175.100.139"),
            ("11.0.0.0/8", "api.hello-world.marathon", "11.46.7.19"),
            ("fd01:c::/64", "dcos-101app2.marathon", "fd01:c::68c7:ae1c:a5d:109c"),
            ("fd01:c::/64", "redis.marathon", "fd01:c::da94:49ac:1e87:4a07"),
            ("fd01:c::/64", "qux.ipv6", "fd01:c::6d6d:9c64:fd19:f251"),
        ] {
            assert_eq!(addresses(pool, &[vip])[&name(vip)].to_string(), expect, "{vip} in {pool}");
        }
    }

    #[test]
    fn an_empty_binary_is_not_mixed() {
        assert_eq!(phash2(b""), 0x08d1_2e65);
    }

    #[test]
    fn one_of_two_colliding_names_moves_by_one() {
        let table = addresses("11.0.0.0/8", &["app1115.marathon", "app3307.marathon"]);
        let mut got: Vec<String> = table.values().map(ToString::to_string).collect();
        got.sort();
        assert_eq!(got, ["11.16.7.113", "11.16.7.114"]);
    }

    #[test]
    fn labels_follow_the_grammar() {
        for (value, expect) in [
            ("/dcos-101/app2:10000", "dcos-101app2.marathon:10000"),
            ("redis:6379", "redis.marathon:6379"),
            ("/redis:6379", "redis.marathon:6379"),
            ("REDIS:6379", "redis.marathon:6379"),
            ("/api.hello-world:80", "api.hello-world.marathon:80"),
            ("/a/b:80", "ab.marathon:80"),
            ("my_app:80", "my-app.marathon:80"),
            ("1.2.3.4:5000", "1.2.3.4:5000"),
            ("fd01:c::1:80", "fd01:c::1:80"),
            ("[fd01:c::1]:80", "fd01:c::1:80"),
        ] {
            let label = VipLabel::parse(value, "marathon").unwrap();
            assert_eq!(format!("{}:{}", label.target, label.port), expect, "{value}");
        }
        for value in
            ["foo", "foo:", "foo:abc", "foo:0", "foo:-1", "foo:70000", ":80", "$/:80", "224.0.0.1:80", ""]
        {
            assert!(VipLabel::parse(value, "marathon").is_err(), "{value:?}");
        }
    }

    #[test]
    fn long_labels_are_cut_and_filled() {
        let long = format!("{}---{}", "a".repeat(62), "b-c".repeat(4));
        let label = dns_label(&long);
        assert_eq!(label, format!("{}b", "a".repeat(62)));
        assert_eq!(dns_label("--x--"), "x");
    }

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
    fn a_full_pool_leaves_the_rest_without_an_address() {
        let names: Vec<String> = (0..9).map(|i| format!("app{i}.marathon")).collect();
        let table = addresses("127.11.0.0/29", &names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(table.len(), 6, "8 addresses less the first and the last");
        assert_eq!(table.values().collect::<BTreeSet<_>>().len(), 6);
    }

    proptest! {
        /// Adding names in any order ends in the table that all of them at once give.
        #[test]
        fn the_table_does_not_depend_on_history(seed in proptest::collection::btree_set(0_u16..2000, 1..150)) {
            let names: BTreeSet<VipName> = seed.iter().map(|i| name(&format!("app{i}.marathon"))).collect();
            let pool: VipPool = "127.11.0.0/24".parse().unwrap();
            let table = settle(&names, &BTreeSet::new(), &pool);
            prop_assert_eq!(table.len(), names.len());
            for (name, address) in &table {
                // Stability: nobody between a name's home and its address would give way to it.
                let home = pool.home(name);
                let mut distance = 0;
                while pool.address(pool.probe(home, distance)) != *address {
                    let passed = pool.address(pool.probe(home, distance));
                    if let Some((owner, _)) = table.iter().find(|(_, a)| **a == passed) {
                        let owner_distance = (0..).find(|d| pool.address(pool.probe(pool.home(owner), *d)) == passed).unwrap();
                        let rank = |d: u64, n: &VipName| (d, <[u8; 20]>::from(Sha1::digest(n.as_str().as_bytes())), n.clone());
                        prop_assert!(rank(owner_distance, owner) < rank(distance, name));
                    }
                    distance += 1;
                }
            }
        }
    }
}
