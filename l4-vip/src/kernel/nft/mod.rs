//! The plane inside nftables: a connection's first packet is sent to a backend by a rule, and connection tracking
//! translates the rest of it. No process is in the path, and none has to run for VIPs to work.
//!
//! Reading order: `ruleset` (what happens to a packet), `pick`, `entry` and `edits` (a service as elements of sets),
//! `batch` (one transaction), `contents` (reading it back), `conntrack`, `flows` (those to backends that are gone),
//! `tallies` and `ledger` (what was counted), `routes`, and [`Nft`], which puts them together. All of it speaks
//! netlink; nothing is written as text, and nft(8) is not needed.
//!
//! It follows no snapshot and chooses no addresses. What a container needs beside it, forwarding and hairpin mode on
//! its bridge, belongs to the container runtime.

mod batch;
mod conntrack;
mod contents;
mod edits;
mod elements;
mod entry;
mod expression;
mod family;
mod flows;
mod ledger;
mod monitor;
mod pick;
mod routes;
mod ruleset;
mod sweeper;
mod tallies;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use event_watcher::catalog::{Protocol, VipPool};

use super::{ApplyError, Change, Counted, Frontend, KernelPlane, OpenError, Service};
use crate::netlink::Socket;
use crate::stats::{Counts, PlaneKind};
use batch::{Batch, Rejected, TABLE};
use contents::Contents;
use edits::Edits;
use entry::{Entries, Entry, compile};
use family::Family;
use flows::Members;
use ledger::Ledger;
use monitor::Monitor;
use pick::{Lifetime, Pick};
use routes::Routes;
use sweeper::Sweeper;
use tallies::{Now, Tallies};

/// Whether other programs may change our table while we run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The kernel keeps it from others, `nft flush ruleset` included, as long as this process lives; without it the
    /// table stays and is anybody's. Before Linux 6.9, which has no such tables, the same as `Shared`.
    Exclusive,
    /// What others do to it is found and repaired.
    Shared,
}

/// What another plane leaves of a table that it takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Connections,
    Nothing,
}

#[derive(Clone, Debug)]
pub struct NftConfig {
    /// Their addresses are made local to this host, and ports of theirs that are no VIP are refused.
    pub pools: Vec<VipPool>,
    pub ownership: Ownership,
}

/// Some thousand elements: while so many are changed nobody listens. What somebody else changes in that moment is found
/// by the next comparison.
const LONG_BATCH_BYTES: usize = 256 * 1024;

/// NFT_TABLE_F_OWNER and NFT_TABLE_F_PERSIST.
const OWNED: u32 = 0x2 | 0x4;

/// The table `inet waymark` of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Nft {
    config: NftConfig,
    socket: Socket,
    monitor: Monitor,
    routes: Routes,
    sweeper: Sweeper,
    ledger: Ledger,
    /// The label of a table of our layout.
    label: String,
    /// Without the chains that pick.
    n_rules: usize,
    table_flags: u32,
    /// The table is there and has our layout.
    is_intact: bool,
    held: Entries,
    tallies: Tallies,
    /// The chains that there are.
    picks: HashSet<(Family, Pick)>,
    /// Found by the last reading of the table: what belongs to nothing, and of how many frontends.
    mending: Edits,
    n_faults: usize,
}

impl Nft {
    /// Makes the table, or adopts the one that is there: nothing that it serves is changed before
    /// [`KernelPlane::reconcile`].
    pub fn open(config: NftConfig) -> Result<Self, OpenError> {
        let mut nft = Self::open_uncounted(config)?;
        nft.ledger.begin_counting();
        Ok(nft)
    }

