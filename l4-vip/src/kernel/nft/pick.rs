//! How a frontend picks: from how many slots, and whether by chance or by the client's address.
//!
//! Frontends that pick the same way share a chain, because the number that a rule draws from is part of the rule. What
//! is in the slots is not known here.

use super::family::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pick {
    /// There is no backend that takes new connections.
    Refuse,
    /// Any of this many slots.
    Random(u16),
    /// Session affinity: of this many slots always the same for the same client.
    ByClient(u16),
}

impl Pick {
    pub(super) fn n_slots(self) -> u16 {
        match self {
            Self::Refuse => 0,
            Self::Random(n_slots) | Self::ByClient(n_slots) => n_slots,
        }
    }

    /// The name of the chain that does it.
    pub(super) fn chain(self, family: Family) -> String {
        let digit = family.digit();
        match self {
            Self::Refuse => format!("refuse{digit}"),
            Self::Random(n_slots) => format!("pick{digit}_of_{n_slots}"),
            Self::ByClient(n_slots) => format!("pick{digit}_by_client_of_{n_slots}"),
        }
    }

    /// The number of slots, and a bit for session affinity.
    fn number(self) -> u32 {
        match self {
            Self::Refuse => 0,
            Self::Random(n_slots) => n_slots.into(),
            Self::ByClient(n_slots) => BY_CLIENT | u32::from(n_slots),
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
        match (number & BY_CLIENT, u16::try_from(number & !BY_CLIENT).ok()?) {
            (0, 0) => Some(Self::Refuse),
            (0, n_slots) => Some(Self::Random(n_slots)),
            (_, n_slots) => Some(Self::ByClient(n_slots)),
        }
    }

    pub(super) fn from_value(value: &[u8]) -> Option<Self> {
        Self::from_key(value.get(4..)?)
    }
}

const BY_CLIENT: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_survives_the_kernel() {
        for (pick, name) in [
            (Pick::Refuse, "refuse4"),
            (Pick::Random(3), "pick4_of_3"),
            (Pick::Random(65_535), "pick4_of_65535"),
            (Pick::ByClient(256), "pick4_by_client_of_256"),
        ] {
            assert_eq!(pick.chain(Family::V4), name);
            assert_eq!(Pick::from_key(&pick.key()), Some(pick), "{name}");
            assert_eq!(Pick::from_value(&pick.value()), Some(pick), "{name}");
        }
        for wrong in [&[0; 3][..], &[0xff; 4], &[]] {
            assert_eq!(Pick::from_key(wrong), None, "{wrong:?}");
        }
    }
}
