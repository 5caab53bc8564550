//! Compiles snapshots into zones: remembers what each source said about each name and redoes only the names whose
//! sources changed.
//!
//! It does not wait for anybody: `follow` decides what is applied when.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use event_watcher::catalog::{App, AppId, Delta, Leaders, Protocol, Snapshot, VipName, VipTarget, Vips};
use foldhash::fast::FixedState;

use crate::authority::Authority;
use crate::config::Config;
use crate::names::{self, WireName};
use crate::records::{Data, Fact, Facts, Tier, of_agents, of_app, of_cluster, of_vip};
use crate::zone::{Node, Records, SaidBy, ServiceRecord, Zone};

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
    number: NonZeroU32,
    /// In order.
    names: Box<[WireName]>,
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
    sources: HashMap<Source, Contribution, FixedState>,
    by_number: HashMap<NonZeroU32, Source, FixedState>,
    last_number: NonZeroU32,
    /// Names that several sources say something about, which is rare.
    shared: HashMap<WireName, BTreeSet<NonZeroU32>, FixedState>,
    /// Of those and of those that were, what has to be merged anew.
    unmerged: BTreeSet<WireName>,
    /// The agents of each app's instances, and how many apps each agent has.
    agents_of: HashMap<AppId, BTreeSet<IpAddr>, FixedState>,
    agents: BTreeMap<IpAddr, usize>,
    /// Since their names were made.
    agents_changed: bool,
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
            sources: HashMap::default(),
            by_number: HashMap::default(),
            last_number: NonZeroU32::MIN,
            shared: HashMap::default(),
            unmerged: BTreeSet::new(),
            agents_of: HashMap::default(),
            agents: BTreeMap::new(),
            agents_changed: false,
            vips: BTreeMap::new(),
            new_vips: BTreeSet::new(),
            snapshot: Snapshot::default(),
            zone: Zone::new(Authority::new(config)),
        };
        let facts = compiler.of_cluster("", Leaders::default());
        compiler.set(Source::Cluster, facts);
        compiler
    }

    /// Takes over everything of `snapshot` but its new and moved VIPs.
    pub fn apply_without_new_vips(&mut self, snapshot: &Snapshot) -> NewVips {
        for app in self.begin(snapshot) {
            self.apply_app(snapshot, &app);
        }
        self.end(snapshot)
    }

    /// The same in pieces: first what is gone. Returns the apps that are to be applied, each by itself, before the end.
    pub fn begin(&mut self, snapshot: &Snapshot) -> Vec<Arc<App>> {
        let delta = Delta::between(&self.snapshot, snapshot);
        for id in &delta.removed {
            self.set(Source::App(id.clone()), Facts::default());
            self.set_agents(id, BTreeSet::new());
        }
        let renamed = self.snapshot.framework != snapshot.framework;
        if renamed || self.snapshot.leaders != snapshot.leaders {
            let facts = self.of_cluster(&snapshot.framework, snapshot.leaders);
            self.set(Source::Cluster, facts);
        }
        if renamed { snapshot.apps.values().cloned().collect() } else { delta.changed }
    }

    pub fn apply_app(&mut self, snapshot: &Snapshot, app: &App) {
        let facts = of_app(app, snapshot.framework_of(&app.id), self.config.compat);
        self.set(Source::App(app.id.clone()), facts);
        self.set_agents(&app.id, app.instances.iter().filter_map(|i| i.host_address).collect());
    }

    /// Last what concerns several apps.
    pub fn end(&mut self, snapshot: &Snapshot) -> NewVips {
        if std::mem::take(&mut self.agents_changed) {
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
        self.merge();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as u32);
        self.zone.serial = now.max(self.zone.serial.wrapping_add(1));
        self.zone.generation = self.snapshot.generation;
        self.zone.clone()
    }

    /// Names of the cluster as a whole.
    fn of_cluster(&self, framework: &str, leaders: Leaders) -> Facts {
        let mut facts = of_cluster(&self.config, framework, leaders);
        for apex in &self.zone.authority().apexes {
            facts.exists(&apex.name);
        }
        facts
    }

    /// What a source says, of all that was applied.
    fn facts(&self, source: &Source) -> Facts {
        match source {
            Source::App(id) => self.snapshot.app(id).map_or_else(Facts::default, |app| {
                of_app(app, self.snapshot.framework_of(id), self.config.compat)
            }),
            Source::Vip(name) => self
                .vips
                .get(name)
                .map_or_else(Facts::default, |vip| of_vip(name, &vip.addresses, &vip.ports)),
            Source::Agents => of_agents(&self.agents.keys().copied().collect::<Vec<_>>()),
            Source::Cluster => self.of_cluster(&self.snapshot.framework, self.snapshot.leaders),
        }
    }

    /// Replaces what a source says.
    fn set(&mut self, source: Source, facts: Facts) {
        let (number, before) = match self.sources.remove(&source) {
            Some(Contribution { number, names }) => (number, names),
            None => (self.new_number(), Box::default()),
        };
        let mut facts = facts.0;
        // Those of an app's own names are mostly the same object.
        facts.sort_by(|a, b| if a.name.is_same(&b.name) { Ordering::Equal } else { a.name.cmp(&b.name) });
        let mut names = Vec::new();
        // The names of an instance have mostly the same records.
        let mut known = HashSet::<Arc<Records>, FixedState>::default();
        for of_name in facts.chunk_by(|a, b| a.name == b.name) {
            names.extend(self.say(&of_name[0].name, number, of_name, &mut known));
        }
        for name in before {
            if names.binary_search(&name).is_err() {
                self.unsay(name, number);
            }
        }
        if names.is_empty() {
            self.by_number.remove(&number);
        } else {
            self.by_number.insert(number, source.clone());
            self.sources.insert(source, Contribution { number, names: names.into() });
        }
    }

    fn new_number(&mut self) -> NonZeroU32 {
        while self.by_number.contains_key(&self.last_number) {
            self.last_number = self.last_number.checked_add(1).unwrap_or(NonZeroU32::MIN);
        }
        self.last_number
    }

    /// A source says this about a name. Returns the zone's own copy of the name, unless it lies in no zone.
    fn say(
        &mut self,
        name: &WireName,
        number: NonZeroU32,
        facts: &[Fact],
        known: &mut HashSet<Arc<Records>, FixedState>,
    ) -> Option<WireName> {
        let name = self.ensure(name)?;
        match self.zone.names.get(&name)?.said_by {
            SaidBy::One(other) if other != number => {
                self.shared.insert(name.clone(), [other, number].into());
                self.unmerged.insert(name.clone());
                self.zone.names.get_mut(&name)?.said_by = SaidBy::Several;
            }
            SaidBy::Several => {
                self.shared.entry(name.clone()).or_default().insert(number);
                self.unmerged.insert(name.clone());
            }
            SaidBy::Nobody | SaidBy::One(_) => {
                let records = records(facts.iter());
                let records = match known.get(&records) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let records = Arc::new(records);
                        known.insert(Arc::clone(&records));
                        records
                    }
                };
                self.put(&name, SaidBy::One(number), &records);
            }
        }
        Some(name)
    }

    /// A source says nothing about a name any more.
    fn unsay(&mut self, name: WireName, number: NonZeroU32) {
        match self.zone.names.get(&name).map(|node| node.said_by) {
            Some(SaidBy::One(known)) if known == number => {
                self.put(&name, SaidBy::Nobody, &Arc::default());
                self.prune(name);
            }
            Some(SaidBy::Several) => {
                if let Some(numbers) = self.shared.get_mut(&name) {
                    numbers.remove(&number);
                }
                self.unmerged.insert(name);
            }
            _ => {}
        }
    }

    /// Makes a name and its ancestors up to the apex exist.
    fn ensure(&mut self, name: &WireName) -> Option<WireName> {
        if let Some((known, _)) = self.zone.names.get_key_value(name) {
            return Some(known.clone());
        }
        let authority = self.zone.authority();
        let apex = authority.apex_of(name.as_bytes())?;
        let n_apex_bytes = authority.apexes[apex].name.as_bytes().len();
        self.zone.names.insert(name.clone(), Node::new(apex));
        let mut child = name.as_bytes();
        while child.len() > n_apex_bytes {
            let parent = names::parent(child)?;
            if let Some(node) = self.zone.names.get_mut(parent) {
                node.n_children += 1;
                break;
            }
            let mut node = Node::new(apex);
            node.n_children = 1;
            self.zone.names.insert(WireName::from_wire(parent), node);
            child = parent;
        }
        Some(name.clone())
    }

    /// Removes a name that nobody speaks of, and its ancestors that exist for its sake alone.
    fn prune(&mut self, name: WireName) {
        let mut child = name.as_bytes();
        while let Some(node) = self.zone.names.get(child)
            && node.said_by == SaidBy::Nobody
            && node.n_children == 0
        {
            let is_apex = self.zone.authority().apexes[node.apex()].name.as_bytes().len() == child.len();
            self.zone.names.remove(child);
            let Some(parent) = names::parent(child).filter(|_| !is_apex) else { return };
            if let Some(node) = self.zone.names.get_mut(parent) {
                node.n_children -= 1;
            }
            child = parent;
        }
    }

    /// Changes a name in the zone, if that changes anything.
    fn put(&mut self, name: &WireName, said_by: SaidBy, records: &Arc<Records>) {
        let is_same = |node: &Node| node.said_by == said_by && **node == **records;
        if self.zone.names.get(name).is_none_or(is_same) {
            return;
        }
        if let Some(node) = self.zone.names.get_mut(name) {
            node.said_by = said_by;
            node.set_records(records);
        }
    }

    /// Merges what several sources say about a name.
    fn merge(&mut self) {
        let mut told: HashMap<NonZeroU32, Facts, FixedState> = HashMap::default();
        while let Some(name) = self.unmerged.pop_last() {
            let Some(numbers) = self.shared.get(&name) else { continue };
            for number in numbers {
                if let Some(source) = self.by_number.get(number) {
                    told.entry(*number).or_insert_with(|| self.facts(source));
                }
            }
            let all = numbers.iter().filter_map(|number| told.get(number)).flat_map(|facts| &facts.0);
            let records = Arc::new(records(all.filter(|fact| fact.name == name)));
            let said_by = match (numbers.first(), numbers.len()) {
                (None, _) => SaidBy::Nobody,
                (Some(last), 1) => SaidBy::One(*last),
                _ => SaidBy::Several,
            };
            self.put(&name, said_by, &records);
            if said_by != SaidBy::Several {
                self.shared.remove(&name);
                self.prune(name);
            }
        }
    }

    fn set_agents(&mut self, app: &AppId, agents: BTreeSet<IpAddr>) {
        let before = self.agents_of.remove(app).unwrap_or_default();
        for agent in agents.difference(&before) {
            let n_apps = self.agents.entry(*agent).or_default();
            self.agents_changed |= *n_apps == 0;
            *n_apps += 1;
        }
        for agent in before.difference(&agents) {
            if let Some(n_apps) = self.agents.get_mut(agent) {
                *n_apps -= 1;
                if *n_apps == 0 {
                    self.agents.remove(agent);
                    self.agents_changed = true;
                }
            }
        }
        if !agents.is_empty() {
            self.agents_of.insert(app.clone(), agents);
        }
    }
}

