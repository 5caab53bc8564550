//! The expressions that our rules are made of, and their coding (linux/netfilter/nf_tables.h).
//!
//! An expression works on 16 registers of 4 bytes. The keys of sets are several values in registers one behind the
//! other, so a rule loads what it looks up to the right places. It holds no rule.

use std::time::Duration;

use crate::netlink::Writer;

/// One of the 16 registers of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(pub(super) u32);

impl Register {
    fn number(self) -> u32 {
        libc::NFT_REG32_00 as u32 + self.0
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Header {
    Network,
    Transport,
}

/// What becomes of the lifetime of an element that is there already.
#[derive(Clone, Copy, Debug)]
pub(super) enum Again {
    Stays,
    Begins,
}

/// What connection tracking knows of a packet: whither its connection was addressed before any translation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tracked {
    AddressV4,
    AddressV6,
    Port,
}

#[derive(Clone, Debug)]
pub(super) enum Expression<'a> {
    /// `key`: NFT_META_….
    Meta {
        key: libc::c_int,
        to: Register,
    },
    Packet {
        header: Header,
        offset: u32,
        bytes: u32,
        to: Register,
    },
    Tracked {
        what: Tracked,
        to: Register,
    },
    /// Keeps the bits of a register that `mask` has.
    Mask {
        register: Register,
        mask: &'a [u8],
    },
    Equal {
        register: Register,
        value: &'a [u8],
    },
    Differs {
        register: Register,
        value: &'a [u8],
    },
    Constant {
        value: &'a [u8],
        to: Register,
    },
    /// Goes on only if the set has this key; counts it if the set counts.
    Find {
        set: &'a str,
        key: Register,
    },
    /// Goes on only if the map has this key, with its value.
    Map {
        map: &'a str,
        key: Register,
        to: Register,
    },
    /// Goes on in the chain that the map names.
    Dispatch {
        map: &'a str,
        key: Register,
    },
    Random {
        below: u32,
        to: Register,
    },
    /// Puts an element in, or gives it its whole lifetime again. Goes on only if there is room.
    Remember {
        set: &'a str,
        key: Register,
        lifetime: Duration,
    },
    /// The same for a map. What is there already keeps its value.
    RememberValue {
        map: &'a str,
        key: Register,
        value: Register,
        lifetime: Duration,
        again: Again,
    },
    /// A number that is always the same for the same value.
    Hash {
        of: Register,
        bytes: u32,
        below: u32,
        to: Register,
    },
    /// Gives the connection the timeouts of an object of the table.
    Timeouts {
        object: &'a str,
    },
    Dnat {
        family: libc::c_int,
        address: Register,
        port: Register,
    },
    Masquerade,
    /// Answers with a TCP RST.
    Reset,
    Jump {
        chain: &'a str,
    },
    Goto {
        chain: &'a str,
    },
    Return,
}

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
pub(super) const OBJECT_CT_TIMEOUT: u32 = 7;
const HASH_JENKINS: u32 = 0;
/// Any number will do, as long as it stays: with none the kernel takes a new one for each rule.
const HASH_SEED: u32 = 1;
/// IP_CT_DIR_ORIGINAL
const FROM_CLIENT: u8 = 0;
/// NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED.
const NAT_ADDRESS_AND_PORT: u32 = 3;

