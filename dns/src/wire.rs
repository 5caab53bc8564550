//! Reads a query packet and writes a reply packet, both in place: no allocation per packet, no trust in any count or
//! length that the packet states.
//!
//! It knows no zone. Messages of upstreams, which have every kind of record, are read with hickory in `forward`.

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use crate::names::MAX_NAME;
use crate::stats::Silence;

pub(crate) const HEADER: usize = 12;
const CLASS_IN: u16 = 1;
/// The reply's OPT record: root, type, class, TTL, no options.
const OPT_BYTES: usize = 11;
/// Every client takes a UDP answer of this size (RFC 1035 section 2.3.4).
pub(crate) const UDP_BYTES_WITHOUT_EDNS: usize = 512;

/// A query for one name that may be answered. Borrows its packet.
#[derive(Debug)]
pub(crate) struct Query<'p> {
    packet: &'p [u8],
    /// The name in lower case, and its length in the packet.
    name: [u8; MAX_NAME],
    name_bytes: usize,
    pub record_type: RecordType,
    pub edns: Option<Edns>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Edns {
    pub payload_bytes: u16,
    pub version: u8,
    pub dnssec_ok: bool,
}

/// Why a packet is not a query to look anything up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    Silently(Silence),
    With(ResponseCode),
}

impl<'p> Query<'p> {
    /// The checks that come before any look-up, in the order of what they need to have read.
    pub fn parse(packet: &'p [u8]) -> Result<Self, Rejected> {
        const MALFORMED: Rejected = Rejected::With(ResponseCode::FormErr);
        let header = packet.first_chunk::<HEADER>().ok_or(Rejected::Silently(Silence::Short))?;
        if header[2] & 0x80 != 0 {
            return Err(Rejected::Silently(Silence::Response));
        }
        if header[2] & 0x78 != 0 {
            return Err(Rejected::With(ResponseCode::NotImp));
        }
        let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        // RFC 9619: exactly one question.
        if count(4) != 1 {
            return Err(MALFORMED);
        }
        let mut reader = Reader { packet, at: HEADER };
        let name_bytes = reader.question_name().ok_or(MALFORMED)?;
        let record_type = RecordType::from(reader.u16().ok_or(MALFORMED)?);
        let class = reader.u16().ok_or(MALFORMED)?;
        let mut query = Self { packet, name: [0; MAX_NAME], name_bytes, record_type, edns: None };
        let end = HEADER + name_bytes;
        query.name[..name_bytes].copy_from_slice(&packet[HEADER..end]);
        // Lengths are below 64 and letters are above, so lengths stay as they are.
        query.name[..name_bytes].make_ascii_lowercase();

        let n_records = count(6) + count(8) + count(10);
        if n_records > 0 {
            query.edns = reader.records(n_records).ok_or(MALFORMED)?;
        }
        if class != CLASS_IN {
            return Err(Rejected::With(ResponseCode::Refused));
        }
        Ok(query)
    }

    /// The name asked for, in lower case.
    pub fn name(&self) -> &[u8] {
        &self.name[..self.name_bytes]
    }

    pub fn packet_bytes(&self) -> usize {
        self.packet.len()
    }

    /// What a reply repeats.
    pub fn head(&self) -> Head<'p> {
        Head {
            id: u16::from_be_bytes([self.packet[0], self.packet[1]]),
            recursion_desired: self.packet[2] & 1 != 0,
            checking_disabled: self.packet[3] & 0x10 != 0,
            question: &self.packet[HEADER..HEADER + self.name_bytes + 4],
            edns: self.edns,
        }
    }
}

/// The part of a query that its reply repeats, and that an upstream is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'p> {
    pub id: u16,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// Name in the client's own spelling, type and class.
    pub question: &'p [u8],
    pub edns: Option<Edns>,
}

struct Reader<'p> {
    packet: &'p [u8],
    at: usize,
}

impl<'p> Reader<'p> {
    fn u16(&mut self) -> Option<u16> {
        let bytes = self.packet.get(self.at..)?.first_chunk::<2>()?;
        self.at += 2;
        Some(u16::from_be_bytes(*bytes))
    }

