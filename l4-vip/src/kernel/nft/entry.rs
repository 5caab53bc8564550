//! One frontend as the kernel holds it: how it picks and what is in its slots, made from a service so that as few slots
//! as possible change.
//!
//! A packet looks up the number of slots and then one of them, and a change may be made between the two. So slots
//! beyond the number stay for a while, each with a backend that takes new connections: whatever the packet has read,
//! the slot that it draws is there. It talks to no kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use super::family::Family;
use super::pick::{Lifetime, Pick};
use crate::kernel::{ApplyError, Backend, Frontend, Service};

pub(super) type Entries = HashMap<Frontend, Entry, foldhash::fast::RandomState>;

/// Weights whose sum is beyond it even in lowest terms are rounded to parts of it, so that a frontend never costs the
/// kernel more memory than this many slots, or one for each backend.
const MAX_WEIGHTED_SLOTS: u64 = 1024;

/// The fewest slots of a frontend with session affinity: three backends differ by less than 2 %.
const AFFINITY_SLOTS: u64 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) pick: Pick,
    /// As many as are picked from, and then the spare ones.
    pub(super) slots: Box<[SocketAddr]>,
}

impl Entry {
    /// `held`: what the kernel holds of this frontend now.
    pub(super) fn compile(service: &Service, held: Option<&Self>) -> Result<Self, String> {
        let family = Family::of(service.frontend.address.ip());
        if let Some(other) = service.backends.iter().find(|b| Family::of(b.address.ip()) != family) {
            return Err(format!("backend {} is of another address family", other.address));
        }
        let shares = match service.affinity {
            None => shares(&service.backends),
            Some(_) => shares_of(affinity_slots(service.backends.len(), held), &service.backends),
        };
        let n_slots = u16::try_from(shares.values().sum::<u64>())
            .map_err(|_| format!("more than {} backends", u16::MAX))?;
        let pick = match (n_slots, service.affinity) {
            (0, _) => Pick::Refuse,
            (n_slots, None) => Pick::Random(n_slots),
            (n_slots, Some(time)) => Pick::ByClient(n_slots, Lifetime::of(time)),
        };
        let held = held.map_or(&[][..], |entry| &entry.slots);
        Ok(Self { pick, slots: fill(n_slots.into(), shares, held) })
    }

    /// Without its spare slots, if it has any. Nobody may still draw from them: the number of slots is an older one.
    pub(super) fn without_spare(&self) -> Option<Self> {
        let in_use = usize::from(self.pick.n_slots());
        (self.slots.len() > in_use).then(|| Self { pick: self.pick, slots: self.slots[..in_use].into() })
    }
}

/// With session affinity the number of slots does not follow that of backends, and a slot is a group of clients: a
/// backend that goes leaves its clients to the others, one that comes takes its share, and all others stay. There are
/// never fewer than before, because clients are remembered by their slots.
fn affinity_slots(n_backends: usize, held: Option<&Entry>) -> u64 {
    let before = match held.map(|held| held.pick) {
        Some(Pick::ByClient(n_slots, _)) => n_slots.into(),
        _ => AFFINITY_SLOTS,
    };
    (4 * n_backends as u64).next_power_of_two().max(before)
}

/// The number of slots of each backend that takes new connections: as few as their weights allow.
fn shares(backends: &[Backend]) -> BTreeMap<SocketAddr, u64> {
    let mut weights = weights(backends);
    let common = weights.values().copied().fold(0, greatest_common_divisor).max(1);
    weights.values_mut().for_each(|weight| *weight /= common);
    if weights.values().sum::<u64>() > MAX_WEIGHTED_SLOTS.max(weights.len() as u64) {
        return shares_of(MAX_WEIGHTED_SLOTS, backends);
    }
    weights
}

/// About `n_slots`, and at least one for each.
fn shares_of(n_slots: u64, backends: &[Backend]) -> BTreeMap<SocketAddr, u64> {
    let mut weights = weights(backends);
    let total: u64 = weights.values().sum();
    let (mut n_weighed, mut n_given) = (0, 0);
    for weight in weights.values_mut() {
        // Rounding what has been given so far, not each by itself, makes the sum come out.
        n_weighed += *weight;
        *weight = (n_weighed * n_slots / total).saturating_sub(n_given).max(1);
        n_given += *weight;
    }
    weights
}

