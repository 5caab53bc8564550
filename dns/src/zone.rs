//! The zone: an immutable map from names to what is answered for them, in shards that generations share.
//!
//! It does not know apps (`records`), how it comes to be (`compile`), nor what a packet looks like (`handler`).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use event_watcher::catalog::Generation;
use foldhash::fast::FixedState;

use crate::names::{MAX_NAME, WireName, suffixes};
use crate::records::{DCOS, L4LB, MESOS};

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
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceRecord {
    pub target: WireName,
    pub port: u16,
}

/// The top of a zone that this server answers for.
#[derive(Debug)]
pub(crate) struct Apex {
    pub name: WireName,
    /// Of the records below it, in seconds.
    pub ttl: u32,
    pub name_server: WireName,
    pub contact: WireName,
    pub before_sync: BeforeSync,
}

/// What an apex's names answer while nothing has been heard from the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeforeSync {
    Fail,
    Answer,
}

/// The zones that are served, and the names they go by.
#[derive(Debug)]
pub(crate) struct Authority {
    pub apexes: Vec<Apex>,
    /// Suffixes that stand for another one, longest first. The other one is an apex or above all apexes it serves.
    aliases: Vec<Alias>,
}

#[derive(Debug)]
pub(crate) struct Alias {
    pub alias: WireName,
    pub stands_for: WireName,
}

impl Authority {
    pub fn new(ttl: u32, mesos_ttl: u32) -> Self {
        let name = |text: &str| WireName::parse(text).expect("a constant name is well-formed");
        let apex = |zone: &str, ttl, ns: &str, before_sync| Apex {
            name: name(zone),
            ttl,
            name_server: name(ns),
            contact: name(&format!("root.{ns}")),
            before_sync,
        };
        let alias =
            |(alias, stands_for): (&str, &str)| Alias { alias: name(alias), stands_for: name(stands_for) };
        Self {
            apexes: vec![
                apex(MESOS, mesos_ttl, "ns1.mesos", BeforeSync::Fail),
                apex(L4LB, ttl, "ns.spartan", BeforeSync::Fail),
                apex(DCOS, ttl, "ns.spartan", BeforeSync::Fail),
                // Ours as a whole, so that a name of the cluster is never asked for outside.
                apex("thisdcos.directory", ttl, "ns.spartan", BeforeSync::Fail),
                apex("spartan", ttl, "ns.spartan", BeforeSync::Fail),
                apex("localhost", ttl, "ns.spartan", BeforeSync::Answer),
            ],
            aliases: [
                ("mesos.thisdcos.directory", MESOS),
                ("dclb.thisdcos.directory", L4LB),
                ("mesos.thisdcos.global", MESOS),
                ("dclb.thisdcos.global", L4LB),
                ("thisdcos.global", "thisdcos.directory"),
            ]
            .map(alias)
            .into(),
        }
    }

    /// The closest apex at or above a name.
    pub fn apex_of(&self, name: &[u8]) -> Option<usize> {
        suffixes(name).find_map(|suffix| self.apexes.iter().position(|apex| apex.name.as_bytes() == suffix))
    }
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
        let alias = suffixes(name)
            .find_map(|suffix| self.authority.aliases.iter().find(|a| a.alias.as_bytes() == suffix));
        let mut space = [0; MAX_NAME];
        let canonical = match alias {
            None => name,
            Some(Alias { alias, stands_for }) => {
                let own = name.len() - alias.as_bytes().len();
                let length = own + stands_for.as_bytes().len();
                // A name that grows beyond the limit cannot exist: it is looked up cut, and not found.
                let length = length.min(MAX_NAME);
                space[..own].copy_from_slice(&name[..own]);
                space[own..length].copy_from_slice(&stands_for.as_bytes()[..length - own]);
                &space[..length]
            }
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
        for (i, suffix) in suffixes(name).enumerate() {
            let label = &suffix[..=usize::from(suffix[0])];
            if i == 0 || label != b"\x01*" {
                kept.extend_from_slice(label);
            }
        }
        self.node(&kept)
    }

    pub fn n_names(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    fn shard_of(&self, name: &[u8]) -> usize {
        // A map takes the low bits and the top seven for itself; these are others.
        (self.hasher.hash_one(name) >> 40) as usize % N_SHARDS
    }
}
