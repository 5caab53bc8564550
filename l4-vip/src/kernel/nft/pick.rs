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

    pub(super) fn from_chain(family: Family, name: &str) -> Option<Self> {
        let digit = family.digit();
        if name == Self::Refuse.chain(family) {
            return Some(Self::Refuse);
        }
        let name = name.strip_prefix("pick")?.strip_prefix(digit)?;
        let pick = match name.strip_prefix("_by_client_of_") {
            Some(n_slots) => Self::ByClient(n_slots.parse().ok()?),
            None => Self::Random(name.strip_prefix("_of_")?.parse().ok()?),
        };
        Some(pick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_survives_as_a_name() {
        for (pick, name) in [
            (Pick::Refuse, "refuse4"),
            (Pick::Random(3), "pick4_of_3"),
            (Pick::Random(65_535), "pick4_of_65535"),
            (Pick::ByClient(256), "pick4_by_client_of_256"),
        ] {
            assert_eq!(pick.chain(Family::V4), name);
            assert_eq!(Pick::from_chain(Family::V4, name), Some(pick));
            assert_eq!(Pick::from_chain(Family::V6, name), None, "{name}");
        }
        for name in ["prerouting", "pick4_of_", "pick4_of_x", "pick4_by_client_of_70000"] {
            assert_eq!(Pick::from_chain(Family::V4, name), None, "{name}");
        }
    }
}
