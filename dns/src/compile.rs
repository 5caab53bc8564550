//! Compiles snapshots into zones: remembers what each source said about each name and redoes only the names whose
//! sources changed.
//!
//! It does not wait for anybody: `follow` decides what is applied when.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use event_watcher::catalog::{App, AppId, Delta, Leaders, Protocol, Snapshot, VipName, VipTarget, Vips};
use foldhash::fast::FixedState;

use crate::authority::Authority;
use crate::config::Config;
use crate::names::WireName;
use crate::records::{Data, Facts, Tier, of_agents, of_app, of_cluster, of_vip};
use crate::zone::{Node, ServiceRecord, Zone};

/// Who says something about a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    App(AppId),
    Vip(VipName),
    Agents,
    Cluster,
}

#[derive(Debug)]
struct Contribution {
    number: u32,
    names: Vec<WireName>,
}

#[derive(Debug, Default)]
struct Entry {
    facts: Vec<(u32, Tier, Data)>,
    /// Names one label longer. A name with children exists without records of its own (RFC 8020).
    n_children: usize,
}

/// What a snapshot says of one VIP name.
#[derive(Debug, PartialEq)]
struct VipFacts {
    addresses: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
}

/// Whether a snapshot has VIPs that must not be answered before the VIP plane serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewVips {
    No,
    Yes,
}

#[derive(Debug)]
pub(crate) struct Compiler {
    config: Config,
    entries: HashMap<WireName, Entry, FixedState>,
    sources: HashMap<Source, Contribution, FixedState>,
    next_source: u32,
    changed: BTreeSet<WireName>,
    /// The agents of each app's instances, and how many apps each agent has.
    agents_of: HashMap<AppId, BTreeSet<IpAddr>, FixedState>,
    agents: BTreeMap<IpAddr, usize>,
    vips: BTreeMap<VipName, VipFacts>,
    /// Those that are not in the zone yet as the snapshot has them.
    new_vips: BTreeSet<VipName>,
    snapshot: Snapshot,
    zone: Zone,
}

impl Compiler {
    /// Knows the names that do not depend on the scheduler.
    pub fn new(config: &Config) -> Self {
        let mut compiler = Self {
            config: config.clone(),
            entries: HashMap::default(),
            sources: HashMap::default(),
            next_source: 0,
            changed: BTreeSet::new(),
            agents_of: HashMap::default(),
            agents: BTreeMap::new(),
            vips: BTreeMap::new(),
            new_vips: BTreeSet::new(),
            snapshot: Snapshot::default(),
            zone: Zone::new(Authority::new(config)),
        };
        compiler.set_cluster("", Leaders::default());
        compiler
    }

    /// Takes over everything of `snapshot` but its new and moved VIPs.
    pub fn apply_without_new_vips(&mut self, snapshot: &Snapshot) -> NewVips {
        let delta = Delta::between(&self.snapshot, snapshot);
        let mut agents_changed = false;
        for id in &delta.removed {
            self.set(Source::App(id.clone()), Facts::default());
            agents_changed |= self.set_agents(id, BTreeSet::new());
        }
        let renamed = self.snapshot.framework != snapshot.framework;
        if renamed || self.snapshot.leaders != snapshot.leaders {
            self.set_cluster(&snapshot.framework, snapshot.leaders);
        }
        let apps: Vec<&Arc<App>> =
            if renamed { snapshot.apps.values().collect() } else { delta.changed.iter().collect() };
        for app in apps {
            self.set(
                Source::App(app.id.clone()),
                of_app(app, snapshot.framework_of(&app.id), self.config.compat),
            );
            let agents = app.instances.iter().filter_map(|i| i.host_address).collect();
            agents_changed |= self.set_agents(&app.id, agents);
        }
        if agents_changed {
            let agents: Vec<IpAddr> = self.agents.keys().copied().collect();
            self.set(Source::Agents, of_agents(&agents));
        }

        let mut names = std::mem::take(&mut self.new_vips);
        names.extend(snapshot.vips.changed_since(&self.snapshot.vips).filter_map(|key| match &key.target {
            VipTarget::Named(name) => Some(name.clone()),
            VipTarget::Ip(_) => None,
        }));
        self.snapshot = snapshot.clone();
        for name in names {
            match vip_facts(&snapshot.vips, &name) {
                None => {
                    self.vips.remove(&name);
                    self.set(Source::Vip(name), Facts::default());
                }
                Some(facts) if self.vips.get(&name) == Some(&facts) => {}
                Some(_) => {
                    self.new_vips.insert(name);
                }
            }
        }
        if self.new_vips.is_empty() { NewVips::No } else { NewVips::Yes }
    }

    /// Takes over the new and moved VIPs of the snapshot that was applied last.
    pub fn apply_new_vips(&mut self) {
        for name in std::mem::take(&mut self.new_vips) {
            let Some(facts) = vip_facts(&self.snapshot.vips, &name) else { continue };
            self.set(Source::Vip(name.clone()), of_vip(&name, &facts.addresses, &facts.ports));
            self.vips.insert(name, facts);
        }
    }

    /// The zone of all that was applied.
    pub fn zone(&mut self) -> Zone {
        while let Some(name) = self.changed.pop_last() {
            self.refresh(name);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as u32);
        self.zone.serial = now.max(self.zone.serial.wrapping_add(1));
        self.zone.generation = self.snapshot.generation;
        self.zone.clone()
    }

