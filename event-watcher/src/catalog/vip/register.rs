//! What the apps ask of VIPs, and the table that follows from it: the same for the same apps, whatever was before, and
//! at the cost of what changed.
//!
//! Who gets which address is decided in `allocation`; a VIP that this node must not serve is refused here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::allocation::Allocation;
use super::claims::Claims;
use super::{Family, Protocol, Reserved, Vip, VipKey, VipName, VipPool, VipTarget, Vips};
use crate::catalog::app::{App, AppId, ServiceId};
use crate::catalog::holding::ProblemsChanged;
use crate::catalog::problem::Problem;

#[derive(Debug)]
pub(in crate::catalog) struct Register {
    pools: Vec<VipPool>,
    /// Addresses that no VIP may have on this node. On others it may, so they are not taken.
    reserved: Vec<Reserved>,
    claims: BTreeMap<AppId, Claims>,
    feeds: BTreeMap<VipKey, BTreeSet<ServiceId>>,
    /// How many VIPs a name has.
    names: BTreeMap<VipName, usize>,
    /// How many services give a VIP endpoints of each family.
    families: BTreeMap<(VipTarget, Family), usize>,
    /// How many apps have instances on an agent.
    agents: BTreeMap<IpAddr, usize>,
    /// Why no name may have an address: it is an agent's, or a VIP that somebody chose.
    taken: BTreeMap<IpAddr, usize>,
    /// One for each pool.
    allocations: Vec<Allocation>,
    vips: Arc<Vips>,
    problems: BTreeMap<VipKey, Vec<Problem>>,
}

impl Register {
    pub(in crate::catalog) fn new(pools: Vec<VipPool>) -> Self {
        Self {
            allocations: pools.iter().copied().map(Allocation::new).collect(),
            pools,
            reserved: Vec::new(),
            claims: BTreeMap::new(),
            feeds: BTreeMap::new(),
            names: BTreeMap::new(),
            families: BTreeMap::new(),
            agents: BTreeMap::new(),
            taken: BTreeMap::new(),
            vips: Arc::default(),
            problems: BTreeMap::new(),
        }
    }

    /// To be called before there are apps.
    pub(in crate::catalog) fn reserve(&mut self, reserved: Vec<Reserved>) {
        self.reserved = reserved;
    }

    pub(in crate::catalog) fn vips(&self) -> &Arc<Vips> {
        &self.vips
    }

