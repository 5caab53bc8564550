//! All VIPs of a snapshot: what the apps ask for, less what this node must not serve, with addresses.
//!
//! A VIP exists as long as a definition names it, with or without instances. Who listens on it and how its endpoints
//! are picked is the VIP plane's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::Serialize;

use super::allocation::settle;
use super::{Protocol, VipKey, VipName, VipPool, VipTarget};
use crate::catalog::app::{App, ServiceId};
use crate::catalog::problem::Problem;

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
#[derive(Debug, Default, PartialEq)]
pub struct Vips {
    vips: OrdMap<VipKey, Vip>,
    names: OrdMap<VipName, Vec<IpAddr>>,
}

/// What of an app the table depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::catalog) struct Claims {
    /// Services with VIPs, with the families that their endpoints have.
    services: Vec<(ServiceId, Vec<VipKey>, BTreeSet<Family>)>,
    /// Agents of its instances. No VIP may have an agent's address.
    agents: BTreeSet<IpAddr>,
}

impl Claims {
    pub(in crate::catalog) fn of(app: &App) -> Self {
        let services = app.services.iter().filter(|service| !service.vips.is_empty());
        let services = services.map(|service| {
            let index = service.id.port_index;
            let endpoints = app.instances.iter().flat_map(|i| &i.endpoints).filter(|e| e.port_index == index);
            let families = endpoints.map(|endpoint| Family::of(endpoint.address.ip())).collect();
            (service.id.clone(), service.vips.clone(), families)
        });
        let agents = app.instances.iter().filter_map(|instance| instance.host_address).collect();
        Self { services: services.collect(), agents }
    }

    pub(in crate::catalog) fn has_vips(&self) -> bool {
        !self.services.is_empty()
    }

    /// The same services have the same VIPs; which families their endpoints have is another matter.
    pub(in crate::catalog) fn same_services(&self, other: &Self) -> bool {
        let named = |claims: &Self| -> Vec<(ServiceId, Vec<VipKey>)> {
            claims.services.iter().map(|(id, keys, _)| (id.clone(), keys.clone())).collect()
        };
        named(self) == named(other)
    }

    /// The families that its endpoints have, for each VIP that they feed.
    pub(in crate::catalog) fn families(&self) -> Vec<(VipTarget, Family)> {
        let mut found = Vec::new();
        for (_, keys, families) in &self.services {
            let targets: BTreeSet<&VipTarget> = keys.iter().map(|key| &key.target).collect();
            for target in targets {
                found.extend(families.iter().map(|family| (target.clone(), *family)));
            }
        }
        found
    }

    pub(in crate::catalog) fn targets(&self) -> impl Iterator<Item = &VipTarget> {
        self.services.iter().flat_map(|(_, keys, _)| keys).map(|key| &key.target)
    }

    /// The addresses that it names as VIPs, each once.
    pub(in crate::catalog) fn chosen(&self) -> BTreeSet<IpAddr> {
        let keys = self.services.iter().flat_map(|(_, keys, _)| keys);
        keys.filter_map(|key| match key.target {
            VipTarget::Ip(ip) => Some(ip),
            VipTarget::Named(_) => None,
        })
        .collect()
    }

    pub(in crate::catalog) fn agents(&self) -> &BTreeSet<IpAddr> {
        &self.agents
    }
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

