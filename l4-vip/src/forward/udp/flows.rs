//! The flows of one worker: a bounded table in order of use.
//!
//! Sans-io: what a flow holds is the caller's, and so is the clock. When the table is full the flow that was used
//! longest ago makes room.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use foldhash::fast::RandomState;

/// Names a flow for as long as it lives; a later flow in the same place has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowId {
    place: u32,
    turn: u32,
}

impl From<FlowId> for u64 {
    fn from(id: FlowId) -> Self {
        Self::from(id.turn) << 32 | Self::from(id.place)
    }
}

impl From<u64> for FlowId {
    fn from(number: u64) -> Self {
        Self { place: number as u32, turn: (number >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Place<K, V> {
    turn: u32,
    used_at: Duration,
    newer: u32,
    older: u32,
    flow: Option<(K, V)>,
}

const NOWHERE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Flows<K, V> {
    max: usize,
    index: HashMap<K, u32, RandomState>,
    places: Vec<Place<K, V>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl<K: Hash + Eq + Clone, V> Flows<K, V> {
    /// Never more than `max` (at least 1).
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: max.clamp(1, NOWHERE as usize),
            index: HashMap::default(),
            places: Vec::new(),
            free: Vec::new(),
            newest: NOWHERE,
            oldest: NOWHERE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&self, key: &K) -> Option<FlowId> {
        let place = *self.index.get(key)?;
        Some(FlowId { place, turn: self.places[place as usize].turn })
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&V> {
        self.place(id)?.flow.as_ref().map(|(_, value)| value)
    }

    /// How long ago it was used.
    pub(super) fn idle(&self, id: FlowId, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.place(id)?.used_at))
    }

    /// It is used now.
    pub(super) fn touch(&mut self, id: FlowId, now: Duration) {
        if self.place(id).is_some() {
            self.places[id.place as usize].used_at = now;
            self.unlink(id.place);
            self.link(id.place);
        }
    }

    /// Adds a flow, in place of one with the same key. Gives back the flow that had to make room.
    pub(super) fn insert(&mut self, key: K, value: V, now: Duration) -> (FlowId, Option<V>) {
        let displaced = match self.find(&key) {
            Some(same) => self.remove(same),
            None if self.len() >= self.max => self.remove_oldest(),
            None => None,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                turn: 0,
                used_at: Duration::ZERO,
                newer: NOWHERE,
                older: NOWHERE,
                flow: None,
            });
            self.places.len() as u32 - 1
        });
        self.index.insert(key.clone(), place);
        let entry = &mut self.places[place as usize];
        entry.flow = Some((key, value));
        entry.used_at = now;
        let id = FlowId { place, turn: entry.turn };
        self.link(place);
        (id, displaced)
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<V> {
        self.place(id)?;
        self.unlink(id.place);
        let entry = &mut self.places[id.place as usize];
        entry.turn = entry.turn.wrapping_add(1);
        let (key, value) = entry.flow.take()?;
        self.index.remove(&key);
        self.free.push(id.place);
        Some(value)
    }

    pub(super) fn remove_oldest(&mut self) -> Option<V> {
        let oldest = self.places.get(self.oldest as usize)?;
        self.remove(FlowId { place: self.oldest, turn: oldest.turn })
    }

    /// Removes the flows that `keep` does not want, which is told each flow and how long ago it was used.
    pub(super) fn retain(&mut self, now: Duration, keep: impl Fn(&K, &V, Duration) -> bool) {
        for place in 0..self.places.len() as u32 {
            let entry = &self.places[place as usize];
            let Some((key, value)) = &entry.flow else { continue };
            if !keep(key, value, now.saturating_sub(entry.used_at)) {
                self.remove(FlowId { place, turn: entry.turn });
            }
        }
    }

    fn place(&self, id: FlowId) -> Option<&Place<K, V>> {
        self.places.get(id.place as usize).filter(|place| place.turn == id.turn && place.flow.is_some())
    }

    fn link(&mut self, place: u32) {
        let entry = &mut self.places[place as usize];
        (entry.newer, entry.older) = (NOWHERE, self.newest);
        match self.places.get_mut(self.newest as usize) {
            Some(newest) => newest.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Place { newer, older, .. } = self.places[place as usize];
        match self.places.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.places.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_flow_used_longest_ago_makes_room() {
        let mut flows = Flows::new(2);
        let (a, _) = flows.insert("a", 1, at(0));
        let (b, _) = flows.insert("b", 2, at(1));
        flows.touch(a, at(2));
        let (c, displaced) = flows.insert("c", 3, at(3));
        assert_eq!(displaced, Some(2));
        assert_eq!((flows.get(a), flows.get(b), flows.get(c)), (Some(&1), None, Some(&3)));
        assert_eq!(flows.len(), 2);
    }

    #[test]
    fn an_old_id_does_not_name_the_next_flow_in_its_place() {
        let mut flows = Flows::new(8);
        let (old, _) = flows.insert("a", 1, at(0));
        flows.remove(old);
        let (new, _) = flows.insert("b", 2, at(0));
        assert_eq!(flows.get(old), None);
        assert_eq!(flows.remove(old), None);
        assert_eq!(flows.get(FlowId::from(u64::from(new))), Some(&2));
    }

    proptest! {
        /// Any run of operations against a list kept in order of use, under a clock of the test's own.
        #[test]
        fn it_behaves_like_a_list_in_order_of_use(
            max in 1_usize..12,
            steps in proptest::collection::vec((0_u8..5, 0_u16..20, 0_u64..4), 1..400),
        ) {
            let mut flows = Flows::new(max);
            // From the oldest to the newest: key, value, used at.
            let mut model: VecDeque<(u16, usize, Duration)> = VecDeque::new();
            let mut now = at(0);
            for (step, (operation, key, pause)) in steps.into_iter().enumerate() {
                now += at(pause);
                let known = model.iter().position(|(k, ..)| *k == key);
                match operation {
                    0 | 1 => {
                        let expect = match known {
                            Some(index) => model.remove(index),
                            None if model.len() == max => model.pop_front(),
                            None => None,
                        };
                        model.push_back((key, step, now));
                        let (id, displaced) = flows.insert(key, step, now);
                        prop_assert_eq!(displaced, expect.map(|(_, value, _)| value));
                        prop_assert_eq!(flows.get(id), Some(&step));
                    }
                    2 => if let Some(id) = flows.find(&key) {
                        flows.touch(id, now);
                        let (_, value, _) = model.remove(known.unwrap()).unwrap();
                        model.push_back((key, value, now));
                    },
                    3 => {
                        let value = flows.find(&key).and_then(|id| flows.remove(id));
                        prop_assert_eq!(value, known.and_then(|i| model.remove(i)).map(|(_, value, _)| value));
                    }
                    _ => {
                        flows.retain(now, |_, _, idle| idle < at(10));
                        model.retain(|(.., used_at)| now - *used_at < at(10));
                    }
                }
                prop_assert!(flows.len() <= max);
                prop_assert_eq!(flows.len(), model.len());
                for (key, value, used_at) in &model {
                    let id = flows.find(key).unwrap();
                    prop_assert_eq!((flows.get(id), flows.idle(id, now)), (Some(value), Some(now - *used_at)));
                }
            }
            let rest: Vec<usize> = std::iter::from_fn(|| flows.remove_oldest()).collect();
            prop_assert_eq!(rest, model.into_iter().map(|(_, value, _)| value).collect::<Vec<_>>());
        }
    }
}