    fn open_uncounted(config: NftConfig) -> Result<Self, OpenError> {
        let netlink = |source| OpenError::new("speak netlink to the kernel", source, "run on Linux, as root");
        let table_flags = match config.ownership {
            Ownership::Exclusive => OWNED,
            Ownership::Shared => 0,
        };
        let (label, n_rules) = layout(&config.pools);
        let mut nft = Self {
            socket: Socket::open(libc::NETLINK_NETFILTER).map_err(netlink)?,
            monitor: Monitor::open().map_err(netlink)?,
            routes: Routes::open(config.pools.clone()).map_err(netlink)?,
            sweeper: Sweeper::start().map_err(netlink)?,
            ledger: Ledger::start().map_err(netlink)?,
            config,
            label,
            n_rules,
            table_flags,
            is_intact: false,
            held: Entries::default(),
            tallies: Tallies::default(),
            picks: HashSet::new(),
            mending: Edits::default(),
            n_faults: 0,
        };
        nft.claim()?;
        nft.routes.ensure().map_err(|source| {
            let hint = "needs CAP_NET_ADMIN, and the interface lo up";
            OpenError::new("make the addresses of the pools local to this host", source, hint)
        })?;
        Ok(nft)
    }

    /// Takes the VIPs away from a table for the same pools whose process has ended, and leaves what its established
    /// connections need, or nothing. Returns whether there was such a table.
    pub fn take_over(pools: &[VipPool], left: Left) -> Result<bool, OpenError> {
        let found = Socket::open(libc::NETLINK_NETFILTER).and_then(|mut socket| contents::label(&mut socket));
        if found.ok().flatten().as_ref() != Some(&layout(pools).0) {
            // Without the right to look there is no right to take anything away either.
            return Ok(false);
        }
        let mut nft =
            Self::open_uncounted(NftConfig { pools: pools.to_vec(), ownership: Ownership::Shared })?;
        let taken = match left {
            Left::Connections => nft.reconcile(&[]).and_then(|_| nft.retire()),
            Left::Nothing => nft.flush(),
        };
        let failed = |error: ApplyError| {
            let hint = "`nft delete table inet waymark` removes it; established connections through it end";
            OpenError::new(error.to_string(), io::Error::other(error), hint)
        };
        taken.map(|()| true).map_err(failed)
    }