    /// Allocates addresses for all VIPs that `claims` name. What cannot be served is left out and is a problem. The
    /// outcome is the same whatever `previous` is, with which it shares what it can.
    pub(in crate::catalog) fn allocate<'a>(
        previous: &Self,
        claims: impl Iterator<Item = &'a Claims> + Clone,
        pools: &[VipPool],
        reserved: &[Reserved],
    ) -> (Self, Vec<Problem>) {
        let agents: BTreeSet<IpAddr> = claims.clone().flat_map(|claims| &claims.agents).copied().collect();
        let mut problems = Vec::new();
        let mut vips: BTreeMap<VipKey, Vip> = BTreeMap::new();
        let mut families: BTreeMap<&VipTarget, BTreeSet<Family>> = BTreeMap::new();
        for (service, keys, of_service) in claims.flat_map(|claims| &claims.services) {
            for key in keys {
                if let VipTarget::Ip(ip) = key.target
                    && let Some(reason) = shadows(ip, pools, reserved, &agents)
                {
                    problems.push(refused(service, key, reason, "choose another address"));
                    continue;
                }
                families.entry(&key.target).or_default().extend(of_service);
                let vip = vips.entry(key.clone()).or_insert_with(|| Vip {
                    key: key.clone(),
                    addresses: Vec::new(),
                    services: Vec::new(),
                });
                if vip.services.last() != Some(service) {
                    vip.services.push(service.clone());
                }
            }
        }
        let chosen = vips.keys().filter_map(|key| match key.target {
            VipTarget::Ip(ip) => Some(ip),
            VipTarget::Named(_) => None,
        });
        let taken: BTreeSet<IpAddr> = chosen.chain(agents.iter().copied()).collect();
        let wanted: BTreeSet<&VipName> = vips
            .keys()
            .filter_map(|key| match &key.target {
                VipTarget::Named(name) => Some(name),
                VipTarget::Ip(_) => None,
            })
            .collect();
        let mut names: BTreeMap<VipName, Vec<IpAddr>> = BTreeMap::new();
        for pool in pools {
            for (name, address) in settle(wanted.iter().copied(), &taken, pool) {
                names.entry(name).or_default().push(address);
            }
        }
        let before_endpoints = before_endpoints(pools);
        vips.retain(|key, vip| {
            let of_endpoints = families.get(&key.target).filter(|families| !families.is_empty());
            let (all, hint) = match &key.target {
                VipTarget::Ip(ip) => (vec![*ip], "choose an address of the endpoints' family"),
                VipTarget::Named(name) => {
                    (names.get(name).cloned().unwrap_or_default(), "configure a --vip-pool of that family")
                }
            };
            let n_allocated = all.len();
            vip.addresses = match (of_endpoints, &key.target) {
                (Some(families), _) => {
                    all.into_iter().filter(|ip| families.contains(&Family::of(*ip))).collect()
                }
                (None, VipTarget::Ip(_)) => all,
                (None, VipTarget::Named(_)) => {
                    all.into_iter().filter(|ip| Family::of(*ip) == before_endpoints).collect()
                }
            };
            let reason = match (&key.target, vip.addresses.is_empty(), n_allocated) {
                (_, false, _) => return true,
                (VipTarget::Named(name), true, 0) => {
                    let reason = format!("no address is left in the VIP pool for {name}");
                    problems.extend(
                        vip.services
                            .first()
                            .map(|s| refused(s, key, reason, "configure a larger --vip-pool")),
                    );
                    // The name stays known, without an address.
                    return true;
                }
                _ if of_endpoints.is_some_and(|families| families.contains(&Family::Ipv4)) => {
                    "its endpoints have only IPv4 addresses, and it has only an IPv6 address"
                }
                _ => "its endpoints have only IPv6 addresses, and it has only an IPv4 address",
            };
            problems.extend(vip.services.first().map(|s| refused(s, key, reason.to_owned(), hint)));
            matches!(key.target, VipTarget::Named(_))
        });
        for (key, vip) in &mut vips {
            // On every node the same address, so it is not given away; but here it must not be served.
            let Some(other) = vip.addresses.iter().find_map(|ip| reserved.iter().find(|r| r.address == *ip))
            else {
                continue;
            };
            let reason = format!("{} is {}", other.address, other.what);
            let hint = "configure a --vip-pool that no host's address is in";
            problems.extend(vip.services.first().map(|s| refused(s, key, reason, hint)));
            vip.addresses.retain(|ip| reserved.iter().all(|r| r.address != *ip));
        }
        let names: BTreeMap<VipName, Vec<IpAddr>> = vips
            .values()
            .filter_map(|vip| match &vip.key.target {
                VipTarget::Named(name) => Some((name.clone(), vip.addresses.clone())),
                VipTarget::Ip(_) => None,
            })
            .collect();
        (Self { vips: share(&previous.vips, vips), names: share(&previous.names, names) }, problems)
    }
}

/// The family of a name's addresses until its endpoints say otherwise.
pub(in crate::catalog) fn before_endpoints(pools: &[VipPool]) -> Family {
    if pools.iter().any(VipPool::is_ipv4) { Family::Ipv4 } else { Family::Ipv6 }
}