    fn bytes(&mut self, length: usize) -> Option<&'p [u8]> {
        let bytes = self.packet.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(bytes)
    }

    /// Passes the question's name and returns its length. It comes first in the packet, so there is nothing earlier
    /// that a compression pointer could point to.
    fn question_name(&mut self) -> Option<usize> {
        let start = self.at;
        loop {
            let length = usize::from(*self.packet.get(self.at)?);
            self.at += 1 + length;
            if length > 63 || self.at - start > MAX_NAME {
                return None;
            }
            if length == 0 {
                return Some(self.at - start);
            }
        }
    }

    /// Passes an owner name, which may end in a compression pointer. What it points to does not matter here.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            let length = *self.packet.get(self.at)?;
            match length {
                0 => {
                    self.at += 1;
                    return Some(());
                }
                1..=63 => self.at += 1 + usize::from(length),
                0xc0..=0xff => {
                    let start = self.at;
                    let target = usize::from(self.u16()? & 0x3fff);
                    return (HEADER..start).contains(&target).then_some(());
                }
                _ => return None,
            }
        }
    }

    /// Passes all records and returns what the one OPT among them says (RFC 6891 section 6.1). `None`: malformed.
    fn records(&mut self, n_records: usize) -> Option<Option<Edns>> {
        let mut edns = None;
        for _ in 0..n_records {
            let owner = self.at;
            self.skip_name()?;
            let at_root = self.at - owner == 1;
            let record_type = self.u16()?;
            let class = self.u16()?;
            let ttl = self.bytes(4)?;
            let length = usize::from(self.u16()?);
            let data = self.bytes(length)?;
            if RecordType::from(record_type) != RecordType::OPT {
                continue;
            }
            if edns.is_some() || !at_root || !options_are_whole(data) {
                return None;
            }
            edns = Some(Edns { payload_bytes: class, version: ttl[1], dnssec_ok: ttl[2] & 0x80 != 0 });
        }
        Some(edns)
    }
}

fn options_are_whole(mut data: &[u8]) -> bool {
    while let Some((head, rest)) = data.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        match rest.get(length..) {
            Some(rest) => data = rest,
            None => return false,
        }
    }
    data.is_empty()
}

/// The record did not fit; nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 6,
    Authority = 8,
    Additional = 10,
}

/// A reply being written at the end of `out`.
#[derive(Debug)]
pub(crate) struct Reply<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    limit: usize,
    edns: Option<Edns>,
    own_payload_bytes: u16,
}

impl<'o> Reply<'o> {
    /// Begins the reply to a query: NOERROR, not authoritative. `limit` is the size that it may have in the end.
    pub fn new(head: Head<'_>, out: &'o mut Vec<u8>, limit: usize, own_payload_bytes: u16) -> Self {
        let start = out.len();
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&head.id.to_be_bytes());
        header[2] = 0x80 | u8::from(head.recursion_desired);
        header[3] = u8::from(head.checking_disabled) << 4;
        header[5] = 1;
        out.extend_from_slice(&header);
        out.extend_from_slice(head.question);
        let limit = if head.edns.is_some() { limit - OPT_BYTES } else { limit };
        Self { out, start, limit, edns: head.edns, own_payload_bytes }
    }

    pub fn set_authoritative(&mut self) {
        self.out[self.start + 2] |= 0x04;
    }

    pub fn set_truncated(&mut self) {
        self.out[self.start + 2] |= 0x02;
    }

    pub fn set_recursion_available(&mut self) {
        self.out[self.start + 3] |= 0x80;
    }

    /// So many bytes of the message are written.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Writes a record. Its owner is a name that the message has already, `owner` bytes into it.
    pub fn record(
        &mut self,
        section: Section,
        owner: usize,
        record_type: RecordType,
        ttl: u32,
        data: &[&[u8]],
    ) -> Result<(), Full> {
        // A compression pointer has 14 bits, which only additional records of a long TCP answer can exceed.
        if owner >= 0x4000 {
            return Err(Full);
        }
        let owner = (0xc000 | owner as u16).to_be_bytes();
        let data_bytes: usize = data.iter().map(|part| part.len()).sum();
        if self.len() + owner.len() + 10 + data_bytes > self.limit {
            return Err(Full);
        }
        let mut fixed = [0; 10];
        fixed[..2].copy_from_slice(&u16::from(record_type).to_be_bytes());
        fixed[3] = CLASS_IN as u8;
        fixed[4..8].copy_from_slice(&ttl.to_be_bytes());
        fixed[8..].copy_from_slice(&(data_bytes as u16).to_be_bytes());
        self.out.extend_from_slice(&owner);
        self.out.extend_from_slice(&fixed);
        for part in data {
            self.out.extend_from_slice(part);
        }
        let count = self.start + section as usize;
        let n = u16::from_be_bytes([self.out[count], self.out[count + 1]]) + 1;
        self.out[count..count + 2].copy_from_slice(&n.to_be_bytes());
        Ok(())
    }

    /// Completes the message with its code, and the OPT record if the query had one.
    pub fn finish(self, code: ResponseCode) {
        self.out[self.start + 3] |= code.low();
        let Some(edns) = self.edns else { return };
        let [high, low] = self.own_payload_bytes.to_be_bytes();
        let flags = if edns.dnssec_ok { 0x80 } else { 0 };
        self.out.extend_from_slice(&[0, 0, 41, high, low, code.high(), 0, flags, 0, 0, 0]);
        let count = self.start + Section::Additional as usize;
        let n = u16::from_be_bytes([self.out[count], self.out[count + 1]]) + 1;
        self.out[count..count + 2].copy_from_slice(&n.to_be_bytes());
    }
}

/// Refuses a packet whose question is not to be repeated: a header alone.
pub(crate) fn reject(packet: &[u8], code: ResponseCode, out: &mut Vec<u8>) {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&packet[..2]);
    header[2] = 0x80 | (packet[2] & 0x79);
    header[3] = (packet[3] & 0x10) | code.low();
    out.extend_from_slice(&header);
}