    fn claim(&mut self) -> Result<(), OpenError> {
        let found = contents::label(&mut self.socket).map_err(|source| {
            OpenError::new(
                "read the tables of nftables",
                source,
                "needs CAP_NET_ADMIN and a kernel with nf_tables",
            )
        })?;
        let mut claimed = self.try_claim(found.is_some());
        if let Err(rejected) = &claimed
            && self.table_flags == OWNED
            && matches!(rejected.source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
        {
            self.table_flags = 0;
            claimed = self.try_claim(found.is_some());
        }
        claimed.map_err(|rejected| {
            let hint = match rejected.source.raw_os_error() {
                Some(libc::EPERM) => "another process owns the table: is another waymark running here?",
                _ => "the kernel needs nf_tables for inet with NAT, numgen, reject and connection timeouts",
            };
            OpenError::new(rejected.to_string(), rejected.source, hint)
        })?;
        self.is_intact = match found {
            None => true,
            Some(label) => label == self.label && self.adopt().unwrap_or(false),
        };
        Ok(())
    }

    fn try_claim(&mut self, exists: bool) -> Result<(), Rejected> {
        let mut batch = Batch::new();
        if !exists {
            batch.table(self.table_flags, &self.label);
            ruleset::write(&mut batch, &self.config.pools);
        } else if self.table_flags == OWNED {
            batch.table(self.table_flags, &self.label);
        }
        if batch.is_empty() { Ok(()) } else { batch.commit(&mut self.socket) }
    }

    /// Takes what a table of our layout holds for what we hold; false if its rules are not all there.
    fn adopt(&mut self) -> io::Result<bool> {
        let contents = Contents::read(&mut self.socket)?;
        self.picks = contents.picks;
        let refuses = Family::ALL.map(|family| (family, Pick::Refuse));
        let are_refused = refuses.into_iter().all(|refuse| self.picks.remove(&refuse));
        let n_rules =
            self.n_rules + self.picks.iter().map(|(_, pick)| ruleset::n_rules(*pick)).sum::<usize>();
        let is_whole = are_refused && contents::n_rules(&mut self.socket)? == n_rules;
        self.held = contents.entries;
        self.mending = contents.mending;
        self.n_faults = contents.n_faults;
        Ok(is_whole)
    }

    /// The table anew with these services alone, in place of whatever there is.
    fn rebuild(&mut self, services: &[Service]) -> Result<usize, ApplyError> {
        let compiled = compile(services.iter(), &Entries::default())?;
        let exists = contents::label(&mut self.socket)
            .map_err(|error| ApplyError::kernel(format!("read the nft table {TABLE}"), error))?
            .is_some();
        let mut batch = Batch::new();
        if exists {
            batch.delete_table();
        }
        batch.table(self.table_flags, &self.label);
        ruleset::write(&mut batch, &self.config.pools);
        self.picks.clear();
        let picks = self.missing_picks(&compiled);
        picks.iter().for_each(|(family, pick)| ruleset::write_pick(&mut batch, *family, *pick));
        let mut edits = Edits::default();
        for (frontend, entry) in &compiled {
            edits.change(*frontend, None, Some(entry));
        }
        edits.write(&mut batch);
        self.commit(batch)?;
        self.is_intact = true;
        self.picks = picks;
        self.held = compiled.into_iter().collect();
        Ok(services.len().max(1))
    }

    /// The chains that these entries need and that are not there.
    fn missing_picks(&self, entries: &[(Frontend, Entry)]) -> HashSet<(Family, Pick)> {
        let needed = entries.iter().map(|(frontend, entry)| (Family::of(frontend.address.ip()), entry.pick));
        needed
            .filter(|(family, pick)| *pick != Pick::Refuse && !self.picks.contains(&(*family, *pick)))
            .collect()
    }

    /// Makes the chains that these entries need, in a transaction of their own: a packet that is on its way while a
    /// chain is made finds no rule in it.
    fn make_picks(&mut self, entries: &[(Frontend, Entry)]) -> Result<(), ApplyError> {
        let missing = self.missing_picks(entries);
        let mut batch = Batch::new();
        missing.iter().for_each(|(family, pick)| ruleset::write_pick(&mut batch, *family, *pick));
        self.commit(batch)?;
        self.picks.extend(missing);
        Ok(())
    }

    /// Counts are for people: a change does not fail for want of them.
    fn keep_counts(&mut self, edits: &Edits) {
        if let Err(error) = self.tallies.keep(&mut self.socket, &edits.left) {
            tracing::warn!(%error, "what some backends were given so far is not counted any more");
        }
    }

    fn commit(&mut self, batch: Batch) -> Result<(), ApplyError> {
        if batch.is_empty() {
            return Ok(());
        }
        let hearing = |error| ApplyError::kernel("hear of changes to nftables", error);
        let is_long = batch.bytes().len() > LONG_BATCH_BYTES;
        if is_long {
            self.monitor.ignore_rules().map_err(hearing)?;
        }
        let outcome = batch.commit(&mut self.socket);
        if is_long {
            self.monitor.hear_rules().map_err(hearing)?;
        }
        outcome.map_err(|rejected| ApplyError::kernel(rejected.to_string(), rejected.source))
    }

    /// Before anything leads to them.
    fn hold_routes(&mut self, services: &[&Service]) -> Result<(), ApplyError> {
        for service in services {
            let address = service.frontend.address.ip();
            self.routes
                .hold(address)
                .map_err(|error| ApplyError::kernel(format!("make {address} local to this host"), error))?;
        }
        Ok(())
    }

    fn release_routes(&mut self) {
        let held = self.held.keys().map(|frontend| frontend.address.ip());
        let outside: BTreeSet<IpAddr> = held.filter(|a| self.routes.needs_route(*a)).collect();
        self.routes.keep_only(&outside);
    }
}

impl KernelPlane for Nft {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Nft
    }