/// `now`, sharing with `previous` what is equal.
fn share<K: Ord + Clone, V: PartialEq + Clone>(previous: &OrdMap<K, V>, now: BTreeMap<K, V>) -> OrdMap<K, V> {
    let mut shared = previous.clone();
    let mut before = previous.iter().peekable();
    for (key, value) in now {
        while let Some((gone, _)) = before.next_if(|(known, _)| **known < key) {
            shared.remove(gone);
        }
        match before.next_if(|(known, _)| **known == key) {
            Some((_, known)) if *known == value => {}
            _ => {
                shared.insert(key, value);
            }
        }
    }
    for (gone, _) in before {
        shared.remove(gone);
    }
    shared
}

/// Why an address that somebody chose for a VIP must not be served.
fn shadows(
    ip: IpAddr,
    pools: &[VipPool],
    reserved: &[Reserved],
    agents: &BTreeSet<IpAddr>,
) -> Option<String> {
    if let Some(other) = reserved.iter().find(|r| r.address == ip) {
        return Some(format!("{ip} is {}", other.what));
    }
    if agents.contains(&ip) {
        return Some(format!("{ip} is the address of an agent, which it would shadow"));
    }
    (ip.is_loopback() && !pools.iter().any(|pool| pool.contains(ip)))
        .then(|| format!("{ip} is a loopback address outside the VIP pool and would shadow this host"))
}

