//! An upstream's answer in the form in which it is kept and given to any number of clients: as bytes, with the places
//! that differ between clients and with time.
//!
//! It was read and written again with hickory before; bytes of an upstream never reach a client unread.

use std::time::Duration;

use hickory_server::proto::op::{Message, ResponseCode};
use hickory_server::proto::rr::{Name, RData};

use super::question::Foreign;
use crate::wire::{HEADER, Opt};

/// How long any answer may be kept.
const MAX_TTL: u32 = 86_400;
/// How long "there is no such name" may be kept: names come (RFC 2308 section 5).
const MAX_NEGATIVE_TTL: u32 = 900;

#[derive(Debug)]
pub(crate) struct Stored {
    /// The whole message, id 0, without OPT, the question in lower case.
    bytes: Box<[u8]>,
    /// In order: where each record's TTL is, and where the record ends.
    records: Box<[RecordAt]>,
    n_answers: u16,
    question_end: usize,
    pub code: ResponseCode,
    /// How long it may be kept; zero: not at all.
    pub lifetime: Duration,
}

#[derive(Clone, Copy, Debug)]
struct RecordAt {
    ttl: usize,
    end: usize,
}

impl Stored {
    /// `None`: the message cannot be written, or is not about one question.
    pub fn new(mut message: Message) -> Option<Self> {
        let [query] = &mut message.queries[..] else { return None };
        let asked = query.name().clone();
        let lower = asked.to_lowercase();
        query.set_name(lower.clone());
        // Owners that repeat the question become pointers to it, and so take each client's spelling.
        for record in
            message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals)
        {
            if record.name.eq_ignore_root(&asked) || record.name == asked {
                record.name = lower.clone();
            }
        }
        message.metadata.id = 0;
        message.metadata.truncation = false;
        message.metadata.authoritative = false;
        message.edns = None;
        message.signature = None;
        let code = message.metadata.response_code;
        let lifetime = Duration::from_secs(lifetime(&message, &lower).into());
        let n_answers = u16::try_from(message.answers.len()).ok()?;
        let bytes = message.to_vec().ok()?;
        let (question_end, records) = find_records(&bytes)?;
        Some(Self { bytes: bytes.into(), records, n_answers, question_end, code, lifetime })
    }

    /// Whether its question is this one: name in lower case, type and class.
    pub fn is_about(&self, question: &[u8]) -> bool {
        self.bytes[HEADER..self.question_end] == *question
    }

    pub fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + size_of_val(&*self.records)
    }

    /// Appends the reply to a client that asked `age` after this came, or all of it that fits.
    pub fn write(&self, foreign: &Foreign, age: Age, out: &mut Vec<u8>) {
        let start = out.len();
        let room = foreign.limit.saturating_sub(foreign.opt.as_ref().map_or(0, Opt::n_bytes));
        let whole = self.bytes.len() <= room;
        let n_records = match whole {
            true => self.records.len(),
            // Answers come first; of what is cut, nothing else is worth the room.
            false => self
                .records
                .iter()
                .take(self.n_answers.into())
                .take_while(|record| record.end <= room)
                .count(),
        };
        let end = self.records[..n_records].last().map_or(self.question_end, |record| record.end);
        out.extend_from_slice(&self.bytes[..end]);
        let reply = &mut out[start..];
        reply[..2].copy_from_slice(&foreign.id.to_be_bytes());
        reply[2] = 0x80 | if whole { 0 } else { 0x02 } | u8::from(foreign.recursion_desired);
        reply[3] = 0x80 | reply[3] & 0x2f | u8::from(foreign.checking_disabled) << 4;
        if !whole {
            reply[6..8].copy_from_slice(&(n_records as u16).to_be_bytes());
            reply[8..HEADER].fill(0);
        }
        // Of the same length as the one that is stored, or it would have another key.
        reply[HEADER..HEADER + foreign.question.len()].copy_from_slice(&foreign.question);
        for record in &self.records[..n_records] {
            if let Some(ttl) = reply[record.ttl..].first_chunk_mut::<4>() {
                *ttl = age.left(u32::from_be_bytes(*ttl)).to_be_bytes();
            }
        }
        if let Some(opt) = &foreign.opt {
            let n = u16::from_be_bytes([reply[10], reply[11]]).saturating_add(1);
            reply[10..HEADER].copy_from_slice(&n.to_be_bytes());
            opt.write(self.code, out);
        }
    }
}

/// How old an answer is when it is given out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Age {
    Seconds(u32),
    /// Out of date: to be asked for again after this many seconds (RFC 8767 section 4).
    Stale(u32),
}

impl Age {
    fn left(self, ttl: u32) -> u32 {
        match self {
            Self::Seconds(age) => ttl.min(MAX_TTL).saturating_sub(age),
            Self::Stale(retry) => retry,
        }
    }
}

/// In seconds; 0 when nobody said how long, or it was a failure.
fn lifetime(message: &Message, asked: &Name) -> u32 {
    let answered = message.answers.iter().any(|r| r.name == *asked);
    match message.metadata.response_code {
        ResponseCode::NoError if answered => {
            message.answers.iter().map(|record| record.ttl).min().unwrap_or(0).min(MAX_TTL)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa.unwrap_or(0).min(MAX_NEGATIVE_TTL)
        }
        _ => 0,
    }
}

/// Where the question ends, and the records. `None`: not a whole message.
fn find_records(bytes: &[u8]) -> Option<(usize, Box<[RecordAt]>)> {
    let count = |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let question_end = after_name(bytes, HEADER)? + 4;
    let mut at = question_end;
    let n_records = count(6)? + count(8)? + count(10)?;
    let mut records = Vec::with_capacity(n_records.min(bytes.len() / 11));
    for _ in 0..n_records {
        let fixed = after_name(bytes, at)?;
        let end = fixed + 10 + count(fixed + 8)?;
        if end > bytes.len() {
            return None;
        }
        records.push(RecordAt { ttl: fixed + 4, end });
        at = end;
    }
    (question_end <= bytes.len()).then(|| (question_end, records.into()))
}

fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            0xc0..=0xff => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
