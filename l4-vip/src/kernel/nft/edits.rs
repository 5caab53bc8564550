//! What a transaction has to remove from the sets and to add to them, to make one entry of another.
//!
//! It gathers and writes; what an entry should be is decided in `entry`.

use std::net::SocketAddr;

use super::batch::{Batch, Value};
use super::elements::{backend_value, frontend_key, slot_key};
use super::entry::Entry;
use super::family::{Family, SetKind};
use crate::kernel::Frontend;

/// Elements to remove and to add, in one family.
#[derive(Debug, Default)]
struct FamilyEdits {
    removed: Vec<(SetKind, Vec<u8>)>,
    added: Vec<(SetKind, Vec<u8>, Value)>,
}

#[derive(Debug, Default)]
pub(super) struct Edits {
    v4: FamilyEdits,
    v6: FamilyEdits,
    /// Slots that another backend gets, or nobody, while their frontend stays.
    pub(super) left: Vec<Left>,
}

/// A slot, and whose it was.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) slot: Vec<u8>,
    pub(super) frontend: Frontend,
    pub(super) backend: SocketAddr,
}

const EDITED: [SetKind; 4] = [SetKind::Services, SetKind::Slots, SetKind::Connections, SetKind::Refusals];

/// The sets that count for each frontend.
pub(super) const COUNTING: [SetKind; 2] = [SetKind::Connections, SetKind::Refusals];

impl Edits {
    /// Makes `new` of `old`; none is no frontend at all.
    pub(super) fn change(&mut self, frontend: Frontend, old: Option<&Entry>, new: Option<&Entry>) {
        let FamilyEdits { removed, added } = self.of(Family::of(frontend.address.ip()));
        let key = || frontend_key(frontend);
        for kind in COUNTING {
            match (old, new) {
                (None, Some(_)) => added.push((kind, key(), Value::None)),
                (Some(_), None) => removed.push((kind, key())),
                _ => {}
            }
        }
        let pick = |entry: Option<&Entry>| entry.map(|entry| entry.pick);
        if pick(old) != pick(new) {
            removed.extend(old.map(|_| (SetKind::Services, key())));
            added.extend(new.map(|new| (SetKind::Services, key(), Value::Bytes(new.pick.value()))));
        }
        let slots = |entry: Option<&Entry>| entry.map_or(&[][..], |entry| &entry.slots).to_vec();
        let (old_slots, new_slots) = (slots(old), slots(new));
        let mut left = Vec::new();
        for slot in 0..old_slots.len().max(new_slots.len()) {
            let (old, new) = (old_slots.get(slot), new_slots.get(slot));
            if old != new {
                let key = slot_key(frontend, slot as u16);
                left.extend(old.map(|old| Left { slot: key.clone(), frontend, backend: *old }));
                removed.extend(old.map(|_| (SetKind::Slots, key.clone())));
                added.extend(new.map(|new| (SetKind::Slots, key, Value::Bytes(backend_value(*new)))));
            }
        }
        if new.is_some() {
            self.left.extend(left);
        }
    }

    /// Takes out elements that belong to nothing.
    pub(super) fn remove(&mut self, family: Family, kind: SetKind, key: Vec<u8>) {
        self.of(family).removed.push((kind, key));
    }

    /// Removals first, because an element takes a new value only as a new element.
    pub(super) fn write(&self, batch: &mut Batch) {
        for (family, edits) in [(Family::V4, &self.v4), (Family::V6, &self.v6)] {
            for kind in EDITED {
                let keys: Vec<&[u8]> =
                    edits.removed.iter().filter(|(k, _)| *k == kind).map(|(_, key)| &key[..]).collect();
                batch.delete_elements(family.set(kind), &keys);
                let elements: Vec<(&[u8], &Value)> = edits
                    .added
                    .iter()
                    .filter(|(k, ..)| *k == kind)
                    .map(|(_, key, value)| (&key[..], value))
                    .collect();
                batch.add_elements(family.set(kind), &elements);
            }
        }
    }

    fn of(&mut self, family: Family) -> &mut FamilyEdits {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
