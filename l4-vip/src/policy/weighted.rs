//! Weights as a schedule: the order in which endpoints take turns, made once per pool.
//!
//! A pick is then one step of a shared cursor, without a lock and exact over all workers.

/// Turns in a schedule. Larger sums of weights are scaled down to it; nobody with a weight loses all turns.
const MAX_TURNS: u64 = 16_384;

/// The positions of `weights`, each as often as its weight says (weights over their greatest common divisor), turns of
/// the same position as far apart as possible: the k-th of `w` turns belongs at `(k + ½) / w` of the round. `None`
/// when all weights are equal, because then a plain round does. Weights are at least 1.
pub(crate) fn schedule(weights: &[u16]) -> Option<Box<[u32]>> {
    let first = weights.first()?;
    if weights.iter().all(|weight| weight == first) {
        return None;
    }
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u64::from(*weight)));
    let total: u64 = weights.iter().map(|weight| u64::from(*weight) / divisor).sum();
    let n_turns = |weight: u16| {
        let share = u64::from(weight) / divisor;
        if total <= MAX_TURNS { share } else { (share * MAX_TURNS / total).max(1) }
    };
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (position, weight) in (0_u32..).zip(weights) {
        let n = n_turns(*weight);
        // In parts of 2³²: exact enough to order at most a few thousand turns.
        turns.extend((0..n).map(|k| (((2 * k + 1) << 32) / (2 * n), position)));
    }
    turns.sort_unstable();
    Some(turns.into_iter().map(|(_, position)| position).collect())
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_weights_need_no_schedule() {
        assert_eq!(schedule(&[]), None);
        assert_eq!(schedule(&[7]), None);
        assert_eq!(schedule(&[3, 3, 3]), None);
    }

    #[test]
    fn turns_are_spread() {
        for (weights, expect) in [
            (&[1, 2][..], &[1, 0, 1][..]),
            (&[100, 200], &[1, 0, 1]),
            (&[5, 1, 1], &[0, 0, 0, 1, 2, 0, 0]),
            (&[1, 3], &[1, 0, 1, 1]),
        ] {
            assert_eq!(schedule(weights).as_deref(), Some(expect), "{weights:?}");
        }
    }

    #[test]
    fn huge_weights_are_scaled_and_small_ones_keep_a_turn() {
        let mut weights = vec![256; 1000];
        weights[7] = 1;
        let schedule = schedule(&weights).unwrap();
        assert!(schedule.len() <= MAX_TURNS as usize + weights.len());
        assert_eq!(schedule.iter().filter(|p| **p == 7).count(), 1);
    }

    proptest! {
        /// In any stretch of a round nobody is more than about one turn ahead of or behind its share, and a whole
        /// round is exact.
        #[test]
        fn every_stretch_is_near_its_share(weights in proptest::collection::vec(1_u16..=20, 2..12)) {
            let Some(schedule) = schedule(&weights) else { return Ok(()) };
            let total = schedule.len() as f64;
            let sum: u32 = weights.iter().map(|w| u32::from(*w)).sum();
            for (position, weight) in (0_u32..).zip(&weights) {
                let share = f64::from(*weight) / f64::from(sum);
                let mut n = 0.0;
                for (at, turn) in schedule.iter().enumerate() {
                    n += f64::from(u8::from(*turn == position));
                    let due = share * (at + 1) as f64;
                    prop_assert!((n - due).abs() <= weights.len() as f64 / 2.0 + 1.0, "{n} of {due} after {at}");
                }
                prop_assert!((n - share * total).abs() < 1e-9);
            }
        }
    }
}
