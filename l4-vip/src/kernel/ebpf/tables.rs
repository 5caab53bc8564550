//! What the maps hold, as this process knows it, and how they are changed.
//!
//! A change is staged (new backends and slots under numbers that nobody refers to yet), flipped (one element for each
//! service, replaced at once) and swept (what nobody refers to any more). A failure before the end of the flip takes
//! back what was flipped. Programs are no affair of this file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use event_watcher::catalog::Protocol;

use super::super::{ApplyError, Backend, Change, Frontend, KernelCounters, Service};
use super::layout::{self, BackendValue, ServiceValue, counters};
use super::maps::{Limits, Maps};
use super::weights;

/// A service as it stands in the maps.
#[derive(Clone, Debug)]
struct Held {
    value: ServiceValue,
    backends: Vec<HeldBackend>,
    /// Its elements do not fit together: it is written anew, whatever is wanted.
    damaged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBackend {
    pub id: u32,
    pub address: SocketAddr,
    weight: u16,
}

impl Held {
    fn is(&self, service: &Service) -> bool {
        !self.damaged
            && self.value.affinity == service.affinity
            && self.backends.len() == service.backends.len()
            && service.backends.iter().all(|backend| {
                self.backends.iter().any(|b| b.address == backend.address && b.weight == backend.weight)
            })
    }

    fn weights(&self) -> Vec<(u32, u16)> {
        self.backends.iter().map(|b| (b.id, b.weight)).collect()
    }
}

/// A backend that was removed from a frontend.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    pub frontend: Frontend,
    pub backend: HeldBackend,
}

#[derive(Debug)]
pub struct Tables {
    pub maps: Maps,
    limits: Limits,
    held: BTreeMap<Frontend, Held>,
    n_backends: usize,
    /// Numbers of services, backends and versions are never used twice.
    next: u32,
}

/// One service between staging and sweeping.
struct Staged {
    frontend: Frontend,
    old: Option<Held>,
    /// `None`: it is removed.
    new: Option<Held>,
}

impl Tables {
    /// Nothing is read yet; [`Self::read`] takes over what the maps hold.
    pub fn new(maps: Maps, limits: Limits) -> Self {
        Self { maps, limits, held: BTreeMap::new(), n_backends: 0, next: 1 }
    }

