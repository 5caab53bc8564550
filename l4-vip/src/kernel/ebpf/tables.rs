//! What the maps hold, as this process knows it, and how they are changed.
//!
//! A change is staged (new backends and slots under numbers that nobody refers to yet), flipped (one element for each
//! service, replaced at once) and swept (what nobody refers to any more). A failure before the end of the flip takes
//! back what was flipped. Programs are no affair of this file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::super::{ApplyError, Change, Counted, Frontend, Service};
use super::held::{Held, HeldBackend, usable};
use super::inventory::{Inventory, Strays};
use super::layout::{self, ServiceValue, SlotValue, counters};
use super::maps::{Limits, Maps};
use super::tallies;

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
    /// Those of a new version; none if the old ones serve.
    slots: Vec<SlotValue>,
}

impl Staged {
    fn forward(&self) -> Step<'_> {
        Step { frontend: self.frontend, from: self.old.as_ref(), to: self.new.as_ref() }
    }

    fn back(&self) -> Step<'_> {
        Step { frontend: self.frontend, from: self.new.as_ref(), to: self.old.as_ref() }
    }
}

#[derive(Clone, Copy)]
struct Step<'a> {
    frontend: Frontend,
    from: Option<&'a Held>,
    to: Option<&'a Held>,
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
        let staged: Vec<Staged> =
            last.into_iter().filter_map(|(frontend, service)| self.plan(frontend, service)).collect();
        let failed = |what: &str, error| {
            let what = match &staged[..] {
                [change] => format!("{what} VIP address {}", change.frontend.address),
                changes => format!("{what} {} VIP addresses", changes.len()),
            };
            ApplyError::kernel(what, error)
        };
        if let Err(error) = self.stage(&staged) {
            self.unstage(&staged);
            return Err(failed("add the backends of", error));
        }
        if let Err(error) = self.flip(staged.iter().map(Staged::forward)) {
            // What was not flipped yet is made once more what it is.
            if let Err(error) = self.flip(staged.iter().map(Staged::back)) {
                tracing::error!(%error, "VIPs could not be put back");
            }
            self.unstage(&staged);
            return Err(failed("change", error));
        }
        let mut gone = Vec::new();
        for change in staged {
            gone.extend(self.sweep(change.forward()));
            self.n_backends -= change.old.map_or(0, |old| old.backends.len());
            match change.new {
                Some(new) => {
                    self.n_backends += new.backends.len();
                    self.held.insert(change.frontend, new);
                }
                None => drop(self.held.remove(&change.frontend)),
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
    /// were, counters aside.
    pub fn read(&mut self) -> Result<usize, ApplyError> {
        let failed = |e| ApplyError::kernel("read the VIPs that the kernel holds", e);
        let Inventory { held, last, strays } = Inventory::read(&self.maps).map_err(failed)?;
        self.n_backends = held.values().map(|held| held.backends.len()).sum();
        self.held = held;
        self.next = self.next.max(last + 1);
        self.remove(&strays).map_err(failed)?;
        Ok(strays.slots.len() + strays.backends.len())
    }

    pub fn counters(&self) -> Result<Counted, ApplyError> {
        tallies::read(&self.maps.counters, self.held.iter())
            .map_err(|e| ApplyError::kernel("read the VIPs' counters", e))
    }

    fn remove(&self, strays: &Strays) -> io::Result<()> {
        for (version, index) in &strays.slots {
            self.maps.slots.delete(&layout::slot_key(*version, *index))?;
        }
        for id in &strays.backends {
            self.maps.backends.delete(&id.to_ne_bytes())?;
        }
        for id in &strays.counters {
            self.maps.counters.delete(&id.to_ne_bytes())?;
        }
        Ok(())
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

    /// What a frontend should become; none if it is that already.
    fn plan(&mut self, frontend: Frontend, service: Option<Service>) -> Option<Staged> {
        let old = self.held.get(&frontend).cloned();
        let service = match (&old, service) {
            (None, None) => return None,
            (Some(old), Some(service)) if old.is(&service) => return None,
            (_, None) => return Some(Staged { frontend, old, new: None, slots: Vec::new() }),
            (_, Some(service)) => service,
        };
        let sound = old.as_ref().filter(|old| !old.damaged);
        let id = sound.map_or_else(|| self.number(), |old| old.value.id);
        let backends = service.backends.iter().map(|backend| {
            let known = sound.and_then(|old| old.find(backend.address));
            let id = known.map_or_else(|| self.number(), |known| known.id);
            HeldBackend { id, address: backend.address, weight: backend.weight }
        });
        let backends = backends.collect();
        let value = ServiceValue { version: 0, n_slots: 0, id, affinity: service.affinity };
        let mut new = Held { value, backends, damaged: false };
        let mut slots = new.slots();
        new.value.n_slots = slots.len() as u32;
        new.value.version = match sound.filter(|old| old.slots() == slots) {
            Some(old) => {
                slots.clear();
                old.value.version
            }
            None => self.number(),
        };
        Some(Staged { frontend, old, new: Some(new), slots })
    }

    /// Writes what the new services need and the old ones have not; nothing refers to it yet.
    fn stage(&self, staged: &[Staged]) -> io::Result<()> {
        let (mut backend_ids, mut backends) = (Vec::new(), Vec::new());
        let (mut slot_keys, mut slots) = (Vec::new(), Vec::new());
        for change in staged {
            let Some(new) = &change.new else { continue };
            for backend in new.backends.iter().filter(|b| !has(change.old.as_ref(), b.id)) {
                backend_ids.push(backend.id.to_ne_bytes());
                backends.push(backend.value(new.value.id).bytes());
            }
            for (index, slot) in (0..).zip(&change.slots) {
                slot_keys.push(layout::slot_key(new.value.version, index));
                slots.push(slot.bytes());
            }
        }
        self.maps.backends.update_all(&backend_ids, &backends)?;
        self.maps.slots.update_all(&slot_keys, &slots)
    }

    /// Puts each step's end in force in the place of its beginning.
    fn flip<'a>(&self, steps: impl Iterator<Item = Step<'a>>) -> io::Result<()> {
        let (mut backend_ids, mut backends) = (Vec::new(), Vec::new());
        let (mut service_keys, mut services, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for Step { frontend, from, to } in steps {
            let key = layout::frontend_key(&frontend);
            let Some(to) = to else {
                removed.push(key);
                continue;
            };
            // The weight of a known backend only matters to clients with affinity: a drained one loses them.
            for backend in &to.backends {
                let known = from.and_then(|from| from.backends.iter().find(|b| b.id == backend.id));
                if known.is_some_and(|known| known.weight != backend.weight) {
                    backend_ids.push(backend.id.to_ne_bytes());
                    backends.push(backend.value(to.value.id).bytes());
                }
            }
            service_keys.push(key);
            services.push(to.value.bytes(&key));
        }
        self.maps.backends.update_all(&backend_ids, &backends)?;
        // What goes makes room for what comes.
        removed.iter().try_for_each(|key| self.maps.services.delete(key))?;
        self.maps.services.update_all(&service_keys, &services)
    }

    /// Removes what only the old service had. What cannot be removed is found by the next [`Self::read`].
    fn sweep(&self, Step { frontend, from, to }: Step<'_>) -> Vec<Gone> {
        let Some(old) = from else { return Vec::new() };
        let gone: Vec<HeldBackend> = old.backends.iter().filter(|b| !has(to, b.id)).copied().collect();
        if to.is_some_and(|new| new.value.id == old.value.id)
            && let Err(error) =
                tallies::keep(&self.maps.counters, old.value.id, gone.iter().map(|backend| backend.id))
        {
            tracing::warn!(%error, "the counters of a removed backend are lost");
        }
        self.discard(old, to);
        gone.into_iter().map(|backend| Gone { frontend, backend }).collect()
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
        for backend in held.backends.iter().filter(|b| !has(other, b.id)) {
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

    fn number(&mut self) -> u32 {
        let number = self.next;
        // The highest bit marks counters of removed backends. Two thousand million changes are decades away.
        self.next = (self.next + 1) & !counters::REMOVED;
        number
    }
}

fn has(held: Option<&Held>, id: u32) -> bool {
    held.is_some_and(|held| held.has(id))
}
