//! Counters of the DNS server, one set per worker, and their sum as a value to show.
//!
//! It keeps no names and no clients.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;
use serde::Serialize;

use crate::forward::UpstreamStatistics;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Udp,
    Tcp,
    Https,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Https => "HTTPS",
        })
    }
}

/// Why a packet got no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Too short for a header: there is no id to answer to.
    Short,
    /// It is an answer itself; answering it could make two servers talk for ever.
    Response,
    /// It came from port 0, where nobody can be answered.
    PortZero,
    /// The kernel did not take the answer.
    SendFailed,
    /// The client's network has had too many answers of this kind lately.
    RateLimited,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Zone,
    /// The zone, under another of its names.
    Alias,
    Upstream,
    Cache,
    /// The cache, though out of date: no upstream answered.
    Stale,
    /// This server itself: a refusal, a failure.
    None,
}

/// The zone of names that are in none of ours; others are numbered by `Authority::zone_labels`.
pub(crate) const OTHER_ZONE: usize = usize::MAX;

/// What became of a query for a name of another zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardOutcome {
    Answered,
    Failed,
    /// Too many were in flight.
    Full,
    /// Another client had asked the same already.
    Merged,
    /// Asked before the answer in the cache had ended.
    Prefetched,
    /// It was our own question that came back.
    Looped,
}

const TYPES: [(&str, RecordType); 9] = [
    ("A", RecordType::A),
    ("AAAA", RecordType::AAAA),
    ("SRV", RecordType::SRV),
    ("PTR", RecordType::PTR),
    ("SOA", RecordType::SOA),
    ("NS", RecordType::NS),
    ("TXT", RecordType::TXT),
    ("HTTPS", RecordType::HTTPS),
    ("ANY", RecordType::ANY),
];
const RCODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS"];
const SILENCES: [&str; 5] = ["short", "response", "port_zero", "send_failed", "rate_limited"];
const SOURCES: [&str; 6] = ["zone", "alias", "upstream", "cache", "stale", "none"];
const FORWARDS: [&str; 6] = ["answered", "failed", "full", "merged", "prefetched", "looped"];

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    /// Only the worker that owns the counter writes, so it needs no locked instruction.
    fn add_one(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one worker. Aligned so that workers do not share cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counters {
    udp: Counter,
    tcp: Counter,
    https: Counter,
    types: [Counter; TYPES.len() + 1],
    /// By zone; the last is that of all others.
    rcodes: Box<[[Counter; RCODES.len()]]>,
    sources: [Counter; SOURCES.len()],
    slipped: Counter,
    silences: [Counter; SILENCES.len()],
    forwards: [Counter; FORWARDS.len()],
    truncated: Counter,
    tcp_connections: Counter,
    tcp_evicted: Counter,
}

impl Counters {
    pub fn new(n_zones: usize) -> Self {
        Self {
            udp: Counter::default(),
            tcp: Counter::default(),
            https: Counter::default(),
            types: Default::default(),
            rcodes: (0..=n_zones).map(|_| Default::default()).collect(),
            sources: Default::default(),
            slipped: Counter::default(),
            silences: Default::default(),
            forwards: Default::default(),
            truncated: Counter::default(),
            tcp_connections: Counter::default(),
            tcp_evicted: Counter::default(),
        }
    }

    pub fn query(&self, transport: Transport) {
        match transport {
            Transport::Udp => self.udp.add_one(),
            Transport::Tcp => self.tcp.add_one(),
            Transport::Https => self.https.add_one(),
        }
    }

    pub fn asked(&self, record_type: RecordType) {
        let at = TYPES.iter().position(|(_, known)| *known == record_type).unwrap_or(TYPES.len());
        self.types[at].add_one();
    }

    pub fn answered(&self, code: ResponseCode, zone: usize, source: Source) {
        let at = rcode_index(code);
        self.rcodes[zone.min(self.rcodes.len() - 1)][at].add_one();
        self.sources[source as usize].add_one();
    }

    pub fn slipped(&self) {
        self.slipped.add_one();
    }

    pub fn silent(&self, reason: Silence) {
        self.silences[reason as usize].add_one();
    }

    pub fn forwarded(&self, outcome: ForwardOutcome) {
        self.forwards[outcome as usize].add_one();
    }

    pub fn truncated(&self) {
        self.truncated.add_one();
    }

    pub fn tcp_connected(&self) {
        self.tcp_connections.add_one();
    }

    pub fn tcp_evicted(&self) {
        self.tcp_evicted.add_one();
    }
}

fn rcode_index(code: ResponseCode) -> usize {
    match code {
        ResponseCode::NoError => 0,
        ResponseCode::FormErr => 1,
        ResponseCode::NXDomain => 3,
        ResponseCode::NotImp => 4,
        ResponseCode::Refused => 5,
        ResponseCode::BADVERS => 6,
        // Whatever else an upstream says is, to the client, a failure.
        _ => 2,
    }
}

/// The code as the RFCs write it.
pub(crate) fn rcode_name(code: ResponseCode) -> &'static str {
    RCODES[rcode_index(code)]
}

