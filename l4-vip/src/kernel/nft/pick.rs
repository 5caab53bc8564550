//! How a frontend picks: from how many slots, and whether by chance or by what its client had last.
//!
//! Frontends that pick the same way share a chain, because the number that a rule draws from is part of the rule. What
//! is in the slots is not known here.

use std::time::Duration;

use super::family::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pick {
    /// There is no backend that takes new connections.
    Refuse,
    /// Any of this many slots.
    Random(u16),
    /// Session affinity: the slot that the client had last, or any of this many when it has none any more.
    ByClient(u16, Lifetime),
}

/// How long a client without a new connection is remembered: seconds below 2¹⁴, then whole minutes, 11 days at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lifetime(u16);

impl Lifetime {
    const IN_MINUTES: u16 = 1 << 14;

    /// Rounded up.
    pub(super) fn of(time: Duration) -> Self {
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        match u16::try_from(seconds) {
            Ok(seconds) if seconds < Self::IN_MINUTES => Self(seconds.max(1)),
            _ => Self((seconds.div_ceil(60).min(u64::from(Self::IN_MINUTES) - 1)) as u16 | Self::IN_MINUTES),
        }
    }

    pub(super) fn duration(self) -> Duration {
        let number = u64::from(self.0 & !Self::IN_MINUTES);
        Duration::from_secs(if self.0 & Self::IN_MINUTES == 0 { number } else { 60 * number })
    }
}

impl Pick {
    pub(super) fn n_slots(self) -> u16 {
        match self {
            Self::Refuse => 0,
            Self::Random(n_slots) | Self::ByClient(n_slots, _) => n_slots,
        }
    }

    /// The name of the chain that does it.
    pub(super) fn chain(self, family: Family) -> String {
        let digit = family.digit();
        match self {
            Self::Refuse => format!("refuse{digit}"),
            Self::Random(n_slots) => format!("pick{digit}_of_{n_slots}"),
            Self::ByClient(n_slots, lifetime) => {
                format!("pick{digit}_by_client_of_{n_slots}_for_{}s", lifetime.duration().as_secs())
            }
        }
    }

    /// The number of slots; with session affinity a bit for that, and the lifetime.
    fn number(self) -> u32 {
        match self {
            Self::Refuse => 0,
            Self::Random(n_slots) => n_slots.into(),
            Self::ByClient(n_slots, Lifetime(lifetime)) => {
                BY_CLIENT | u32::from(lifetime) << LIFETIME_SHIFT | u32::from(n_slots)
            }
        }
    }

    /// As a key: a mark, in the byte order of this machine.
    pub(super) fn key(self) -> [u8; 4] {
        self.number().to_ne_bytes()
    }

    /// As the value of a frontend, behind a word that is not used.
    pub(super) fn value(self) -> Vec<u8> {
        [[0; 4], self.key()].concat()
    }

    pub(super) fn from_key(key: &[u8]) -> Option<Self> {
        let number = u32::from_ne_bytes(key.try_into().ok()?);
        let (n_slots, rest) = (number as u16, number >> LIFETIME_SHIFT);
        match (number & BY_CLIENT, n_slots, rest) {
            (0, 0, 0) => Some(Self::Refuse),
            (0, n_slots, 0) => Some(Self::Random(n_slots)),
            (BY_CLIENT, n_slots, rest) => Some(Self::ByClient(n_slots, Lifetime(rest as u16 & 0x7fff))),
            _ => None,
        }
    }

    pub(super) fn from_value(value: &[u8]) -> Option<Self> {
        Self::from_key(value.get(4..)?)
    }
}

const BY_CLIENT: u32 = 1 << 31;
const LIFETIME_SHIFT: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_survives_the_kernel() {
        for (pick, name) in [
            (Pick::Refuse, "refuse4"),
            (Pick::Random(3), "pick4_of_3"),
            (Pick::Random(65_535), "pick4_of_65535"),
            (Pick::ByClient(256, Lifetime::of(Duration::from_secs(60))), "pick4_by_client_of_256_for_60s"),
            (Pick::ByClient(512, Lifetime::of(Duration::from_hours(5))), "pick4_by_client_of_512_for_18000s"),
        ] {
            assert_eq!(pick.chain(Family::V4), name);
            assert_eq!(Pick::from_key(&pick.key()), Some(pick), "{name}");
            assert_eq!(Pick::from_value(&pick.value()), Some(pick), "{name}");
        }
        for (asked, kept) in [(0, 1), (16_383, 16_383), (16_384, 16_440), (u64::MAX / 2, 16_383 * 60)] {
            assert_eq!(Lifetime::of(Duration::from_secs(asked)).duration().as_secs(), kept);
        }
        for wrong in [&[0; 3][..], &0x0001_0001_u32.to_ne_bytes(), &[]] {
            assert_eq!(Pick::from_key(wrong), None, "{wrong:?}");
        }
    }
}
