//! Writes a reply packet in place, at the end of a buffer, within the size that the client takes.
//!
//! It decides nothing about the contents.

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use super::HEADER;
use super::edns::Opt;
use super::query::Head;

const CLASS_IN: u8 = 1;

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
    /// The OPT record that comes last, if the query had one.
    opt: Option<Opt>,
}

impl<'o> Reply<'o> {
    /// Begins the reply to a query: NOERROR, not authoritative. `limit` is the size that it may have in the end.
    pub fn new(head: Head<'_>, out: &'o mut Vec<u8>, limit: usize, opt: Option<Opt>) -> Self {
        let start = out.len();
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&head.id.to_be_bytes());
        header[2] = 0x80 | u8::from(head.recursion_desired);
        header[3] = u8::from(head.checking_disabled) << 4;
        header[5] = 1;
        out.extend_from_slice(&header);
        out.extend_from_slice(head.question);
        let limit = limit.saturating_sub(opt.as_ref().map_or(0, Opt::n_bytes));
        Self { out, start, limit, opt }
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
        fixed[3] = CLASS_IN;
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
        let Some(opt) = self.opt else { return };
        opt.write(code, self.out);
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

/// Leaves of the reply that begins at `start` its header and question, and says that there is more (TC).
pub(crate) fn empty_and_truncate(out: &mut Vec<u8>, start: usize) {
    let reply = &mut out[start..];
    reply[2] |= 0x02;
    let has_question = reply[5] == 1;
    reply[6..HEADER].fill(0);
    let mut at = HEADER;
    if has_question {
        while reply[at] != 0 {
            at += 1 + usize::from(reply[at]);
        }
        // The root, type and class.
        at += 5;
    }
    out.truncate(start + at);
}