fn weights(backends: &[Backend]) -> BTreeMap<SocketAddr, u64> {
    let mut weights: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    for backend in backends.iter().filter(|backend| backend.weight > 0) {
        *weights.entry(backend.address).or_default() += u64::from(backend.weight);
    }
    weights
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Leaves what is right where it is. What was a slot before and is none any more becomes a spare one.
fn fill(n_slots: usize, mut shares: BTreeMap<SocketAddr, u64>, held: &[SocketAddr]) -> Box<[SocketAddr]> {
    let usable: BTreeSet<SocketAddr> = shares.keys().copied().collect();
    let mut take = |backend: &SocketAddr| {
        let share = shares.get_mut(backend).filter(|share| **share > 0)?;
        *share -= 1;
        Some(*backend)
    };
    let kept: Vec<Option<SocketAddr>> = (0..n_slots).map(|slot| take(held.get(slot)?)).collect();
    let mut rest = shares.into_iter().flat_map(|(backend, share)| (0..share).map(move |_| backend));
    let mut slots: Vec<SocketAddr> =
        kept.into_iter().filter_map(|kept| kept.or_else(|| rest.next())).collect();
    if n_slots > 0 {
        for (spare, backend) in held.iter().enumerate().skip(n_slots) {
            slots.push(if usable.contains(backend) { *backend } else { slots[spare % n_slots] });
        }
    }
    slots.into()
}

/// Every service, or none and those that nft cannot serve.
pub(super) fn compile<'a>(
    services: impl Iterator<Item = &'a Service>,
    held: &Entries,
) -> Result<Vec<(Frontend, Entry)>, ApplyError> {
    let mut compiled = Vec::new();
    let (mut refused, mut reasons) = (Vec::new(), Vec::new());
    for service in services {
        match Entry::compile(service, held.get(&service.frontend)) {
            Ok(entry) => compiled.push((service.frontend, entry)),
            Err(reason) => {
                refused.push(service.frontend);
                reasons.push(reason);
            }
        }
    }
    match reasons.into_iter().next() {
        None => Ok(compiled),
        Some(reason) => Err(ApplyError::Refused { frontends: refused, reason }),
    }
}

#[cfg(test)]
mod tests {
    use event_watcher::catalog::Protocol;

    use super::*;

    fn service(weights: &[u16]) -> Service {
        let frontend = Frontend { protocol: Protocol::Tcp, address: "11.0.0.1:80".parse().unwrap() };
        let backends =
            weights.iter().enumerate().map(|(n, weight)| Backend { address: address(n), weight: *weight });
        Service { frontend, backends: backends.collect(), affinity: None }
    }

    fn address(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80))
    }

    #[test]
    fn weights_become_slots() {
        let check = |weights: &[u16], expect: &[usize]| {
            let entry = Entry::compile(&service(weights), None).unwrap();
            let count = |n| entry.slots.iter().filter(|slot| **slot == address(n)).count();
            let counts: Vec<usize> = (0..weights.len()).map(count).collect();
            assert_eq!(counts, expect, "{weights:?}");
            assert_eq!(usize::from(entry.pick.n_slots()), entry.slots.len(), "{weights:?}");
        };
        check(&[], &[]);
        check(&[0, 0], &[0, 0]);
        check(&[1, 1, 1], &[1, 1, 1]);
        check(&[100, 50], &[2, 1]);
        check(&[100, 0, 25], &[4, 0, 1]);
        check(&[65_535, 1], &[1023, 1]);
        check(&[1; 2000], &[1; 2000]);
    }

    #[test]
    fn what_stays_keeps_its_slot() {
        let three = Entry::compile(&service(&[1, 1, 1]), None).unwrap();
        let two = Entry::compile(&service(&[0, 1, 1]), Some(&three)).unwrap();
        assert_eq!(*two.slots, [address(2), address(1), address(2)], "the last is a spare one");
        let again = Entry::compile(&service(&[1, 1, 1]), Some(&two)).unwrap();
        assert_eq!(*again.slots, [address(2), address(1), address(0)]);
        assert_eq!((three.without_spare(), two.without_spare().unwrap().slots.len()), (None, 2));
        assert_eq!(Entry::compile(&service(&[1, 1, 1]), Some(&again)).unwrap(), again);
    }

    #[test]
    fn whatever_number_of_slots_was_read_the_slot_is_there_and_takes_connections() {
        let mut held: Option<Entry> = None;
        for weights in [&[1_u16, 1, 1, 1, 1][..], &[0, 5, 0, 2], &[1], &[0, 1, 1], &[0, 0, 0, 3, 9]] {
            let entry = Entry::compile(&service(weights), held.as_ref()).unwrap();
            let before = held.map_or(0, |held| held.pick.n_slots());
            assert!(entry.slots.len() >= usize::from(before.max(entry.pick.n_slots())), "{weights:?}");
            for slot in &entry.slots {
                let backend = (0..weights.len()).find(|n| address(*n) == *slot);
                assert!(backend.is_some_and(|n| weights[n] > 0), "{weights:?}: {slot}");
            }
            held = Some(entry);
        }
        let none = Entry::compile(&service(&[0]), held.as_ref()).unwrap();
        assert_eq!((none.pick, none.slots.len()), (Pick::Refuse, 0));
    }

    #[test]
    fn with_affinity_only_the_clients_of_what_goes_or_comes_move() {
        let mut service = service(&[1; 3]);
        service.affinity = Some(std::time::Duration::from_secs(60));
        let three = Entry::compile(&service, None).unwrap();
        assert_eq!(three.pick.n_slots(), 256);
        let gone = service.backends.remove(1).address;
        let two = Entry::compile(&service, Some(&three)).unwrap();
        for (before, after) in three.slots.iter().zip(&two.slots) {
            assert!(before == after || *before == gone);
        }
        service.backends.push(Backend { address: gone, weight: 1 });
        let again = Entry::compile(&service, Some(&two)).unwrap();
        for (before, after) in two.slots.iter().zip(&again.slots) {
            assert!(before == after || *after == gone);
        }
        let count = again.slots.iter().filter(|slot| **slot == gone).count();
        assert!((85..=86).contains(&count), "{count}");
    }

    #[test]
    fn another_family_is_refused() {
        let mut service = service(&[1]);
        service.backends[0].address = "[fd00::1]:80".parse().unwrap();
        assert!(Entry::compile(&service, None).unwrap_err().contains("[fd00::1]:80"));
    }
}