    fn counts(&self, protocol: Protocol) -> Counts {
        self.ledger.counts(protocol)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), ApplyError> {
        let mut last: HashMap<Frontend, Option<&Service>> = HashMap::new();
        for change in changes {
            match change {
                Change::Set(service) => last.insert(service.frontend, Some(service)),
                Change::Remove(frontend) => last.insert(*frontend, None),
            };
        }
        let services: Vec<&Service> = last.values().copied().flatten().collect();
        self.hold_routes(&services)?;
        if !self.is_intact {
            let services: Vec<Service> = services.into_iter().cloned().collect();
            self.rebuild(&services)?;
            self.ledger.change_all(&services);
            self.sweeper.ask(members(services.iter()));
            return Ok(());
        }
        let compiled = compile(services.iter().copied(), &self.held)?;
        self.make_picks(&compiled)?;
        let mut batch = Batch::new();
        let mut edits = Edits::default();
        for (frontend, entry) in &compiled {
            edits.change(*frontend, self.held.get(frontend), Some(entry));
        }
        let removed: Vec<Frontend> =
            last.iter().filter(|(_, service)| service.is_none()).map(|(frontend, _)| *frontend).collect();
        for frontend in &removed {
            edits.change(*frontend, self.held.get(frontend), None);
        }
        self.keep_counts(&edits);
        edits.write(&mut batch);
        self.commit(batch)?;
        self.tallies.forget(|frontend| match last.get(frontend) {
            None => Now::Unchanged,
            Some(None) => Now::Gone,
            Some(Some(service)) => Now::Is(service),
        });
        self.ledger.change(last.iter().map(|(frontend, service)| (*frontend, *service)));
        let mut to_sweep = members(services.iter().copied());
        to_sweep.extend(removed.iter().map(|frontend| (*frontend, Box::default())));
        self.sweeper.ask(to_sweep);
        self.held.extend(compiled);
        removed.iter().for_each(|frontend| drop(self.held.remove(frontend)));
        if removed.iter().any(|frontend| self.routes.needs_route(frontend.address.ip())) {
            self.release_routes();
        }
        Ok(())
    }

    fn reconcile(&mut self, all: &[Service]) -> Result<usize, ApplyError> {
        let reading = |error| ApplyError::kernel(format!("read the nft table {TABLE}"), error);
        self.was_changed_by_others()?;
        let label = contents::label(&mut self.socket).map_err(reading)?;
        self.is_intact &= label.as_ref() == Some(&self.label);
        if self.is_intact {
            self.is_intact = self.adopt().map_err(reading)?;
        }
        self.hold_routes(&all.iter().collect::<Vec<_>>())?;
        let n_different = if self.is_intact { self.converge(all)? } else { self.rebuild(all)? };
        let now: HashMap<Frontend, &Service> = all.iter().map(|s| (s.frontend, s)).collect();
        self.tallies.forget(|frontend| now.get(frontend).map_or(Now::Gone, |service| Now::Is(service)));
        self.ledger.change_all(all);
        self.release_routes();
        self.sweeper.ask(members(all.iter()));
        let n_routes = self.routes.ensure().map_err(|error| ApplyError::kernel(ROUTING, error))?;
        Ok(n_different + n_routes)
    }

    fn was_changed_by_others(&mut self) -> Result<bool, ApplyError> {
        let heard = self
            .monitor
            .listen(self.socket.port(), self.routes.port())
            .map_err(|error| ApplyError::kernel("hear of changes to nftables and routes", error))?;
        self.is_intact &= !heard.is_structure_changed;
        // Cheap enough to be repaired at once.
        let n_routes = match heard.are_routes_changed {
            true => self.routes.ensure().map_err(|error| ApplyError::kernel(ROUTING, error))?,
            false => 0,
        };
        Ok(heard.is_structure_changed || heard.are_elements_changed || n_routes > 0)
    }