    /// Makes the changes, all or none. Answers the backends that are gone.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Gone>, ApplyError> {
        // Of several changes of one frontend the last one counts.
        let last: BTreeMap<Frontend, Option<Service>> = changes
            .iter()
            .map(|change| match change {
                Change::Set(service) => (service.frontend, Some(usable(service))),
                Change::Remove(frontend) => (*frontend, None),
            })
            .collect();
        self.check_room(&last)?;
        let mut staged = Vec::with_capacity(last.len());
        for (frontend, service) in last {
            let old = self.held.get(&frontend).cloned();
            match (&old, &service) {
                (None, None) => continue,
                (Some(old), Some(service)) if old.is(service) => continue,
                _ => {}
            }
            let new = match service.map(|service| self.stage(&service, old.as_ref())) {
                None => None,
                Some(Ok(new)) => Some(new),
                Some(Err(error)) => {
                    self.unstage(&staged);
                    return Err(error);
                }
            };
            staged.push(Staged { frontend, old, new });
        }
        for (n_flipped, change) in staged.iter().enumerate() {
            if let Err(error) = self.flip(change.frontend, change.old.as_ref(), change.new.as_ref()) {
                for change in &staged[..n_flipped] {
                    if let Err(error) = self.flip(change.frontend, change.new.as_ref(), change.old.as_ref()) {
                        tracing::error!(?error, frontend = ?change.frontend, "a VIP could not be put back");
                    }
                }
                self.unstage(&staged);
                return Err(error);
            }
        }
        let mut gone = Vec::new();
        for Staged { frontend, old, new } in staged {
            gone.extend(self.sweep(frontend, old.as_ref(), new.as_ref()));
            self.n_backends -= old.map_or(0, |old| old.backends.len());
            match new {
                Some(new) => {
                    self.n_backends += new.backends.len();
                    self.held.insert(frontend, new);
                }
                None => drop(self.held.remove(&frontend)),
            }
        }
        Ok(gone)
    }

    /// The changes that lead from what is held to exactly `all`.
    pub fn difference(&self, all: &[Service]) -> Vec<Change> {
        let wanted: BTreeSet<Frontend> = all.iter().map(|service| service.frontend).collect();
        let gone =
            self.held.keys().filter(|frontend| !wanted.contains(frontend)).copied().map(Change::Remove);
        let differs =
            |service: &&Service| !self.held.get(&service.frontend).is_some_and(|h| h.is(&usable(service)));
        gone.chain(all.iter().filter(differs).cloned().map(Change::Set)).collect()
    }

    /// Takes what the maps hold for the truth, and removes what belongs to nothing. Returns how many elements that
    /// were.
    pub fn read(&mut self) -> Result<usize, ApplyError> {
        let failed = |e| ApplyError::kernel("read the VIPs that the kernel holds", e);
        let mut values: BTreeMap<Frontend, ServiceValue> = BTreeMap::new();
        let mut of_service: BTreeMap<u32, Vec<HeldBackend>> = BTreeMap::new();
        let mut slots: BTreeMap<u32, BTreeMap<u32, layout::SlotValue>> = BTreeMap::new();
        let mut counted: BTreeSet<u32> = BTreeSet::new();
        let mut last = 0;
        self.maps
            .services
            .for_each(|key, value| {
                let value = ServiceValue::read(value);
                last = last.max(value.id).max(value.version);
                if let Some(frontend) = layout::read_frontend(key) {
                    values.insert(frontend, value);
                }
            })
            .map_err(failed)?;
        let mut nobodys = Vec::new();
        self.maps
            .backends
            .for_each(|key, value| {
                let id = layout::word(key, 0);
                last = last.max(id);
                match BackendValue::read(value) {
                    Some(backend) => of_service.entry(backend.service).or_default().push(HeldBackend {
                        id,
                        address: backend.address,
                        weight: backend.weight,
                    }),
                    None => nobodys.push(id),
                }
            })
            .map_err(failed)?;
        self.maps
            .slots
            .for_each(|key, value| {
                let (version, index) = layout::read_slot_key(key);
                last = last.max(version);
                slots.entry(version).or_default().insert(index, layout::SlotValue::read(value));
            })
            .map_err(failed)?;
        self.maps
            .counters
            .for_each(|key, _| {
                let id = layout::word(key, 0);
                last = last.max(id & !counters::REMOVED);
                counted.insert(id);
            })
            .map_err(failed)?;

        self.held.clear();
        self.n_backends = 0;
        self.next = self.next.max(last + 1);
        for (frontend, value) in values {
            let mut backends = of_service.remove(&value.id).unwrap_or_default();
            backends.sort_by_key(|backend| backend.id);
            let mut held = Held { value, backends, damaged: false };
            let mut own_slots = slots.remove(&value.version).unwrap_or_default();
            let beyond = own_slots.split_off(&value.n_slots);
            if !beyond.is_empty() {
                slots.insert(value.version, beyond);
            }
            // The same backends may have come in another order, so the order of the slots does not count.
            let found: Vec<layout::SlotValue> = own_slots.into_values().collect();
            let slots_fit = sorted(&found) == sorted(&weights::slots(&held.weights()));
            let own_ids = held.backends.iter().map(|b| b.id).chain([value.id]);
            let n_uncounted = own_ids.filter(|id| !counted.remove(id)).count();
            counted.remove(&(value.id | counters::REMOVED));
            held.damaged = !slots_fit || found.len() != value.n_slots as usize || n_uncounted > 0;
            self.n_backends += held.backends.len();
            self.held.insert(frontend, held);
        }
        nobodys.extend(of_service.into_values().flatten().map(|backend| backend.id));
        let nobodys_slots: Vec<(u32, u32)> = slots
            .into_iter()
            .flat_map(|(version, slots)| slots.into_keys().map(move |index| (version, index)))
            .collect();
        let n_wrong = nobodys.len() + nobodys_slots.len();
        for (version, index) in nobodys_slots {
            self.maps.slots.delete(&layout::slot_key(version, index)).map_err(failed)?;
        }
        for id in nobodys {
            self.maps.backends.delete(&id.to_ne_bytes()).map_err(failed)?;
        }
        for id in counted {
            self.maps.counters.delete(&id.to_ne_bytes()).map_err(failed)?;
        }
        Ok(n_wrong)
    }

    /// Counters of every frontend, and of every backend of it.
    pub fn counters(&self) -> Result<Counted, ApplyError> {
        let mut sums: BTreeMap<u32, KernelCounters> = BTreeMap::new();
        self.maps
            .counters
            .for_each(|key, value| {
                sums.insert(layout::word(key, 0), sum_of_cpus(value));
            })
            .map_err(|e| ApplyError::kernel("read the VIPs' counters", e))?;
        let of = |id: u32| sums.get(&id).copied().unwrap_or_default();
        let mut counted = Counted::default();
        for (frontend, held) in &self.held {
            let mut total = of(held.value.id);
            add(&mut total, of(held.value.id | counters::REMOVED));
            for backend in &held.backends {
                let own = of(backend.id);
                add(&mut total, own);
                counted.backends.push((*frontend, backend.address, own));
            }
            counted.frontends.push((*frontend, total));
        }
        Ok(counted)
    }

    /// Names the frontends that would not fit, before anything is touched.
    fn check_room(&self, changes: &BTreeMap<Frontend, Option<Service>>) -> Result<(), ApplyError> {
        let (mut n_frontends, mut n_backends) = (self.held.len(), self.n_backends);
        // What goes makes room for what comes, whatever their order.
        for (frontend, service) in changes {
            if let (Some(held), None) = (self.held.get(frontend), service) {
                n_frontends -= 1;
                n_backends -= held.backends.len();
            }
        }
        let mut refused = Vec::new();
        for (frontend, service) in changes {
            let Some(service) = service else { continue };
            let (n_new, n_old) = match self.held.get(frontend) {
                Some(held) => (0, held.backends.len()),
                None => (1, 0),
            };
            let n_then = n_backends - n_old + service.backends.len();
            if n_frontends + n_new > self.limits.n_frontends as usize
                || n_then > self.limits.n_backends as usize
            {
                refused.push(*frontend);
            } else {
                (n_frontends, n_backends) = (n_frontends + n_new, n_then);
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let Limits { n_frontends, n_backends, .. } = self.limits;
        let reason =
            format!("the eBPF maps are full ({n_frontends} VIP addresses with {n_backends} backends in all)");
        Err(ApplyError::Refused { frontends: refused, reason })
    }

    /// Writes what the new service needs and the old one has not; nothing refers to it yet.
    fn stage(&mut self, service: &Service, old: Option<&Held>) -> Result<Held, ApplyError> {
        let old = old.filter(|old| !old.damaged);
        let id = match old {
            Some(old) => old.value.id,
            None => self.number(),
        };
        let backends: Vec<HeldBackend> = service
            .backends
            .iter()
            .map(|backend| {
                let known = old.and_then(|old| old.backends.iter().find(|b| b.address == backend.address));
                let id = match known {
                    Some(known) => known.id,
                    None => self.number(),
                };
                HeldBackend { id, address: backend.address, weight: backend.weight }
            })
            .collect();
        let mut held = Held {
            value: ServiceValue { version: 0, n_slots: 0, id, affinity: service.affinity },
            backends,
            damaged: false,
        };
        let slots = weights::slots(&held.weights());
        held.value.n_slots = slots.len() as u32;
        let same_slots = old.filter(|old| weights::slots(&old.weights()) == slots);
        held.value.version = match same_slots {
            Some(old) => old.value.version,
            None => self.number(),
        };
        let write = || -> io::Result<()> {
            if old.is_none() {
                self.maps.counters.update_zero(&id.to_ne_bytes())?;
            }
            for backend in held.backends.iter().filter(|b| !holds(old, b.id)) {
                self.maps.counters.update_zero(&backend.id.to_ne_bytes())?;
                self.maps.backends.update(&backend.id.to_ne_bytes(), &value_of(backend, id).bytes())?;
            }
            if same_slots.is_none() {
                for (index, slot) in (0..).zip(&slots) {
                    self.maps.slots.update(&layout::slot_key(held.value.version, index), &slot.bytes())?;
                }
            }
            Ok(())
        };
        match write() {
            Ok(()) => Ok(held),
            Err(error) => {
                let what = format!("add backends of {}", service.frontend.address);
                self.discard(&held, old);
                Err(ApplyError::kernel(what, error))
            }
        }
    }

    /// Puts `new` in force in the place of `old`, or takes it out.
    fn flip(&self, frontend: Frontend, old: Option<&Held>, new: Option<&Held>) -> Result<(), ApplyError> {
        let key = layout::frontend_key(&frontend);
        let flipped = match new {
            Some(new) => {
                let known = |b: &HeldBackend| old.and_then(|old| old.backends.iter().find(|o| o.id == b.id));
                // The weight of a known backend only matters to clients with affinity: a drained one loses them.
                let mut reweighed =
                    new.backends.iter().filter(|b| known(b).is_some_and(|old| old.weight != b.weight));
                reweighed
                    .try_for_each(|b| {
                        self.maps.backends.update(&b.id.to_ne_bytes(), &value_of(b, new.value.id).bytes())
                    })
                    .and_then(|()| self.maps.services.update(&key, &new.value.bytes()))
            }
            None => self.maps.services.delete(&key),
        };
        flipped.map_err(|e| ApplyError::kernel(format!("change VIP address {}", frontend.address), e))
    }

    /// Removes what only the old service had. What cannot be removed is found by the next [`Self::read`].
    fn sweep(&self, frontend: Frontend, old: Option<&Held>, new: Option<&Held>) -> Vec<Gone> {
        let Some(old) = old else { return Vec::new() };
        let kept = |id: u32| holds(new, id);
        if new.is_some_and(|new| new.value.id == old.value.id) {
            let mut removed = KernelCounters::default();
            for backend in old.backends.iter().filter(|b| !kept(b.id)) {
                add(&mut removed, self.counters_of(backend.id));
            }
            if removed.n_connections + removed.n_packets > 0 {
                self.keep_counters(old.value.id | counters::REMOVED, removed);
            }
        }
        self.discard(old, new);
        let gone = old.backends.iter().filter(|b| !kept(b.id));
        gone.map(|backend| Gone { frontend, backend: *backend }).collect()
    }

    /// Removes everything of `held` that `other` has not.
    fn discard(&self, held: &Held, other: Option<&Held>) {
        let report = |outcome: io::Result<()>| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "an element of an eBPF map was not removed; it is tried again");
            }
        };
        if other.is_none_or(|other| other.value.version != held.value.version) {
            for index in 0..held.value.n_slots {
                report(self.maps.slots.delete(&layout::slot_key(held.value.version, index)));
            }
        }
        for backend in held.backends.iter().filter(|b| !holds(other, b.id)) {
            report(self.maps.backends.delete(&backend.id.to_ne_bytes()));
            report(self.maps.counters.delete(&backend.id.to_ne_bytes()));
        }
        if other.is_none_or(|other| other.value.id != held.value.id) {
            let id = held.value.id;
            report(self.maps.counters.delete(&id.to_ne_bytes()));
            report(self.maps.counters.delete(&(id | counters::REMOVED).to_ne_bytes()));
        }
    }

    fn unstage(&self, staged: &[Staged]) {
        for change in staged {
            if let Some(new) = &change.new {
                self.discard(new, change.old.as_ref());
            }
        }
    }

    fn counters_of(&self, id: u32) -> KernelCounters {
        let value = self.maps.counters.lookup_all_cpus(&id.to_ne_bytes());
        value.ok().flatten().map_or_else(KernelCounters::default, |value| sum_of_cpus(&value))
    }

    /// Adds to counters that no program writes.
    fn keep_counters(&self, id: u32, more: KernelCounters) {
        let mut sum = self.counters_of(id);
        add(&mut sum, more);
        let kept = self
            .maps
            .counters
            .update_first_cpu(&id.to_ne_bytes(), &[sum.n_connections, sum.n_packets, sum.n_refused]);
        if let Err(error) = kept {
            tracing::warn!(%error, "the counters of a removed backend are lost");
        }
    }

    fn number(&mut self) -> u32 {
        let number = self.next;
        // The highest bit marks counters of removed backends. Two thousand million changes are decades away.
        self.next = (self.next + 1) & !counters::REMOVED;
        number
    }
}

