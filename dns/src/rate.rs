//! Limits how often the same answer goes to the same network, so that nobody can aim this server at a third party
//! (response rate limiting, as BIND, Knot and NSD do).
//!
//! It knows no packet: it says which answers may go. A clash of two keys in its fixed table can only let one of them
//! have more, never less, than its due.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;

use crate::networks::mask;

/// 512 KiB for a quarter million networks and names a second at four places each.
const N_SETS: usize = 16_384;
const N_PLACES: usize = 4;
/// A place holds a key's tag (24 bits), a second (20 bits) and a count (20 bits).
const COUNT_BITS: u32 = 20;
const SECOND_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const SECOND_MASK: u64 = (1 << SECOND_BITS) - 1;
/// The networks that are counted as one client.
const V4_PREFIX_BITS: u8 = 24;
const V6_PREFIX_BITS: u8 = 56;

/// What is to become of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Send,
    /// An empty answer that tells a real client to come back over TCP.
    Slip,
    Drop,
}

/// Shared by all workers; counters are relaxed, so a limit is met within a few answers.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_sec: u64,
    /// Every so-manieth answer over the limit slips; 0: none.
    slip: u64,
    hasher: FixedState,
    places: Box<[AtomicU64]>,
}

impl Limiter {
    pub fn new(per_sec: u32, slip: u32) -> Self {
        Self {
            per_sec: u64::from(per_sec).min(COUNT_MASK - 1),
            slip: slip.into(),
            hasher: FixedState::with_seed(rand::random()),
            places: (0..N_SETS * N_PLACES).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts one more answer about `what` to the client's network in the second `now`.
    pub fn verdict(&self, client: IpAddr, what: impl Hash, now: u32) -> Verdict {
        let network = match client.to_canonical() {
            IpAddr::V4(ip) => mask(ip.to_bits().into(), V4_PREFIX_BITS, 32),
            IpAddr::V6(ip) => 1 << 127 | mask(ip.to_bits(), V6_PREFIX_BITS, 128),
        };
        let hash = self.hasher.hash_one((network, what));
        let n = self.count(hash, u64::from(now) & SECOND_MASK);
        let Some(over) = n.checked_sub(self.per_sec).filter(|over| *over > 0) else { return Verdict::Send };
        match self.slip {
            0 => Verdict::Drop,
            slip if over % slip == 0 => Verdict::Slip,
            _ => Verdict::Drop,
        }
    }

    /// How many answers there have been in this second, this one included.
    fn count(&self, hash: u64, second: u64) -> u64 {
        let tag = hash >> (COUNT_BITS + SECOND_BITS);
        let set = (hash as usize % N_SETS) * N_PLACES;
        let places = &self.places[set..set + N_PLACES];
        let read = |place: &AtomicU64| place.load(Ordering::Relaxed);
        let mine = tag << (COUNT_BITS + SECOND_BITS) | second << COUNT_BITS;
        if let Some(place) = places.iter().find(|place| read(place) & !COUNT_MASK == mine) {
            if read(place) & COUNT_MASK == COUNT_MASK {
                return COUNT_MASK;
            }
            return (place.fetch_add(1, Ordering::Relaxed) & COUNT_MASK) + 1;
        }
        // An old place is free; otherwise who was counted least gives way.
        let rank = |place: &&AtomicU64| {
            let value = read(place);
            if value >> COUNT_BITS & SECOND_MASK == second { value & COUNT_MASK } else { 0 }
        };
        if let Some(place) = places.iter().min_by_key(rank) {
            place.store(mine | 1, Ordering::Relaxed);
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_over_the_limit_slip_or_drop_by_network_and_question() {
        let limiter = Limiter::new(10, 2);
        let client = |last| IpAddr::from([203, 0, 113, last]);
        let of = |ip: IpAddr, what: &str, now| limiter.verdict(ip, what, now);
        let verdicts: Vec<Verdict> = (0..16).map(|i| of(client(i), "a", 7)).collect();
        assert_eq!(verdicts[..10], [Verdict::Send; 10]);
        use Verdict::{Drop, Slip};
        assert_eq!(verdicts[10..], [Drop, Slip, Drop, Slip, Drop, Slip]);
        assert_eq!(of(client(1), "b", 7), Verdict::Send, "another question");
        assert_eq!(of([203, 0, 114, 1].into(), "a", 7), Verdict::Send, "another network");
        assert_eq!(of(client(1), "a", 8), Verdict::Send, "another second");
        let v6 = |ip: &str| of(ip.parse().unwrap(), "a", 7);
        (0..10).for_each(|_| assert_eq!(v6("2001:db8::1"), Verdict::Send));
        assert_eq!(v6("2001:db8:0:ff::1"), Drop, "one /56");
        assert_eq!(v6("2001:db8:0:100::1"), Verdict::Send, "the next");
        assert_eq!(Limiter::new(0, 0).verdict(client(1), "a", 7), Drop);
    }
}
