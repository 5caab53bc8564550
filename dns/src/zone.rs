//! The zone: an immutable map from names to what is answered for them, of which generations share what is the same.
//!
//! It does not know which zones there are (`authority`), apps (`records`), how it comes to be (`compile`), nor what a
//! packet looks like (`handler`).

use std::hash::BuildHasher as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use event_watcher::catalog::Generation;
use foldhash::fast::FixedState;
use imbl::shared_ptr::DefaultSharedPtr;

pub(crate) use crate::authority::BeforeSync;
use crate::authority::{Alias, Apex, Authority};
use crate::names::{MAX_NAME, WireName, labels};
use crate::stats::Source;

/// Names with what is known of them. A copy shares everything with the original, and a change copies the path to what
/// it changes: a generation costs what is new in it.
pub(crate) type Names = imbl::GenericHashMap<WireName, Node, FixedState, DefaultSharedPtr>;

#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub names: Names,
    authority: Arc<Authority>,
    pub generation: Generation,
    /// SOA serial (RFC 1912 section 2.2): rises with each generation.
    pub serial: u32,
}

/// What a zone has at a name.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Of four bytes, because there are many nodes.
    apex: u32,
    /// Names one label longer. A name with children exists without records of its own (RFC 8020).
    pub n_children: u32,
    /// Who says what its records are, for the compiler.
    pub said_by: SaidBy,
    records: Arc<Records>,
}

/// The number of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SaidBy {
    Nobody,
    One(NonZeroU32),
    Several,
}

/// All records of one name. Sorted, without duplicates, and only the best tier of each type.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Records {
    pub v4: Box<[Ipv4Addr]>,
    pub v6: Box<[Ipv6Addr]>,
    pub services: Box<[ServiceRecord]>,
    /// Names of the address that this name is the reverse of.
    pub pointers: Box<[WireName]>,
}

impl Node {
    /// It exists, and that is all.
    pub fn new(apex: usize) -> Self {
        let apex = u32::try_from(apex).expect("a configuration has few zones");
        Self { apex, n_children: 0, said_by: SaidBy::Nobody, records: Arc::clone(&NOTHING) }
    }

    /// Index of the apex that it lies under.
    pub fn apex(&self) -> usize {
        self.apex as usize
    }

    /// Names with equal records may share them.
    pub fn set_records(&mut self, records: &Arc<Records>) {
        self.records = Arc::clone(if records.is_empty() { &NOTHING } else { records });
    }
}

static NOTHING: LazyLock<Arc<Records>> = LazyLock::new(Arc::default);

impl Deref for Node {
    type Target = Records;

    fn deref(&self) -> &Records {
        &self.records
    }
}

impl Records {
    /// The name exists and has no record: an empty non-terminal, or an app without a running instance.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty() && self.services.is_empty() && self.pointers.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        Self {
            // Seeded per process: who names apps cannot aim at one bucket.
            names: Names::with_hasher(FixedState::with_seed(rand::random())),
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
        self.names.get(name)
    }

    /// Looks a name in lower case up, by its aliases too. `None`: it is in no zone of this server.
    pub fn find(&self, name: &[u8]) -> Option<Found<'_>> {
        if let Some(node) = self.node(name) {
            let apex = &self.authority.apexes[node.apex()];
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
                Some(node) => node.apex(),
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
        self.names.iter()
    }

    pub fn n_names(&self) -> usize {
        self.names.len()
    }

    /// A number that stands for a name, in this process.
    pub fn hash(&self, name: &[u8]) -> u64 {
        self.names.hasher().hash_one(name)
    }
}