#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub frontends: Vec<(Frontend, KernelCounters)>,
    pub backends: Vec<(Frontend, SocketAddr, KernelCounters)>,
}

fn holds(held: Option<&Held>, id: u32) -> bool {
    held.is_some_and(|held| held.backends.iter().any(|b| b.id == id))
}

fn value_of(backend: &HeldBackend, service: u32) -> BackendValue {
    BackendValue { address: backend.address, weight: backend.weight, service }
}

/// The service with the backends that its sockets can reach, each once. An IPv4 socket cannot reach an IPv6 backend;
/// an IPv6 TCP socket reaches an IPv4 one by its mapped address, a datagram does not.
fn usable(service: &Service) -> Service {
    let frontend = service.frontend;
    let reaches = |backend: &Backend| match (frontend.address.is_ipv4(), backend.address.is_ipv4()) {
        (true, v4) => v4,
        (false, true) => frontend.protocol == Protocol::Tcp,
        (false, false) => true,
    };
    let mut backends: Vec<Backend> = service.backends.iter().copied().filter(reaches).collect();
    backends.sort_by_key(|backend| backend.address);
    backends.dedup_by(|again, first| {
        let same = again.address == first.address;
        if same {
            first.weight = first.weight.max(again.weight);
        }
        same
    });
    Service { backends, ..service.clone() }
}

fn sorted(slots: &[layout::SlotValue]) -> Vec<[u8; layout::slot::BYTES]> {
    let mut bytes: Vec<_> = slots.iter().map(layout::SlotValue::bytes).collect();
    bytes.sort_unstable();
    bytes
}

fn sum_of_cpus(value: &[u8]) -> KernelCounters {
    let mut sum = KernelCounters::default();
    for cpu in value.chunks_exact(counters::BYTES) {
        add(
            &mut sum,
            KernelCounters {
                n_connections: layout::double(cpu, counters::N_CONNECTIONS as usize),
                n_packets: layout::double(cpu, counters::N_PACKETS as usize),
                n_refused: layout::double(cpu, counters::N_REFUSED as usize),
                bytes: 0,
            },
        );
    }
    sum
}

fn add(sum: &mut KernelCounters, more: KernelCounters) {
    sum.n_connections += more.n_connections;
    sum.n_refused += more.n_refused;
    sum.n_packets += more.n_packets;
    sum.bytes += more.bytes;
}