    /// Names of the cluster as a whole.
    fn set_cluster(&mut self, framework: &str, leaders: Leaders) {
        let mut facts = of_cluster(&self.config, framework, leaders);
        for apex in &self.zone.authority().apexes {
            facts.exists(&apex.name.to_string());
        }
        self.set(Source::Cluster, facts);
    }

    /// Replaces what a source says.
    fn set(&mut self, source: Source, facts: Facts) {
        let number = match self.sources.remove(&source) {
            Some(Contribution { number, names }) => {
                for name in names {
                    if let Some(entry) = self.entries.get_mut(&name) {
                        entry.facts.retain(|(by, ..)| *by != number);
                        self.changed.insert(name);
                    }
                }
                number
            }
            None => {
                self.next_source = self.next_source.wrapping_add(1);
                self.next_source
            }
        };
        if facts.0.is_empty() {
            return;
        }
        let mut names = Vec::new();
        for fact in facts.0 {
            self.ensure(&fact.name);
            if let Some(entry) = self.entries.get_mut(&fact.name) {
                entry.facts.push((number, fact.tier, fact.data));
            }
            names.push(fact.name);
        }
        names.sort_unstable();
        names.dedup();
        names.shrink_to_fit();
        for name in &names {
            if let Some(entry) = self.entries.get_mut(name) {
                // Most names have one or two facts for as long as they live; a vector makes room for four.
                entry.facts.shrink_to_fit();
            }
        }
        self.changed.extend(names.iter().cloned());
        self.sources.insert(source, Contribution { number, names });
    }

    /// Makes a name and its ancestors up to the apex exist.
    fn ensure(&mut self, name: &WireName) {
        let mut name = name.clone();
        let mut n_new_children = 0;
        loop {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.n_children += n_new_children;
                return;
            }
            self.entries.insert(name.clone(), Entry { facts: Vec::new(), n_children: n_new_children });
            self.changed.insert(name.clone());
            n_new_children = 1;
            match self.parent(&name) {
                Some(parent) => name = parent,
                None => return,
            }
        }
    }

    /// The name above, unless `name` is the top of a zone or in none.
    fn parent(&self, name: &WireName) -> Option<WireName> {
        let authority = self.zone.authority();
        let apex = authority.apex_of(name.as_bytes())?;
        (authority.apexes[apex].name != *name).then(|| name.parent()).flatten()
    }

    /// Brings one name of the zone up to date with what is said about it.
    fn refresh(&mut self, name: WireName) {
        let apex = self.zone.authority().apex_of(name.as_bytes());
        match (self.entries.get(&name), apex) {
            (Some(entry), Some(apex)) if !entry.facts.is_empty() || entry.n_children > 0 => {
                let node = node(apex, &entry.facts);
                self.zone.set(name, Some(node));
            }
            (Some(_), _) => {
                self.entries.remove(&name);
                if let Some(parent) = self.parent(&name)
                    && let Some(entry) = self.entries.get_mut(&parent)
                {
                    entry.n_children -= 1;
                    self.changed.insert(parent);
                }
                self.zone.set(name, None);
            }
            (None, _) => {}
        }
    }

    /// Tells whether the set of all agents changed.
    fn set_agents(&mut self, app: &AppId, agents: BTreeSet<IpAddr>) -> bool {
        let before = self.agents_of.remove(app).unwrap_or_default();
        let mut changed = false;
        for agent in agents.difference(&before) {
            let n_apps = self.agents.entry(*agent).or_default();
            changed |= *n_apps == 0;
            *n_apps += 1;
        }
        for agent in before.difference(&agents) {
            if let Some(n_apps) = self.agents.get_mut(agent) {
                *n_apps -= 1;
                if *n_apps == 0 {
                    self.agents.remove(agent);
                    changed = true;
                }
            }
        }
        if !agents.is_empty() {
            self.agents_of.insert(app.clone(), agents);
        }
        changed
    }
}

/// `None`: there is no such VIP.
fn vip_facts(vips: &Vips, name: &VipName) -> Option<VipFacts> {
    let addresses = vips.of_name(name).next()?.addresses.clone();
    let ports = vips.of_name(name).map(|vip| (vip.key.protocol, vip.key.port)).collect();
    Some(VipFacts { addresses, ports })
}

/// Merges what all sources say about a name.
fn node(apex: usize, facts: &[(u32, Tier, Data)]) -> Node {
    Node {
        apex,
        v4: best(facts, |data| match data {
            Data::Address(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        }),
        v6: best(facts, |data| match data {
            Data::Address(IpAddr::V6(ip)) => Some(*ip),
            _ => None,
        }),
        services: best(facts, |data| match data {
            Data::Service { port, target } => Some(ServiceRecord { target: target.clone(), port: *port }),
            _ => None,
        }),
        pointers: best(facts, |data| match data {
            Data::Pointer(name) => Some(name.clone()),
            _ => None,
        }),
    }
}

/// The records that `pick` makes of the best tier that has any, in order, without duplicates.
fn best<T: Ord>(facts: &[(u32, Tier, Data)], pick: impl Fn(&Data) -> Option<T>) -> Box<[T]> {
    for tier in [Tier::Preferred, Tier::LastResort] {
        let of_tier = facts.iter().filter(|(_, t, _)| *t == tier);
        let mut records: Vec<T> = of_tier.filter_map(|(.., data)| pick(data)).collect();
        if !records.is_empty() {
            records.sort_unstable();
            records.dedup();
            return records.into();
        }
    }
    Box::default()
}