    fn count(&mut self) -> Result<Counted, ApplyError> {
        self.tallies
            .read(&mut self.socket, &self.ledger)
            .map_err(|error| ApplyError::kernel(format!("read the counters of the nft table {TABLE}"), error))
    }

    /// The hooks, the rules that translate and the routes stay, because established connections need them.
    fn retire(&mut self) -> Result<(), ApplyError> {
        let mut batch = Batch::new();
        ruleset::disown_pools(&mut batch);
        let mut edits = Edits::default();
        for (frontend, entry) in &self.held {
            edits.change(*frontend, Some(entry), None);
        }
        edits.write(&mut batch);
        self.commit(batch)?;
        self.is_intact = false;
        self.sweeper.ask(self.held.drain().map(|(frontend, _)| (frontend, Box::default())).collect());
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ApplyError> {
        let mut batch = Batch::new();
        batch.delete_table();
        match batch.commit(&mut self.socket) {
            Err(rejected) if rejected.source.raw_os_error() != Some(libc::ENOENT) => {
                return Err(ApplyError::kernel(rejected.to_string(), rejected.source));
            }
            _ => {}
        }
        self.is_intact = false;
        self.sweeper.ask(self.held.drain().map(|(frontend, _)| (frontend, Box::default())).collect());
        self.picks.clear();
        self.ledger.end_counting();
        self.routes.flush().map_err(|error| ApplyError::kernel("remove the routes to the pools", error))
    }
}

const ROUTING: &str = "make the addresses of the pools local to this host";

impl Nft {
    /// Changes what differs in a table that has just been adopted. Returns the number of frontends that did.
    fn converge(&mut self, all: &[Service]) -> Result<usize, ApplyError> {
        let mut compiled = compile(all.iter(), &self.held)?;
        self.make_picks(&compiled)?;
        let mut batch = Batch::new();
        let mut edits = std::mem::take(&mut self.mending);
        let mut n_different = std::mem::take(&mut self.n_faults);
        let mut used: HashSet<(Family, Pick)> = HashSet::new();
        for (frontend, entry) in &mut compiled {
            let family = Family::of(frontend.address.ip());
            let held = self.held.get(frontend);
            used.insert((family, entry.pick));
            if held != Some(entry) {
                // Packets that are on their way may have read how it picked until now.
                used.extend(held.map(|held| (family, held.pick)));
                n_different += 1;
                edits.change(*frontend, held, Some(entry));
            } else if let Some(trimmed) = entry.without_spare() {
                edits.change(*frontend, held, Some(&trimmed));
                *entry = trimmed;
            }
        }
        let compiled: Entries = compiled.into_iter().collect();
        for (frontend, entry) in self.held.iter().filter(|(frontend, _)| !compiled.contains_key(frontend)) {
            n_different += 1;
            edits.change(*frontend, Some(entry), None);
        }
        self.keep_counts(&edits);
        edits.write(&mut batch);
        for (family, pick) in self.picks.difference(&used) {
            ruleset::delete_pick(&mut batch, *family, *pick);
        }
        self.commit(batch)?;
        self.picks.retain(|pick| used.contains(pick));
        self.held = compiled;
        Ok(n_different)
    }
}

/// In words that the label keeps apart: a table of another layout is built anew.
fn layout(pools: &[VipPool]) -> (String, usize) {
    let mut batch = Batch::new();
    ruleset::write(&mut batch, pools);
    let n_rules = batch.n_rules();
    for family in Family::ALL {
        ruleset::write_pick(&mut batch, family, Pick::Random(1));
        ruleset::write_pick(&mut batch, family, Pick::ByClient(1, Lifetime::of(Duration::ZERO)));
    }
    // FNV-1a: the same in every build of this program.
    let hash = batch.bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (format!("VIPs of waymark, layout {hash:016x}"), n_rules)
}

fn members<'a>(services: impl Iterator<Item = &'a Service>) -> Members {
    services.map(|s| (s.frontend, s.backends.iter().map(|backend| backend.address).collect())).collect()
}