/// The sums over all workers since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    pub n_queries_udp: u64,
    pub n_queries_tcp: u64,
    pub n_queries_https: u64,
    /// By record type; what is rarely asked for is `other`.
    pub n_queries_by_type: BTreeMap<&'static str, u64>,
    pub n_answers_by_rcode: BTreeMap<&'static str, u64>,
    /// By zone (`other`: none of ours) and response code; only what there was.
    pub n_answers_by_zone: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// By where they came from: `zone`, `alias`, `upstream`, `cache`, `stale`, or `none` (refusals and failures).
    pub n_answers_by_source: BTreeMap<&'static str, u64>,
    /// Packets that got no answer, by reason.
    pub n_dropped: BTreeMap<&'static str, u64>,
    pub n_forwarded: BTreeMap<&'static str, u64>,
    /// Answers over the rate limit that were sent empty.
    pub n_slipped: u64,
    pub upstreams: Vec<UpstreamStatistics>,
    /// Questions of ours that an upstream sent back to us.
    pub n_loops: u64,
    /// Answers of upstreams that are kept, and what they take.
    pub n_cached: usize,
    pub cache_bytes: usize,
    /// UDP answers that did not fit and told the client to come back over TCP.
    pub n_truncated: u64,
    pub n_tcp_connections: u64,
    /// Connections closed to make room for newer ones.
    pub n_tcp_evicted: u64,
    /// Generations that were answered before the VIP plane had confirmed their new VIPs.
    pub n_vip_waits_expired: u64,
    /// Names in the zone now.
    pub n_names: usize,
    pub serial: u32,
}

impl Statistics {
    pub(crate) fn add(&mut self, counters: &Counters, zone_labels: &[String]) {
        let add = |sums: &mut BTreeMap<&'static str, u64>, names: &[&'static str], values: &[Counter]| {
            for (name, value) in names.iter().zip(values) {
                *sums.entry(name).or_default() += value.value();
            }
        };
        let types: Vec<&'static str> = TYPES.iter().map(|(name, _)| *name).chain(["other"]).collect();
        self.n_queries_udp += counters.udp.value();
        self.n_queries_tcp += counters.tcp.value();
        self.n_queries_https += counters.https.value();
        add(&mut self.n_queries_by_type, &types, &counters.types);
        let labels = zone_labels.iter().map(String::as_str).chain(["other"]);
        for (label, rcodes) in labels.zip(&counters.rcodes) {
            add(&mut self.n_answers_by_rcode, &RCODES, rcodes);
            let seen = RCODES.iter().zip(rcodes).filter(|(_, n)| n.value() > 0);
            for (code, n) in seen {
                *self.n_answers_by_zone.entry(label.to_owned()).or_default().entry(code).or_default() +=
                    n.value();
            }
        }
        add(&mut self.n_answers_by_source, &SOURCES, &counters.sources);
        self.n_slipped += counters.slipped.value();
        add(&mut self.n_dropped, &SILENCES, &counters.silences);
        add(&mut self.n_forwarded, &FORWARDS, &counters.forwards);
        self.n_truncated += counters.truncated.value();
        self.n_tcp_connections += counters.tcp_connections.value();
        self.n_tcp_evicted += counters.tcp_evicted.value();
    }
}