/// `None`: there is no such VIP.
fn vip_facts(vips: &Vips, name: &VipName) -> Option<VipFacts> {
    let addresses = vips.of_name(name).next()?.addresses.clone();
    let ports = vips.of_name(name).map(|vip| (vip.key.protocol, vip.key.port)).collect();
    Some(VipFacts { addresses, ports })
}

/// Merges all that is said about a name.
fn records<'a>(facts: impl Iterator<Item = &'a Fact> + Clone) -> Records {
    Records {
        v4: best(facts.clone(), |data| match data {
            Data::Address(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        }),
        v6: best(facts.clone(), |data| match data {
            Data::Address(IpAddr::V6(ip)) => Some(*ip),
            _ => None,
        }),
        services: best(facts.clone(), |data| match data {
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
fn best<'a, T: Ord>(
    facts: impl Iterator<Item = &'a Fact> + Clone,
    pick: impl Fn(&Data) -> Option<T>,
) -> Box<[T]> {
    for tier in [Tier::Preferred, Tier::LastResort] {
        let of_tier = facts.clone().filter(|fact| fact.tier == tier);
        let mut records: Vec<T> = of_tier.filter_map(|fact| pick(&fact.data)).collect();
        if !records.is_empty() {
            records.sort_unstable();
            records.dedup();
            return records.into();
        }
    }
    Box::default()
}

#[cfg(test)]
mod tests;