impl Expression<'_> {
    /// Writes it as an element of a rule's list.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.nest(LIST_ELEM, |w| write_named(w, self.name(), |w| self.write_data(w)));
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Packet { .. } => "payload",
            Self::Tracked { .. } => "ct",
            Self::Mask { .. } => "bitwise",
            Self::Equal { .. } | Self::Differs { .. } => "cmp",
            Self::Find { .. } | Self::Map { .. } | Self::Dispatch { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Remember { .. } | Self::RememberValue { .. } => "dynset",
            Self::Timeouts { .. } => "objref",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reset => "reject",
            Self::Constant { .. } | Self::Jump { .. } | Self::Goto { .. } | Self::Return => "immediate",
        }
    }

    /// The attributes are numbered in the order of the expression's own enumeration, NFTA_META_… and so on.
    fn write_data(&self, w: &mut Writer) {
        match *self {
            Self::Meta { key, to } => {
                w.be32(1, to.number());
                w.be32(2, key as u32);
            }
            Self::Packet { header, offset, bytes, to } => {
                let base = match header {
                    Header::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
                    Header::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
                };
                w.be32(1, to.number());
                w.be32(2, base as u32);
                w.be32(3, offset);
                w.be32(4, bytes);
            }
            Self::Tracked { what, to } => {
                let key = match what {
                    Tracked::AddressV4 => libc::NFT_CT_DST_IP,
                    Tracked::AddressV6 => libc::NFT_CT_DST_IP6,
                    Tracked::Port => libc::NFT_CT_PROTO_DST,
                };
                w.be32(1, to.number());
                w.be32(2, key as u32);
                w.attribute(3, &[FROM_CLIENT]);
            }
            Self::Mask { register, mask } => {
                w.be32(1, register.number());
                w.be32(2, register.number());
                w.be32(3, mask.len() as u32);
                w.nest(4, |w| w.attribute(DATA_VALUE, mask));
                w.nest(5, |w| w.attribute(DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Equal { register, value } => compare(w, register, libc::NFT_CMP_EQ, value),
            Self::Differs { register, value } => compare(w, register, libc::NFT_CMP_NEQ, value),
            Self::Find { set, key } => {
                w.string(1, set);
                w.be32(2, key.number());
            }
            Self::Map { map, key, to } => {
                w.string(1, map);
                w.be32(2, key.number());
                w.be32(3, to.number());
            }
            Self::Dispatch { map, key } => {
                w.string(1, map);
                w.be32(2, key.number());
                w.be32(3, libc::NFT_REG_VERDICT as u32);
            }
            Self::Random { below, to } => {
                w.be32(1, to.number());
                w.be32(2, below);
                w.be32(3, libc::NFT_NG_RANDOM as u32);
            }
            Self::Hash { of, bytes, below, to } => {
                w.be32(1, of.number());
                w.be32(2, to.number());
                w.be32(3, bytes);
                w.be32(4, below);
                w.be32(5, HASH_SEED);
                w.be32(7, HASH_JENKINS);
            }
            Self::Remember { set, key, lifetime } => {
                w.string(1, set);
                w.be32(3, libc::NFT_DYNSET_OP_UPDATE as u32);
                w.be32(4, key.number());
                w.attribute(6, &(lifetime.as_millis() as u64).to_be_bytes());
            }
            Self::RememberValue { map, key, value, lifetime, again } => {
                let operation = match again {
                    Again::Stays => libc::NFT_DYNSET_OP_ADD,
                    Again::Begins => libc::NFT_DYNSET_OP_UPDATE,
                };
                w.string(1, map);
                w.be32(3, operation as u32);
                w.be32(4, key.number());
                w.be32(5, value.number());
                w.attribute(6, &(lifetime.as_millis() as u64).to_be_bytes());
            }
            Self::Timeouts { object } => {
                w.be32(1, OBJECT_CT_TIMEOUT);
                w.string(2, object);
            }
            Self::Dnat { family, address, port } => {
                w.be32(1, libc::NFT_NAT_DNAT as u32);
                w.be32(2, family as u32);
                w.be32(3, address.number());
                w.be32(4, address.number());
                w.be32(5, port.number());
                w.be32(6, port.number());
                w.be32(7, NAT_ADDRESS_AND_PORT);
            }
            Self::Masquerade => {}
            Self::Reset => {
                w.be32(1, libc::NFT_REJECT_TCP_RST as u32);
                w.attribute(2, &[0]);
            }
            Self::Constant { value, to } => {
                w.be32(1, to.number());
                w.nest(2, |w| w.attribute(DATA_VALUE, value));
            }
            Self::Jump { chain } => immediate(w, libc::NFT_JUMP, Some(chain)),
            Self::Goto { chain } => immediate(w, libc::NFT_GOTO, Some(chain)),
            Self::Return => immediate(w, libc::NFT_RETURN, None),
        }
    }
}

/// An expression as a set's own, which every new element gets a copy of.
pub(super) fn write_counter(writer: &mut Writer, attribute: u16) {
    writer.nest(attribute, |w| write_named(w, "counter", |_| {}));
}

/// To go on in a chain, as the value of a map's element.
pub(super) fn write_goto(writer: &mut Writer, chain: &str) {
    verdict(writer, libc::NFT_GOTO, Some(chain));
}

fn write_named(writer: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    writer.string(EXPR_NAME, name);
    writer.nest(EXPR_DATA, data);
}

fn compare(writer: &mut Writer, register: Register, operator: libc::c_int, value: &[u8]) {
    writer.be32(1, register.number());
    writer.be32(2, operator as u32);
    writer.nest(3, |w| w.attribute(DATA_VALUE, value));
}

fn immediate(writer: &mut Writer, code: libc::c_int, chain: Option<&str>) {
    writer.be32(1, libc::NFT_REG_VERDICT as u32);
    writer.nest(2, |w| verdict(w, code, chain));
}

fn verdict(writer: &mut Writer, code: libc::c_int, chain: Option<&str>) {
    writer.nest(DATA_VERDICT, |w| {
        w.be32(VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            w.string(VERDICT_CHAIN, chain);
        }
    });
}
