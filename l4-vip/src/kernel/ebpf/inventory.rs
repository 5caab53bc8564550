//! Reads the maps back: the services that stand there, whoever wrote them, and what belongs to none of them.
//!
//! It changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use super::super::Frontend;
use super::held::{Held, HeldBackend};
use super::layout::{self, BackendValue, ServiceValue, SlotValue, counters};
use super::maps::Maps;

#[derive(Debug, Default)]
pub struct Inventory {
    pub held: BTreeMap<Frontend, Held>,
    /// The highest number of a service, a backend or a version.
    pub last: u32,
    pub strays: Strays,
}

/// What no service refers to.
#[derive(Debug, Default)]
pub struct Strays {
    /// Version and index.
    pub slots: Vec<(u32, u32)>,
    pub backends: Vec<u32>,
    pub counters: Vec<u32>,
}

impl Inventory {
    pub fn read(maps: &Maps) -> io::Result<Self> {
        let mut inventory = Self::default();
        let mut last = 0;
        let mut values: Vec<(Frontend, ServiceValue)> = Vec::new();
        maps.services.for_each(|key, value| {
            let value = ServiceValue::read(value);
            last = last.max(value.id).max(value.version);
            values.extend(layout::read_frontend(key).map(|frontend| (frontend, value)));
        })?;
        let mut of_service: HashMap<u32, Vec<HeldBackend>> = HashMap::with_capacity(values.len());
        maps.backends.for_each(|key, value| {
            let id = layout::word(key, 0);
            last = last.max(id);
            match BackendValue::read(value) {
                Some(BackendValue { address, weight, service }) => {
                    of_service.entry(service).or_default().push(HeldBackend { id, address, weight });
                }
                None => inventory.strays.backends.push(id),
            }
        })?;
        let mut slots: HashMap<u32, Vec<(u32, SlotValue)>> = HashMap::with_capacity(values.len());
        maps.slots.for_each(|key, value| {
            let (version, index) = layout::read_slot_key(key);
            last = last.max(version);
            slots.entry(version).or_default().push((index, SlotValue::read(value)));
        })?;
        let mut counted: BTreeSet<u32> = BTreeSet::new();
        maps.counters.for_each(|key, _| {
            let id = layout::word(key, 0);
            last = last.max(id & !counters::REMOVED);
            counted.insert(id);
        })?;
        inventory.last = last;
        for (frontend, value) in values {
            let mut backends = of_service.remove(&value.id).unwrap_or_default();
            backends.sort_by_key(|backend| backend.id);
            let own = slots.remove(&value.version).unwrap_or_default();
            let (own, beyond): (Vec<_>, Vec<_>) =
                own.into_iter().partition(|(index, _)| *index < value.n_slots);
            inventory.strays.slots.extend(beyond.into_iter().map(|(index, _)| (value.version, index)));
            for id in backends.iter().map(|b| b.id).chain([value.id, value.id | counters::REMOVED]) {
                counted.remove(&id);
            }
            let mut held = Held { value, backends, damaged: false };
            // The same backends may have come in another order, so the order of the slots does not count.
            held.damaged = own.len() != value.n_slots as usize
                || sorted(own.into_iter().map(|(_, slot)| slot)) != sorted(held.slots());
            inventory.held.insert(frontend, held);
        }
        let nobodys = of_service.into_values().flatten();
        inventory.strays.backends.extend(nobodys.map(|backend| backend.id));
        let nobodys = slots
            .into_iter()
            .flat_map(|(version, slots)| slots.into_iter().map(move |(index, _)| (version, index)));
        inventory.strays.slots.extend(nobodys);
        inventory.strays.counters.extend(counted);
        Ok(inventory)
    }
}

fn sorted(slots: impl IntoIterator<Item = SlotValue>) -> Vec<[u8; layout::slot::BYTES]> {
    let mut bytes: Vec<_> = slots.into_iter().map(|slot| slot.bytes()).collect();
    bytes.sort_unstable();
    bytes
}
