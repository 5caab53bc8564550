//! The rules that count the bytes of every packet of a translated connection: one look-up for each, in a set of
//! frontends and backends.
//!
//! They decide nothing about a packet, and whose elements there are is not known here.

use super::batch::Batch;
use super::expression::{Expression as E, FROM_CLIENT, Header, Register as R, TO_CLIENT, Tracked};
use super::family::{Family, SetKind};
use super::ruleset::{LOOPBACK, NOBODY, base_chain, chain, is_family, protocol};

/// IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const TRANSLATED: [u8; 4] = (1_u32 << 5).to_ne_bytes();
const WEIGH: &str = "weigh";

/// Every packet of a translated connection is counted once: what leaves by any link as it leaves, what came by a link
/// for this host itself as it arrives. What this host sends to itself passes both. At this priority both ends of the
/// packet are the client's and the backend's: destinations are translated before, sources after it.
pub(super) fn hook(batch: &mut Batch) {
    base_chain(batch, "input", "filter", libc::NF_INET_LOCAL_IN, libc::NF_IP_PRI_FILTER);
    base_chain(batch, "leave", "filter", libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_FILTER);
    for family in Family::ALL {
        batch.chain(&chain(WEIGH, family));
        by_backend(batch, family);
    }
    let is_own = [
        E::Meta { key: libc::NFT_META_IIFTYPE, to: R(0) },
        E::Equal { register: R(0), value: &LOOPBACK },
        E::Return,
    ];
    batch.rule("input", &is_own);
    for name in ["input", "leave"] {
        let is_untranslated = [
            E::Tracked { what: Tracked::Status, to: R(0) },
            E::Mask { register: R(0), mask: &TRANSLATED },
            E::Differs { register: R(0), value: &TRANSLATED },
            E::Return,
        ];
        batch.rule(name, &is_untranslated);
        for family in Family::ALL {
            let [load, equal] = is_family(family);
            batch.rule(name, &[load, equal, E::Goto { chain: &chain(WEIGH, family) }]);
        }
    }
}

/// For its backend, or with those that the frontend has no more. What connection tracking is asked for costs several
/// times as much as what stands in the packet.
fn by_backend(batch: &mut Batch, family: Family) {
    let name = chain(WEIGH, family);
    let frontend_port = R(family.after_address(R(0)).0 + 1);
    let backend = R(frontend_port.0 + 1);
    let backend_port = family.after_address(backend);
    let zero = [0; 16];
    let departed = [
        E::Differs { register: backend_port, value: &NOBODY },
        E::Constant { value: &zero[..family.address_bytes() as usize], to: backend },
        E::Constant { value: &zero[..2], to: backend_port },
    ];
    for stand_in in [&[][..], &departed] {
        for (direction, kind, address, offset) in [
            (&FROM_CLIENT, SetKind::BytesIn, family.destination(backend), 2),
            (&TO_CLIENT, SetKind::BytesOut, family.source(backend), 0),
        ] {
            let key = [
                E::Tracked { what: Tracked::Direction, to: R(0) },
                E::Equal { register: R(0), value: direction },
                family.original_destination(R(0)),
                protocol(family.after_address(R(0))),
                E::Tracked { what: Tracked::FrontendPort, to: frontend_port },
                address,
                E::Packet { header: Header::Transport, offset, bytes: 2, to: backend_port },
            ];
            let count = [E::Find { set: family.set(kind), key: R(0) }, E::Return];
            batch.rule(&name, &[&key[..], stand_in, &count].concat());
        }
    }
}