    /// By VIP.
    pub(in crate::catalog) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// Takes in apps that changed or are gone.
    pub(in crate::catalog) fn follow<'a>(
        &mut self,
        apps: impl Iterator<Item = (&'a AppId, Option<&'a App>)>,
    ) -> ProblemsChanged {
        let mut touched = BTreeSet::new();
        for (id, app) in apps {
            self.claim(id, app.map(Claims::of).unwrap_or_default(), &mut touched);
        }
        self.settle(touched)
    }

    /// What comes is taken in before what goes is let go, so what stays is not touched.
    fn claim(&mut self, app: &AppId, now: Claims, touched: &mut BTreeSet<VipTarget>) {
        let before = self.claims.remove(app).unwrap_or_default();
        if before != now {
            let (feeds, fed) = (now.feeds(), before.feeds());
            feeds.difference(&fed).for_each(|(key, service)| self.feed(key, service, touched));
            for (target, family) in now.families() {
                if count(&mut self.families, (target.clone(), family)) == First::Yes {
                    touched.insert(target.clone());
                }
            }
            for agent in &now.agents {
                if count(&mut self.agents, *agent) == First::Yes {
                    touched.insert(VipTarget::Ip(*agent));
                    self.take(*agent);
                }
            }
            fed.difference(&feeds).for_each(|(key, service)| self.unfeed(key, service, touched));
            for (target, family) in before.families() {
                if uncount(&mut self.families, (target.clone(), family)) == Last::Yes {
                    touched.insert(target.clone());
                }
            }
            for agent in &before.agents {
                if uncount(&mut self.agents, *agent) == Last::Yes {
                    touched.insert(VipTarget::Ip(*agent));
                    self.give_back(*agent);
                }
            }
        }
        if now != Claims::default() {
            self.claims.insert(app.clone(), now);
        }
    }

    fn feed(&mut self, key: &VipKey, service: &ServiceId, touched: &mut BTreeSet<VipTarget>) {
        touched.insert(key.target.clone());
        let services = self.feeds.entry(key.clone()).or_default();
        services.insert(service.clone());
        if services.len() > 1 {
            return;
        }
        match &key.target {
            VipTarget::Ip(ip) => self.take(*ip),
            VipTarget::Named(name) => {
                if count(&mut self.names, name.clone()) == First::Yes {
                    self.allocations.iter_mut().for_each(|of_pool| of_pool.add(name));
                }
            }
        }
    }

    fn unfeed(&mut self, key: &VipKey, service: &ServiceId, touched: &mut BTreeSet<VipTarget>) {
        touched.insert(key.target.clone());
        let Some(services) = self.feeds.get_mut(key) else { return };
        services.remove(service);
        if !services.is_empty() {
            return;
        }
        self.feeds.remove(key);
        match &key.target {
            VipTarget::Ip(ip) => self.give_back(*ip),
            VipTarget::Named(name) => {
                if uncount(&mut self.names, name.clone()) == Last::Yes {
                    self.allocations.iter_mut().for_each(|of_pool| of_pool.remove(name));
                }
            }
        }
    }

    fn take(&mut self, address: IpAddr) {
        if count(&mut self.taken, address) == First::Yes {
            self.allocations.iter_mut().for_each(|of_pool| of_pool.take(address));
        }
    }

    fn give_back(&mut self, address: IpAddr) {
        if uncount(&mut self.taken, address) == Last::Yes {
            self.allocations.iter_mut().for_each(|of_pool| of_pool.give_back(address));
        }
    }

    /// Makes the VIPs anew that may differ.
    fn settle(&mut self, mut touched: BTreeSet<VipTarget>) -> ProblemsChanged {
        for of_pool in &mut self.allocations {
            touched.extend(of_pool.take_moved().into_iter().map(VipTarget::Named));
        }
        let mut problems_changed = ProblemsChanged::No;
        let mut vips = (*self.vips).clone();
        for target in touched {
            let known = vips.vips.range(keys_of(&target)).map(|(key, _)| key);
            let known = known.chain(self.problems.range(keys_of(&target)).map(|(key, _)| key));
            let all: BTreeSet<VipKey> =
                known.chain(self.feeds.range(keys_of(&target)).map(|(key, _)| key)).cloned().collect();
            let mut addresses = None;
            for key in all {
                let mut problems = Vec::new();
                match self.vip(&key, &mut problems) {
                    Some(vip) => {
                        addresses = Some(vip.addresses.clone());
                        if vips.vips.get(&key) != Some(&vip) {
                            vips.vips.insert(key.clone(), vip);
                        }
                    }
                    None => {
                        vips.vips.remove(&key);
                    }
                }
                if self.problems.get(&key).map_or(&[][..], Vec::as_slice) != problems {
                    problems_changed = ProblemsChanged::Yes;
                    match problems.is_empty() {
                        true => self.problems.remove(&key),
                        false => self.problems.insert(key, problems),
                    };
                }
            }
            if let VipTarget::Named(name) = target {
                match addresses {
                    Some(addresses) if vips.names.get(&name) == Some(&addresses) => {}
                    Some(addresses) => {
                        vips.names.insert(name, addresses);
                    }
                    None => {
                        vips.names.remove(&name);
                    }
                }
            }
        }
        if !vips.is_shared_with(&self.vips) {
            self.vips = Arc::new(vips);
        }
        problems_changed
    }

    /// One VIP as it is served here. `None`: not at all.
    fn vip(&self, key: &VipKey, problems: &mut Vec<Problem>) -> Option<Vip> {
        let services: Vec<ServiceId> = self.feeds.get(key)?.iter().cloned().collect();
        let first = services.first()?;
        let all: Vec<IpAddr> = match &key.target {
            VipTarget::Ip(ip) => {
                if let Some(reason) = self.shadows(*ip) {
                    let refuse = |s| refused(s, key, reason.clone(), "choose another address");
                    problems.extend(services.iter().map(refuse));
                    return None;
                }
                vec![*ip]
            }
            VipTarget::Named(name) => {
                self.allocations.iter().filter_map(|of_pool| of_pool.address(name)).collect()
            }
        };
        let has = |family: &Family| self.families.contains_key(&(key.target.clone(), *family));
        let of_endpoints: Vec<Family> = [Family::Ipv4, Family::Ipv6].into_iter().filter(has).collect();
        let of_vip = match &key.target {
            _ if !of_endpoints.is_empty() => of_endpoints,
            VipTarget::Ip(ip) => vec![Family::of(*ip)],
            VipTarget::Named(_) => vec![before_endpoints(&self.pools)],
        };
        let n_allocated = all.len();
        let mut addresses: Vec<IpAddr> =
            all.into_iter().filter(|ip| of_vip.contains(&Family::of(*ip))).collect();
        if addresses.is_empty() {
            let (reason, hint) = match &key.target {
                VipTarget::Named(name) if n_allocated == 0 => (
                    format!("no address is left in the VIP pool for {name}"),
                    "configure a larger --vip-pool",
                ),
                target => {
                    let hint = match target {
                        VipTarget::Ip(_) => "choose an address of the endpoints' family",
                        VipTarget::Named(_) => "configure a --vip-pool of that family",
                    };
                    let (theirs, its) =
                        if of_vip.contains(&Family::Ipv4) { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                    let reason = format!(
                        "its endpoints have only {theirs} addresses, and it has only an {its} address"
                    );
                    (reason, hint)
                }
            };
            problems.push(refused(first, key, reason, hint));
        } else if let Some(other) =
            addresses.iter().find_map(|ip| self.reserved.iter().find(|r| r.address == *ip))
        {
            // On every node the same address, so it is not given away; but here it must not be served.
            let reason = format!("{} is {}", other.address, other.what);
            problems.push(refused(first, key, reason, "configure a --vip-pool that no host's address is in"));
            addresses.retain(|ip| self.reserved.iter().all(|r| r.address != *ip));
        }
        // A name stays known without an address.
        let stays = !addresses.is_empty() || matches!(key.target, VipTarget::Named(_));
        stays.then(|| Vip { key: key.clone(), addresses, services })
    }

    /// Why an address that somebody chose for a VIP must not be served.
    fn shadows(&self, ip: IpAddr) -> Option<String> {
        if let Some(other) = self.reserved.iter().find(|r| r.address == ip) {
            return Some(format!("{ip} is {}", other.what));
        }
        if self.agents.contains_key(&ip) {
            return Some(format!("{ip} is the address of an agent, which it would shadow"));
        }
        (ip.is_loopback() && !self.pools.iter().any(|pool| pool.contains(ip)))
            .then(|| format!("{ip} is a loopback address outside the VIP pool and would shadow this host"))
    }
}

