//! The zone: an immutable map from names to what is answered for them, in shards that generations share.
//!
//! It does not know which zones there are (`authority`), apps (`records`), how it comes to be (`compile`), nor what a packet looks like (`handler`).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use event_watcher::catalog::Generation;
use foldhash::fast::FixedState;

pub(crate) use crate::authority::BeforeSync;
use crate::authority::{Alias, Apex, Authority};
use crate::names::{MAX_NAME, WireName, labels};
use crate::stats::Source;

/// So many parts that a change copies little (a name's shard holds some hundred of 100,000 names), so few that a
/// generation is cheap to publish (one pointer each).
const N_SHARDS: usize = 256;

pub(crate) type Shard = HashMap<WireName, Arc<Node>, FixedState>;

#[derive(Clone, Debug)]
pub(crate) struct Zone {
    shards: Box<[Arc<Shard>]>,
    /// Seeded per process: who names apps cannot aim at one bucket.
    hasher: FixedState,
    authority: Arc<Authority>,
    pub generation: Generation,
    /// SOA serial (RFC 1912 section 2.2): rises with each generation.
    pub serial: u32,
}

/// All records of one name. Sorted, without duplicates, and only the best tier of each type.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Node {
    /// Index of the apex that it lies under.
    pub apex: usize,
    pub v4: Box<[Ipv4Addr]>,
    pub v6: Box<[Ipv6Addr]>,
    pub services: Box<[ServiceRecord]>,
    /// Names of the address that this name is the reverse of.
    pub pointers: Box<[WireName]>,
}

impl Node {
    /// The name exists and has no record: an empty non-terminal, or an app without a running instance.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty() && self.services.is_empty() && self.pointers.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceRecord {
    pub target: WireName,
    pub port: u16,
}

/// What there is to say about a name.
#[derive(Debug)]
pub(crate) struct Found<'z> {
    pub apex: &'z Apex,
    /// `None`: the name does not exist.
    pub node: Option<&'z Node>,
    /// The alias under which it was asked for.
    pub alias: Option<&'z Alias>,
    /// The name is the apex itself.
    pub at_apex: bool,
}

impl Found<'_> {
    /// What the answer is counted as.
    pub fn counted(&self) -> (usize, Source) {
        (self.apex.counted_as, if self.alias.is_some() { Source::Alias } else { Source::Zone })
    }

    /// Of the answer's records, in seconds.
    pub fn ttl(&self) -> u32 {
        self.alias.and_then(Alias::ttl).unwrap_or(self.apex.ttl)
    }
}

impl Zone {
    pub fn new(authority: Authority) -> Self {
        let hasher = FixedState::with_seed(rand::random());
        Self {
            shards: (0..N_SHARDS).map(|_| Arc::new(Shard::with_hasher(hasher.clone()))).collect(),
            hasher,
            authority: Arc::new(authority),
            generation: Generation::UNSYNCED,
            serial: 0,
        }
    }

    /// Something has been heard from the scheduler.
    pub fn is_synced(&self) -> bool {
        self.generation > Generation::UNSYNCED
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn node(&self, name: &[u8]) -> Option<&Node> {
        self.shards[self.shard_of(name)].get(name).map(|node| &**node)
    }

    /// Replaces or removes a name. Copies its shard once if another generation shares it.
    pub fn set(&mut self, name: WireName, node: Option<Node>) {
        let at = self.shard_of(name.as_bytes());
        let shard = &mut self.shards[at];
        match node {
            Some(node) if shard.get(&name).is_some_and(|known| **known == node) => {}
            Some(node) => {
                Arc::make_mut(shard).insert(name, Arc::new(node));
            }
            None => {
                Arc::make_mut(shard).remove(&name);
            }
        }
    }

    /// Looks a name in lower case up, by its aliases too. `None`: it is in no zone of this server.
    pub fn find(&self, name: &[u8]) -> Option<Found<'_>> {
        if let Some(node) = self.node(name) {
            let apex = &self.authority.apexes[node.apex];
            let at_apex = apex.name.as_bytes().len() == name.len();
            return Some(Found { apex, node: Some(node), alias: None, at_apex });
        }
        let alias = self.authority.alias_of(name);
        let mut space = [0; MAX_NAME];
        let canonical = match alias {
            None => name,
            Some(alias) => alias.canonical(name, &mut space),
        };
        let apex = match alias {
            None => self.authority.apex_of(name)?,
            Some(alias) => match self.node(canonical) {
                Some(node) => node.apex,
                None => self
                    .authority
                    .apex_of(canonical)
                    .or_else(|| self.authority.apex_of(alias.stands_for.as_bytes()))?,
            },
        };
        let apex = &self.authority.apexes[apex];
        let node = self.node(canonical).or_else(|| self.node_without_stars(canonical, apex));
        Some(Found { apex, node, alias, at_apex: apex.name.as_bytes() == canonical })
    }

    /// Mesos-DNS takes `bob.*.mesos` for `bob.mesos`: labels `*` after the first do not count.
    fn node_without_stars(&self, name: &[u8], apex: &Apex) -> Option<&Node> {
        if apex.name.as_bytes() != b"\x05mesos\0" || !name.windows(2).any(|w| w == b"\x01*") {
            return None;
        }
        let mut kept = Vec::with_capacity(name.len());
        for (i, label) in labels(name).enumerate() {
            if i == 0 || label != b"*" {
                kept.push(label.len() as u8);
                kept.extend_from_slice(label);
            }
        }
        kept.push(0);
        self.node(&kept)
    }

    /// All names with what is known of them, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&WireName, &Node)> {
        self.shards.iter().flat_map(|shard| shard.iter().map(|(name, node)| (name, &**node)))
    }

    pub fn n_names(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// A number that stands for a name, in this process.
    pub fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    fn shard_of(&self, name: &[u8]) -> usize {
        // A map takes the low bits and the top seven for itself; these are others.
        (self.hasher.hash_one(name) >> 40) as usize % N_SHARDS
    }
}
