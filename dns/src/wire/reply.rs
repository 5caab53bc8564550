//! Writes a reply packet in place, at the end of a buffer, within the size that the client takes.
//!
//! It decides nothing about the contents.

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use super::HEADER;
use super::edns::Opt;
use super::query::Head;

const CLASS_IN: u8 = 1;
/// Of a record: owner (a compression pointer), type, class, TTL and length of the data.
const RECORD_HEADER: usize = 12;
/// Of an AAAA record, the longest whose data all have one length.
const MAX_ADDRESS_BYTES: usize = 16;
/// Room that most replies need behind the question.
const USUAL_RECORDS_BYTES: usize = 256;

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
        // A buffer that was used before has room already.
        out.reserve(HEADER + head.question.len() + USUAL_RECORDS_BYTES);
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
        let data_bytes: usize = data.iter().map(|part| part.len()).sum();
        if self.len() + RECORD_HEADER + data_bytes > self.limit {
            return Err(Full);
        }
        self.out.extend_from_slice(&record_header(owner, record_type, ttl, data_bytes)?);
        for part in data {
            self.out.extend_from_slice(part);
        }
        self.count(section, 1);
        Ok(())
    }

    /// Writes records of one owner that differ only in their data, of `N` bytes each, as far as they fit: those of the
    /// first slice, then those of the second.
    pub fn records_of<T, const N: usize>(
        &mut self,
        section: Section,
        owner: usize,
        (record_type, ttl): (RecordType, u32),
        all: [&[T]; 2],
        data: impl Fn(&T) -> [u8; N],
    ) -> Result<(), Full> {
        let record_bytes = RECORD_HEADER + N;
        let mut record = [0; RECORD_HEADER + MAX_ADDRESS_BYTES];
        record[..RECORD_HEADER].copy_from_slice(&record_header(owner, record_type, ttl, N)?);
        let n = all[0].len() + all[1].len();
        let n_fitting = n.min(self.limit.saturating_sub(self.len()) / record_bytes);
        for item in all[0].iter().chain(all[1]).take(n_fitting) {
            record[RECORD_HEADER..record_bytes].copy_from_slice(&data(item));
            self.out.extend_from_slice(&record[..record_bytes]);
        }
        self.count(section, n_fitting as u16);
        if n_fitting < n { Err(Full) } else { Ok(()) }
    }

    fn count(&mut self, section: Section, n_more: u16) {
        let count = self.start + section as usize;
        let n = u16::from_be_bytes([self.out[count], self.out[count + 1]]) + n_more;
        self.out[count..count + 2].copy_from_slice(&n.to_be_bytes());
    }

    /// Completes the message with its code, and the OPT record if the query had one.
    pub fn finish(mut self, code: ResponseCode) {
        self.out[self.start + 3] |= code.low();
        if let Some(opt) = &self.opt {
            opt.write(code, self.out);
            self.count(Section::Additional, 1);
        }
    }
}

fn record_header(
    owner: usize,
    record_type: RecordType,
    ttl: u32,
    data_bytes: usize,
) -> Result<[u8; RECORD_HEADER], Full> {
    // A compression pointer has 14 bits, which only additional records of a long TCP answer can exceed.
    if owner >= 0x4000 {
        return Err(Full);
    }
    let mut header = [0; RECORD_HEADER];
    header[..2].copy_from_slice(&(0xc000 | owner as u16).to_be_bytes());
    header[2..4].copy_from_slice(&u16::from(record_type).to_be_bytes());
    header[5] = CLASS_IN;
    header[6..10].copy_from_slice(&ttl.to_be_bytes());
    header[10..].copy_from_slice(&(data_bytes as u16).to_be_bytes());
    Ok(header)
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
