//! IPv4 and IPv6: where their packets hold what, and the names of the sets that there are one of for each.
//!
//! It writes no message.

use std::net::IpAddr;

use super::expression::{Expression, Header, Register, Tracked};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

/// What the table remembers of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetKind {
    /// Frontend → how it picks.
    Services,
    /// How a frontend picks → the chain that does it.
    Picks,
    /// Slot and frontend → backend.
    Slots,
    /// Frontend and client → slot, with session affinity.
    Sessions,
    /// Frontends, counting what asked for a connection.
    Connections,
    /// Frontends, counting what was refused for want of a backend.
    Refusals,
    /// Clients that came from other network namespaces or hosts, twice each.
    Clients,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// NFPROTO_…, which nftables also uses where it says family.
    pub(super) fn number(self) -> libc::c_int {
        match self {
            Self::V4 => libc::NFPROTO_IPV4,
            Self::V6 => libc::NFPROTO_IPV6,
        }
    }

    /// The last character of the names of what belongs to it.
    pub(super) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(super) fn address_bytes(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The register behind an address that begins in `register`.
    pub(super) fn after_address(self, register: Register) -> Register {
        Register(register.0 + self.address_bytes() / 4)
    }

    /// RFC 791 section 3.1, RFC 8200 section 3.
    pub(super) fn source(self, to: Register) -> Expression<'static> {
        let offset = match self {
            Self::V4 => 12,
            Self::V6 => 8,
        };
        Expression::Packet { header: Header::Network, offset, bytes: self.address_bytes(), to }
    }

    pub(super) fn destination(self, to: Register) -> Expression<'static> {
        let offset = match self {
            Self::V4 => 16,
            Self::V6 => 24,
        };
        Expression::Packet { header: Header::Network, offset, bytes: self.address_bytes(), to }
    }

    pub(super) fn original_destination(self, to: Register) -> Expression<'static> {
        let what = match self {
            Self::V4 => Tracked::AddressV4,
            Self::V6 => Tracked::AddressV6,
        };
        Expression::Tracked { what, to }
    }

    pub(super) fn set(self, kind: SetKind) -> &'static str {
        match (kind, self) {
            (SetKind::Services, Self::V4) => "services4",
            (SetKind::Services, Self::V6) => "services6",
            (SetKind::Picks, Self::V4) => "picks4",
            (SetKind::Picks, Self::V6) => "picks6",
            (SetKind::Slots, Self::V4) => "slots4",
            (SetKind::Slots, Self::V6) => "slots6",
            (SetKind::Sessions, Self::V4) => "sessions4",
            (SetKind::Sessions, Self::V6) => "sessions6",
            (SetKind::Connections, Self::V4) => "connections4",
            (SetKind::Connections, Self::V6) => "connections6",
            (SetKind::Refusals, Self::V4) => "refusals4",
            (SetKind::Refusals, Self::V6) => "refusals6",
            (SetKind::Clients, Self::V4) => "clients4",
            (SetKind::Clients, Self::V6) => "clients6",
        }
    }
}
