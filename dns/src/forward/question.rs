//! A client's question for a name of another zone, and the question that upstreams are asked for it.
//!
//! Nothing is sent here.

use rand::RngExt;

use crate::wire::{HEADER, Head, Opt, Reply};

const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;
/// What follows a name in a question: type and class.
const TYPE_AND_CLASS_BYTES: usize = 4;

/// A query for a name of another zone, kept while upstreams are asked.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub id: u16,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// In the client's own spelling.
    pub question: Box<[u8]>,
    /// Of the name alone, in lower case.
    pub name: Box<[u8]>,
    /// The OPT record of the reply, if the client sent one.
    pub opt: Option<Opt>,
    /// The size that the reply may have, in bytes.
    pub limit: usize,
}

/// What makes two questions the same: name in lower case, type, class, and whether signatures are wanted or checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(Box<[u8]>);

impl Foreign {
    pub fn new(head: Head<'_>, name: &[u8], limit: usize, opt: Option<Opt>) -> Self {
        Self {
            id: head.id,
            recursion_desired: head.recursion_desired,
            checking_disabled: head.checking_disabled,
            question: head.question.into(),
            name: name.into(),
            opt,
            limit,
        }
    }

    pub fn key(&self) -> Key {
        let dnssec_ok = self.opt.as_ref().is_some_and(Opt::dnssec_ok);
        let flags = u8::from(dnssec_ok) << 1 | u8::from(self.checking_disabled);
        let mut key = Vec::with_capacity(self.question.len() + 1);
        key.extend_from_slice(&self.name);
        key.extend_from_slice(&self.question[self.name.len()..]);
        key.push(flags);
        Key(key.into())
    }

    /// A reply without records.
    pub fn reply<'o>(&self, out: &'o mut Vec<u8>) -> Reply<'o> {
        let head = Head {
            id: self.id,
            recursion_desired: self.recursion_desired,
            checking_disabled: self.checking_disabled,
            question: &self.question,
        };
        let mut reply = Reply::new(head, out, self.limit, self.opt.clone());
        reply.set_recursion_available();
        reply
    }
}

impl Key {
    /// Name in lower case, type and class.
    pub fn question(&self) -> &[u8] {
        &self.0[..self.0.len() - 1]
    }

    fn dnssec_ok(&self) -> bool {
        self.0[self.0.len() - 1] & 2 != 0
    }

    fn checking_disabled(&self) -> bool {
        self.0[self.0.len() - 1] & 1 != 0
    }
}

/// So many letters make a spelling that nobody else chooses by chance.
const N_TELLING_LETTERS: usize = 12;

/// One question as upstreams are asked it: in a random spelling, which whoever answers has to repeat (0x20), as
/// somebody who forges an answer cannot. The spelling also shows whether our own question has come back to us.
#[derive(Debug)]
pub(crate) struct Spelled {
    pub key: Key,
    /// Name, type and class as they are sent.
    pub question: Box<[u8]>,
    payload_bytes: u16,
}

/// What a question says of itself beside what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terms {
    /// With our own OPT record: EDNS holds per hop (RFC 6891 section 6.1).
    Edns,
    /// As RFC 1035 has it, for those who understand nothing newer.
    Plain,
}

/// How far a packet answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// Somebody's guess, or a late answer to something else.
    No,
    /// All but the spelling is right: a forgery, or an upstream that does not keep it.
    OtherSpelling,
    /// The header alone, with FORMERR or NOTIMP: it could not even read the question.
    NotUnderstood,
    Exact,
}

impl Spelled {
    pub fn new(key: Key, payload_bytes: u16) -> Self {
        let mut question = key.question().to_vec();
        let name_bytes = question.len() - TYPE_AND_CLASS_BYTES;
        let mut rng = rand::rng();
        let mut at = 0;
        // Lengths are below 64, letters above: only labels change.
        while at < name_bytes && question[at] > 0 {
            let end = at + 1 + usize::from(question[at]);
            for byte in &mut question[at + 1..end] {
                if byte.is_ascii_lowercase() && rng.random::<bool>() {
                    byte.make_ascii_uppercase();
                }
            }
            at = end;
        }
        let name = &question[..name_bytes];
        if name == &key.question()[..name_bytes] {
            // The spelling that most clients use says nothing.
            if let Some(letter) = question[..name_bytes].iter_mut().find(|byte| byte.is_ascii_lowercase()) {
                letter.make_ascii_uppercase();
            }
        }
        Self { key, question: question.into(), payload_bytes }
    }