fn refused(service: &ServiceId, key: &VipKey, what: String, hint: &str) -> Problem {
    Problem {
        app: Some(service.app.clone()),
        at: format!("VIP {}:{} of port {}", key.target, key.port, service.port_index),
        what,
        hint: format!("this VIP is not served; {hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{AppId, VipLabel};

    /// An app with one TCP VIP, and the families of its endpoints.
    fn claims(app: &str, label: &str, families: &[Family]) -> Claims {
        let key = VipLabel::parse(label, "marathon").unwrap().for_protocol(Protocol::Tcp);
        let service = ServiceId { app: AppId::new(app), port_index: 0 };
        Claims {
            services: vec![(service, vec![key], families.iter().copied().collect())],
            agents: BTreeSet::new(),
        }
    }

    fn allocate(claims: &[Claims], pools: &[&str]) -> (Vec<String>, Vec<String>) {
        let pools: Vec<VipPool> = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        let reserved = [
            ("10.0.0.1", "an address of this host"),
            ("198.51.100.1", "where Waymark's DNS listens"),
            ("11.9.179.74", "an address of this host"),
        ];
        let reserved =
            reserved.map(|(ip, what)| Reserved { address: ip.parse().unwrap(), what: what.into() });
        let (vips, problems) = Vips::allocate(&Vips::default(), claims.iter(), &pools, &reserved);
        let vips = vips.iter().map(|vip| {
            let services: Vec<String> = vip.services.iter().map(ToString::to_string).collect();
            format!("{}:{} {:?} {}", vip.key.target, vip.key.port, vip.addresses, services.join(" "))
        });
        (vips.collect(), problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn families_follow_the_endpoints() {
        use Family::{Ipv4, Ipv6};
        const V4: &str = "11.202.66.36";
        const V6: &str = "fd01:c::da94:49ac:1e87:4a07";
        for (families, expect) in [
            (&[][..], format!("[{V4}]")),
            (&[Ipv4], format!("[{V4}]")),
            (&[Ipv6], format!("[{V6}]")),
            (&[Ipv4, Ipv6], format!("[{V4}, {V6}]")),
        ] {
            let (vips, problems) =
                allocate(&[claims("/a", "redis:80", families)], &["11.0.0.0/8", "fd01:c::/64"]);
            assert_eq!(vips, [format!("redis.marathon:80 {expect} /a#0")]);
            assert!(problems.is_empty(), "{problems:?}");
        }
        let (vips, problems) = allocate(&[claims("/a", "redis:80", &[Ipv6])], &["11.0.0.0/8"]);
        assert_eq!(vips, ["redis.marathon:80 [] /a#0"], "the name stays");
        assert!(problems[0].contains("only IPv6") && problems[0].contains("--vip-pool"), "{problems:?}");
    }

    #[test]
    fn a_vip_may_have_several_apps_and_needs_no_instance() {
        let apps = [
            claims("/a", "redis:80", &[Family::Ipv4]),
            claims("/b", "/REDIS:80", &[]),
            claims("/c", "redis:81", &[]),
        ];
        let (vips, problems) = allocate(&apps, &["11.0.0.0/8"]);
        let expect = ["redis.marathon:80 [11.202.66.36] /a#0 /b#0", "redis.marathon:81 [11.202.66.36] /c#0"];
        assert_eq!(vips, expect);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn what_would_shadow_something_is_refused_with_the_reason() {
        use Family::{Ipv4, Ipv6};
        let mut elsewhere = claims("/elsewhere", "elsewhere:80", &[Ipv4]);
        elsewhere.agents = ["10.0.0.2".parse().unwrap()].into();
        for (label, families, reason) in [
            ("10.0.0.1:80", &[Ipv4], "an address of this host"),
            ("198.51.100.1:53", &[Ipv4], "DNS"),
            ("10.0.0.2:80", &[Ipv4], "an agent"),
            ("127.0.0.1:80", &[Ipv4], "loopback"),
            ("[::1]:80", &[Ipv6], "loopback"),
            ("[fd01:c::5]:80", &[Ipv4], "only IPv4"),
            ("10.0.0.9:80", &[Ipv6], "only IPv6"),
        ] {
            let apps = [elsewhere.clone(), claims("/a", label, families)];
            let (vips, problems) = allocate(&apps, &["11.0.0.0/8"]);
            assert_eq!(vips.len(), 1, "{label}: {vips:?}");
            assert_eq!(problems.len(), 1, "{label}: {problems:?}");
            assert!(
                problems[0].starts_with("/a: VIP ") && problems[0].contains(reason),
                "{label}: {problems:?}"
            );
        }
        let (vips, problems) = allocate(&[claims("/a", "127.11.0.9:80", &[Ipv4])], &["127.11.0.0/16"]);
        assert_eq!((vips.len(), problems.len()), (1, 0), "loopback inside the pool");

        let (vips, problems) = allocate(&[claims("/acme", "acme:80", &[Ipv4])], &["11.0.0.0/8"]);
        assert_eq!(vips, ["acme.marathon:80 [] /acme#0"], "a name whose address is this host's");
        assert!(problems[0].contains("an address of this host"), "{problems:?}");
    }

    #[test]
    fn tables_differ_by_what_changed_whatever_was_before() {
        let label = |i: u32, port: u16| claims(&format!("/a{i}"), &format!("a{i}:{port}"), &[Family::Ipv4]);
        let pools: Vec<VipPool> = vec!["11.0.0.0/8".parse().unwrap()];
        let table =
            |previous: &Vips, claims: &[Claims]| Vips::allocate(previous, claims.iter(), &pools, &[]).0;
        let mut claims: Vec<Claims> = (0..300).map(|i| label(i, 80)).collect();
        let first = table(&Vips::default(), &claims);
        claims[7] = label(7, 81);
        claims.remove(100);
        claims.push(label(300, 80));
        let second = table(&first, &claims);
        assert_eq!(second, table(&Vips::default(), &claims));
        let told = |keys: &mut dyn Iterator<Item = &VipKey>| {
            keys.map(|key| format!("{}:{}", key.target, key.port)).collect::<Vec<_>>()
        };
        let expect =
            ["a100.marathon:80", "a300.marathon:80", "a7.marathon:80", "a7.marathon:81"].map(String::from);
        assert_eq!(told(&mut second.changed_since(&first)), expect);
        assert_eq!(told(&mut second.changed_since(&second)), [""; 0]);
        let VipTarget::Named(name) = &first.iter().next().unwrap().key.target else { unreachable!() };
        assert_eq!(told(&mut first.of_name(name).map(|vip| &vip.key)), ["a0.marathon:80"]);
    }

    #[test]
    fn names_keep_off_agents_and_chosen_addresses() {
        let mut agent = claims("/a", "redis:80", &[]);
        agent.agents = ["11.202.66.36".parse().unwrap()].into();
        let apps = [agent, claims("/b", "11.202.66.37:80", &[])];
        let (vips, _) = allocate(&apps, &["11.0.0.0/8"]);
        assert_eq!(vips[0], "redis.marathon:80 [11.202.66.38] /a#0");
    }

    #[test]
    fn a_full_pool_is_told() {
        let apps: Vec<Claims> = (0..7).map(|i| claims(&format!("/{i}"), &format!("n{i}:80"), &[])).collect();
        let (vips, problems) = allocate(&apps, &["127.11.0.0/29"]);
        assert_eq!((vips.len(), problems.len()), (7, 1));
        assert!(problems[0].contains("no address is left"), "{problems:?}");
    }
}
