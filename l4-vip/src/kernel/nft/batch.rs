//! One transaction of the table `waymark`: what it makes, adds and removes, taken by the kernel whole or not at all.
//!
//! It does not know what the rules mean.

use std::fmt;
use std::io;

use super::expression::{Expression, write_goto};
use crate::netlink::Writer;
use crate::netlink::{Socket, netfilter_header};

pub(super) const TABLE: &str = "waymark";

/// One message's list of elements is an attribute, whose length has 16 bits; the rest is for the message itself.
const LIST_BYTES: usize = 60_000;

pub(super) const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USERDATA: u16 = 6;
pub(super) const CHAIN_NAME: u16 = 3;
const ELEMENTS: u16 = 3;
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;

const ADD_RULE: &str = "add a rule";

/// The value of an element: none in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Bytes(Vec<u8>),
    /// Go on in this chain.
    Goto(String),
}

/// Why a transaction was not taken.
#[derive(Debug)]
pub(super) struct Rejected {
    /// The first message that the kernel did not take.
    what: Option<What>,
    pub(super) source: io::Error,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Some(what) => write!(f, "{} of the nft table {TABLE}", what.0),
            None => write!(f, "change the nft table {TABLE}"),
        }
    }
}

/// What a message does, for errors.
#[derive(Clone, Copy, Debug)]
struct What(&'static str);

#[derive(Debug)]
pub(super) struct Batch {
    writer: Writer,
    /// Of each message, beginning with the second; their sequence numbers count from 1.
    messages: Vec<What>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut writer = Writer::default();
        boundary(&mut writer, libc::NFNL_MSG_BATCH_BEGIN, 0);
        Self { writer, messages: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The table itself. `label` is shown by `nft list`.
    pub(super) fn table(&mut self, flags: u32, label: &str) {
        self.message("create the table", libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |w| {
            w.string(TABLE_NAME, TABLE);
            w.be32(TABLE_FLAGS, flags);
            w.attribute(TABLE_USERDATA, &comment(label));
        });
    }

    pub(super) fn delete_table(&mut self) {
        self.message("remove the table", libc::NFT_MSG_DELTABLE, 0, |w| w.string(TABLE_NAME, TABLE));
    }

    /// `attributes`: whatever the message holds beside the table's name.
    pub(super) fn create(
        &mut self,
        what: &'static str,
        message: libc::c_int,
        attributes: impl FnOnce(&mut Writer),
    ) {
        self.message(what, message, libc::NLM_F_CREATE, |w| {
            w.string(TABLE_NAME, TABLE);
            attributes(w);
        });
    }

    pub(super) fn chain(&mut self, name: &str) {
        self.create("create a chain", libc::NFT_MSG_NEWCHAIN, |w| w.string(CHAIN_NAME, name));
    }

    /// Removes every rule of a chain.
    pub(super) fn clear_chain(&mut self, name: &str) {
        self.message("clear a chain", libc::NFT_MSG_DELRULE, 0, |w| {
            w.string(TABLE_NAME, TABLE);
            w.string(2, name);
        });
    }

    pub(super) fn delete_chain(&mut self, name: &str) {
        self.clear_chain(name);
        self.message("remove a chain", libc::NFT_MSG_DELCHAIN, 0, |w| {
            w.string(TABLE_NAME, TABLE);
            w.string(CHAIN_NAME, name);
        });
    }

    /// Appends a rule.
    pub(super) fn rule(&mut self, chain: &str, expressions: &[Expression<'_>]) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.message(ADD_RULE, libc::NFT_MSG_NEWRULE, flags, |w| {
            w.string(1, TABLE);
            w.string(2, chain);
            w.nest(4, |w| expressions.iter().for_each(|expression| expression.write(w)));
        });
    }

    pub(super) fn add_elements(&mut self, set: &str, elements: &[(&[u8], &Value)]) {
        self.elements("add elements to a set", libc::NFT_MSG_NEWSETELEM, set, elements, |w, (key, value)| {
            write_key(w, key);
            match value {
                Value::None => {}
                Value::Bytes(bytes) => w.nest(ELEMENT_DATA, |w| w.attribute(DATA_VALUE, bytes)),
                Value::Goto(chain) => w.nest(ELEMENT_DATA, |w| write_goto(w, chain)),
            }
        });
    }

    pub(super) fn delete_elements(&mut self, set: &str, keys: &[&[u8]]) {
        self.elements("remove elements of a set", libc::NFT_MSG_DELSETELEM, set, keys, |w, key| {
            write_key(w, key);
        });
    }

    pub(super) fn n_rules(&self) -> usize {
        self.messages.iter().filter(|what| what.0 == ADD_RULE).count()
    }

    /// Everything that has been put in, as bytes: equal for equal content.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    pub(super) fn commit(mut self, socket: &mut Socket) -> Result<(), Rejected> {
        self.writer.ask_for_acknowledgement();
        boundary(&mut self.writer, libc::NFNL_MSG_BATCH_END, self.messages.len() as u32 + 1);
        socket.transact(self.writer.bytes()).map_err(|(sequence, source)| {
            let index = sequence.and_then(|sequence| (sequence as usize).checked_sub(1));
            Rejected { what: index.and_then(|index| self.messages.get(index)).copied(), source }
        })
    }

    fn elements<E>(
        &mut self,
        what: &'static str,
        message: libc::c_int,
        set: &str,
        mut elements: &[E],
        write: impl Fn(&mut Writer, &E),
    ) {
        while !elements.is_empty() {
            let mut n_written = 0;
            self.message(what, message, libc::NLM_F_CREATE, |w| {
                w.string(1, TABLE);
                w.string(2, set);
                w.nest(ELEMENTS, |w| {
                    let start = w.bytes().len();
                    for element in elements {
                        if w.bytes().len() - start > LIST_BYTES {
                            break;
                        }
                        w.nest(LIST_ELEM, |w| write(w, element));
                        n_written += 1;
                    }
                });
            });
            elements = &elements[n_written..];
        }
    }

    fn message(
        &mut self,
        what: &'static str,
        message: libc::c_int,
        flags: libc::c_int,
        attributes: impl FnOnce(&mut Writer),
    ) {
        self.messages.push(What(what));
        self.writer.message(
            kind(message),
            flags as u16,
            self.messages.len() as u32,
            &netfilter_header(libc::NFPROTO_INET),
            attributes,
        );
    }
}

/// The type of a message of nftables.
pub(super) fn kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16
}

pub(super) fn write_key(writer: &mut Writer, key: &[u8]) {
    writer.nest(ELEMENT_KEY, |w| w.attribute(DATA_VALUE, key));
}

fn boundary(writer: &mut Writer, kind: libc::c_int, sequence: u32) {
    // Here alone the resource of `struct nfgenmsg` counts: it names the subsystem, big-endian.
    let header = [libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
    writer.message(kind as u16, 0, sequence, &header, |_| {});
}

/// User data of a table as nft(8) codes it: type 0 is a comment, then its length with the zero byte at its end.
fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}
