//! Reads a query packet in place: no allocation, no trust in any count or length that the packet states.
//!
//! It answers nothing, and it knows no zone.

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use super::HEADER;
use super::edns::Edns;
use crate::names::MAX_NAME;
use crate::stats::Silence;

const CHUNK: usize = 16;

/// Room for a name in whole chunks.
pub(crate) type NameSpace = [u8; MAX_NAME.next_multiple_of(CHUNK)];
pub(crate) const EMPTY_NAME_SPACE: NameSpace = [0; MAX_NAME.next_multiple_of(CHUNK)];

/// A query for one name that may be answered. Borrows its packet.
#[derive(Debug)]
pub(crate) struct Query<'p> {
    packet: &'p [u8],
    /// In lower case.
    name: &'p [u8],
    pub record_type: RecordType,
    pub class: u16,
    pub edns: Option<Edns>,
}

/// Why a packet is not a query to look anything up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    Silently(Silence),
    With(ResponseCode),
}

impl<'p> Query<'p> {
    /// The checks that come before any look-up, in the order of what they need to have read. The name is put into
    /// `space` in lower case.
    pub fn parse(packet: &'p [u8], space: &'p mut NameSpace) -> Result<Self, Rejected> {
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
        space[..name_bytes].copy_from_slice(&packet[HEADER..HEADER + name_bytes]);
        // Lengths are below 64 and letters are above, so lengths stay as they are. What is behind the name does not
        // matter, and whole chunks take one instruction each.
        let (chunks, _) = space.as_chunks_mut::<CHUNK>();
        for chunk in &mut chunks[..name_bytes.div_ceil(CHUNK)] {
            chunk.make_ascii_lowercase();
        }
        let name = &space[..name_bytes];

        let n_records = count(6) + count(8) + count(10);
        let edns = match n_records {
            0 => None,
            n => reader.records(n).ok_or(MALFORMED)?,
        };
        Ok(Self { packet, name, record_type, class, edns })
    }

    /// The name asked for, in lower case.
    pub fn name(&self) -> &[u8] {
        self.name
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
            question: &self.packet[HEADER..HEADER + self.name.len() + 4],
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
            let ttl = *self.bytes(4)?.first_chunk::<4>()?;
            let length = usize::from(self.u16()?);
            let data = self.bytes(length)?;
            if RecordType::from(record_type) != RecordType::OPT {
                continue;
            }
            if edns.is_some() || !at_root {
                return None;
            }
            edns = Some(Edns::read(class, ttl, data)?);
        }
        Some(edns)
    }
}