    /// Whether a client's question can only be this one come back, and not a client who chose the same spelling.
    pub fn is_certainly(&self, question: &[u8]) -> bool {
        let name = &self.question[..self.question.len() - TYPE_AND_CLASS_BYTES];
        let n_letters = name.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
        n_letters >= N_TELLING_LETTERS && *self.question == *question
    }

    /// The packet under an id of its own.
    pub fn packet(&self, id: u16, terms: Terms) -> Vec<u8> {
        let mut packet = Vec::with_capacity(HEADER + self.question.len() + 11);
        let checking_disabled = u8::from(self.key.checking_disabled()) << 4;
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(&[1, checking_disabled, 0, 1, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&self.question);
        if terms == Terms::Edns {
            packet[HEADER - 1] = 1;
            let [high, low] = self.payload_bytes.to_be_bytes();
            let dnssec_ok = if self.key.dnssec_ok() { 0x80 } else { 0 };
            packet.extend_from_slice(&[0, 0, 41, high, low, 0, 0, dnssec_ok, 0, 0, 0]);
        }
        packet
    }

    /// Whether a packet answers the question that was sent under `id`.
    pub fn is_answered_by(&self, packet: &[u8], id: u16) -> Match {
        if packet.len() < HEADER || packet[..2] != id.to_be_bytes() || packet[2] & 0xf8 != 0x80 {
            return Match::No;
        }
        if packet.len() == HEADER && packet[4..6] == [0, 0] && matches!(packet[3] & 0x0f, FORMERR | NOTIMP) {
            return Match::NotUnderstood;
        }
        if packet.len() < HEADER + self.question.len() || packet[4..6] != [0, 1] {
            return Match::No;
        }
        let question = &packet[HEADER..][..self.question.len()];
        if *question == *self.question {
            Match::Exact
        } else if question.eq_ignore_ascii_case(&self.question) {
            Match::OtherSpelling
        } else {
            Match::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_spelled_at_random_and_known_again() {
        let lower = b"\x07example\x03com\0\0\x01\0\x01";
        let key = Key([&lower[..], &[2]].concat().into());
        let spelled: Vec<Spelled> = (0..64).map(|_| Spelled::new(key.clone(), 1232)).collect();
        assert!(spelled.iter().all(|s| *s.question != lower[..]), "never as most clients spell it");
        assert!(spelled.iter().any(|s| s.question != spelled[0].question));
        assert!(
            spelled.iter().all(|s| !s.is_certainly(&s.question)),
            "ten letters may be the same by chance"
        );
        let long =
            Spelled::new(Key([&b"\x07example\x07example"[..], &lower[8..], &[2]].concat().into()), 1232);
        assert!(long.is_certainly(&long.question) && !long.is_certainly(long.key.question()));
        for spelled in &spelled {
            assert_eq!(spelled.packet(7, Terms::Plain).len(), HEADER + lower.len());
            let mut packet = spelled.packet(7, Terms::Edns);
            assert_eq!(packet.len(), HEADER + lower.len() + 11);
            assert_eq!(packet[packet.len() - 4] & 0x80, 0x80, "signatures are asked for");
            assert_eq!(packet[HEADER..][..lower.len()].to_ascii_lowercase(), lower);
            packet[2] |= 0x80;
            assert_eq!(spelled.is_answered_by(&packet, 7), Match::Exact);
            assert_eq!(spelled.is_answered_by(&packet, 8), Match::No);
            packet[3] |= NOTIMP;
            assert_eq!(spelled.is_answered_by(&packet[..HEADER], 7), Match::No, "it has no question");
            packet[5] = 0;
            assert_eq!(spelled.is_answered_by(&packet[..HEADER], 7), Match::NotUnderstood);
            assert_eq!(spelled.is_answered_by(&packet[..HEADER], 8), Match::No);
            packet[5] = 1;
            packet[HEADER + 1] ^= 0x20;
            assert_eq!(spelled.is_answered_by(&packet, 7), Match::OtherSpelling);
            packet[HEADER + 1] = b'-';
            assert_eq!(spelled.is_answered_by(&packet, 7), Match::No);
        }
    }
}
