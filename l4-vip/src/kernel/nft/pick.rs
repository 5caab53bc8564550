//! How a frontend picks: from how many slots, and for how long a client stays with its backend.
//!
//! Frontends that pick the same way share a chain, because the number that a rule draws from is part of the rule. What
//! is in the slots is not known here.

use std::time::Duration;

use super::family::Family;

/// Session affinity is kept in whole seconds, in 16 bits.
pub(super) const LONGEST_AFFINITY: Duration = Duration::from_secs(u16::MAX as u64);

/// The lower 16 bits are the number of slots, the upper ones the seconds of session affinity; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pick(u32);

impl Pick {
    /// No slot: there is no backend that takes new connections.
    pub(super) const REFUSE: Self = Self(0);

    /// Session affinity is rounded up to a second, and cut at `LONGEST_AFFINITY`.
    pub(super) fn new(n_slots: u16, affinity: Option<Duration>) -> Self {
        let secs = affinity.map_or(0, |affinity| {
            let affinity = affinity.min(LONGEST_AFFINITY);
            (affinity.as_secs() + u64::from(affinity.subsec_nanos() > 0)) as u32
        });
        if n_slots == 0 { Self::REFUSE } else { Self(secs << 16 | u32::from(n_slots)) }
    }

    pub(super) fn n_slots(self) -> u32 {
        self.0 & 0xffff
    }

    pub(super) fn affinity(self) -> Option<Duration> {
        let secs = self.0 >> 16;
        (secs > 0).then(|| Duration::from_secs(secs.into()))
    }

    /// As sets hold it: a mark, in the byte order of this machine.
    pub(super) fn key(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    pub(super) fn from_key(key: &[u8]) -> Option<Self> {
        Some(Self(u32::from_ne_bytes(key.try_into().ok()?)))
    }

    pub(super) fn chain(self, family: Family) -> String {
        let (digit, n_slots) = (family.digit(), self.n_slots());
        match self.affinity() {
            None => format!("pick{digit}_of_{n_slots}"),
            Some(affinity) => format!("pick{digit}_of_{n_slots}_for_{}s", affinity.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_survives_the_kernel() {
        for (n_slots, affinity, chain, kept) in [
            (3, None, "pick4_of_3", None),
            (65_535, None, "pick4_of_65535", None),
            (2, Some(600_000), "pick4_of_2_for_600s", Some(600)),
            (2, Some(1), "pick4_of_2_for_1s", Some(1)),
            (2, Some(1_500), "pick4_of_2_for_2s", Some(2)),
            (1, Some(u64::MAX), "pick4_of_1_for_65535s", Some(65_535)),
        ] {
            let pick = Pick::new(n_slots, affinity.map(Duration::from_millis));
            assert_eq!(pick.chain(Family::V4), chain);
            assert_eq!(pick.n_slots(), u32::from(n_slots));
            assert_eq!(pick.affinity(), kept.map(Duration::from_secs), "{chain}");
            assert_eq!(Pick::from_key(&pick.key()), Some(pick), "{chain}");
        }
        assert_eq!(Pick::new(0, Some(Duration::from_secs(9))), Pick::REFUSE);
    }
}
