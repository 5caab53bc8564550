//! Session affinity: which endpoint a client's connections stay with, until it has made none for a while.
//!
//! A fixed table of atomics: bounded, shared by all workers, no lock. When too many clients share a place, the one
//! whose time is up first is forgotten. It decides nothing: the pool asks it and tells it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const N_SETS: usize = 16_384;
/// Clients that a set holds: 65,536 in all, 512 KiB.
const N_WAYS: usize = 4;

const ID_BITS: u32 = 24;
const EXPIRY_BITS: u32 = 24;
const EXPIRY_MASK: u64 = (1 << EXPIRY_BITS) - 1;
pub(super) const ID_MASK: u32 = (1 << ID_BITS) - 1;

/// An entry is 16 bits of the client's hash, the endpoint's id, and the second until which it holds; 0 is empty. Two
/// clients that agree in these and in their set share an endpoint, which harms nobody.
#[derive(Debug)]
pub(super) struct Affinity {
    timeout: Duration,
    entries: Box<[AtomicU64]>,
}

#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    fn new(tag: u64, id: u32, expiry: u64) -> Self {
        Self(tag << (ID_BITS + EXPIRY_BITS) | u64::from(id & ID_MASK) << EXPIRY_BITS | expiry)
    }

    fn tag(self) -> u64 {
        self.0 >> (ID_BITS + EXPIRY_BITS)
    }

    fn id(self) -> u32 {
        (self.0 >> EXPIRY_BITS) as u32 & ID_MASK
    }

    fn expiry(self) -> u64 {
        self.0 & EXPIRY_MASK
    }
}

impl Affinity {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, entries: (0..N_SETS * N_WAYS).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The endpoint that the client of this hash stays with. `now` is time since a fixed beginning.
    pub(super) fn find(&self, client: u64, now: Duration) -> Option<u32> {
        let (set, tag) = self.set(client);
        let entries = set.iter().map(|entry| Entry(entry.load(Relaxed)));
        entries.filter(|e| e.tag() == tag && e.expiry() > now.as_secs()).map(Entry::id).next()
    }

    /// The client has just been given this endpoint; its time begins anew.
    pub(super) fn keep(&self, client: u64, id: u32, now: Duration) {
        let (set, tag) = self.set(client);
        // Whole seconds, rounded up. The 24 bits of them are half a year.
        let expiry = (now + self.timeout).as_secs().saturating_add(1).min(EXPIRY_MASK);
        let own = set.iter().find(|entry| {
            let entry = Entry(entry.load(Relaxed));
            entry.0 != 0 && entry.tag() == tag
        });
        let place = own.or_else(|| set.iter().min_by_key(|entry| Entry(entry.load(Relaxed)).expiry()));
        if let Some(place) = place {
            let entry = Entry::new(tag, id, expiry);
            if place.load(Relaxed) != entry.0 {
                place.store(entry.0, Relaxed);
            }
        }
    }

    fn set(&self, client: u64) -> (&[AtomicU64], u64) {
        let first = client as usize % N_SETS * N_WAYS;
        (&self.entries[first..first + N_WAYS], client >> 48)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_client_stays_until_its_time_is_up() {
        let affinity = Affinity::new(HOUR);
        let client = 0xabcd_0000_1234_5678;
        assert_eq!(affinity.find(client, Duration::ZERO), None);
        affinity.keep(client, 7, Duration::ZERO);
        assert_eq!(affinity.find(client, HOUR), Some(7));
        assert_eq!(affinity.find(client, HOUR + Duration::from_secs(2)), None);
        affinity.keep(client, 7, HOUR);
        assert_eq!(affinity.find(client, HOUR + HOUR), Some(7), "every connection begins the time anew");
        affinity.keep(client, ID_MASK, HOUR);
        assert_eq!(affinity.find(client, HOUR + HOUR), Some(ID_MASK));
        assert_eq!(affinity.find(client ^ 1 << 60, HOUR), None, "another client");
    }

    #[test]
    fn a_full_place_forgets_whose_time_is_up_first() {
        let affinity = Affinity::new(HOUR);
        let client = |n: u64| n << 48 | 5;
        for n in 1..=4 {
            affinity.keep(client(n), n as u32, Duration::from_secs(n));
        }
        affinity.keep(client(5), 5, Duration::from_secs(5));
        let found: Vec<Option<u32>> =
            (1..=5).map(|n| affinity.find(client(n), Duration::from_secs(5))).collect();
        assert_eq!(found, [None, Some(2), Some(3), Some(4), Some(5)]);
    }
}