/// The family of a name's addresses until its endpoints say otherwise.
fn before_endpoints(pools: &[VipPool]) -> Family {
    if pools.iter().any(VipPool::is_ipv4) { Family::Ipv4 } else { Family::Ipv6 }
}

fn keys_of(target: &VipTarget) -> std::ops::RangeInclusive<VipKey> {
    let at = |protocol, port| VipKey { target: target.clone(), protocol, port };
    at(Protocol::Tcp, 0)..=at(Protocol::Udp, u16::MAX)
}

fn refused(service: &ServiceId, key: &VipKey, what: String, hint: &str) -> Problem {
    Problem {
        app: Some(service.app.clone()),
        at: format!("VIP {}:{} of port {}", key.target, key.port, service.port_index),
        what,
        hint: format!("this VIP is not served; {hint}"),
    }
}

#[derive(PartialEq, Eq)]
enum First {
    No,
    Yes,
}

#[derive(PartialEq, Eq)]
enum Last {
    No,
    Yes,
}

fn count<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> First {
    let n = counts.entry(key).or_default();
    *n += 1;
    if *n == 1 { First::Yes } else { First::No }
}

/// What nobody counts is forgotten.
fn uncount<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> Last {
    let Entry::Occupied(mut n) = counts.entry(key) else { return Last::No };
    *n.get_mut() -= 1;
    if *n.get() > 0 {
        return Last::No;
    }
    n.remove();
    Last::Yes
}

#[cfg(test)]
mod tests;
