//! Weights as slots: Walker's alias method, in Vose's form, with whole numbers.
//!
//! As many slots as backends, each with at most two of them, give every backend exactly its share of equally likely
//! draws, up to one part in 2³².

use super::layout::SlotValue;

/// The slots for `(number, weight)` pairs; those of weight 0 get none.
pub fn slots(backends: &[(u32, u16)]) -> Vec<SlotValue> {
    let usable: Vec<(u32, u64)> = backends
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(id, weight)| (*id, u64::from(*weight)))
        .collect();
    let n = usable.len() as u64;
    let total: u64 = usable.iter().map(|(_, weight)| weight).sum();
    // A slot holds `total` parts; a backend brings `n` parts for each unit of weight, so all slots come out full.
    let mut parts: Vec<u64> = usable.iter().map(|(_, weight)| weight * n).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..usable.len()).partition(|i| parts[*i] < total);
    let mut slots: Vec<SlotValue> =
        usable.iter().map(|(id, _)| SlotValue { first: *id, second: *id, threshold: u32::MAX }).collect();
    while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
        slots[poor].second = usable[rich].0;
        let share = u128::from(parts[poor]) << 32;
        // A slot whose first backend has no part at all cannot be: every usable weight is at least 1.
        slots[poor].threshold = (share / u128::from(total)).saturating_sub(1) as u32;
        parts[rich] -= total - parts[poor];
        if parts[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exact share of each backend, out of all slots and random words.
    fn shares(slots: &[SlotValue]) -> std::collections::BTreeMap<u32, f64> {
        let mut shares = std::collections::BTreeMap::new();
        for slot in slots {
            let first = (f64::from(slot.threshold) + 1.0) / 2_f64.powi(32);
            *shares.entry(slot.first).or_default() += first / slots.len() as f64;
            *shares.entry(slot.second).or_default() += (1.0 - first) / slots.len() as f64;
        }
        shares
    }

    #[test]
    fn every_backend_has_its_share() {
        for weights in
            [&[1_u16][..], &[1, 1, 1], &[1, 2, 3], &[1, 65_535], &[5, 0, 5], &[7, 1, 1, 1, 30], &[0, 3]]
        {
            let backends: Vec<(u32, u16)> = (1..).zip(weights.iter().copied()).collect();
            let slots = slots(&backends);
            assert_eq!(slots.len(), weights.iter().filter(|w| **w > 0).count());
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            let shares = shares(&slots);
            for (id, weight) in backends {
                let share = shares.get(&id).copied().unwrap_or(0.0);
                assert!((share - f64::from(weight) / total).abs() < 1e-8, "{weights:?}: {id} has {share}");
            }
        }
    }

    #[test]
    fn nobody_is_nothing() {
        assert_eq!(slots(&[]), []);
        assert_eq!(slots(&[(1, 0), (2, 0)]), []);
    }
}
