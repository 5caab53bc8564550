//! Answers one packet from the zone: what the rules of DNS and of the zones say, and nothing that needs waiting.
//!
//! It does no IO. A query for somebody else's name is handed back to the caller, who may forward it.

mod answer;
mod remembered;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Cache};
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use self::answer::Answer;
use self::remembered::{Given, Remembered};
use crate::config::{Config, MIN_UDP_PAYLOAD_BYTES};
use crate::cookies::Cookies;
use crate::forward::Foreign;
use crate::networks::{Network, Networks};
use crate::rate::{Limiter, Verdict};
use crate::stats::{Counters, OTHER_ZONE, Silence, Source, Transport};
use crate::wire::{
    EMPTY_NAME_SPACE, Edns, Opt, Query, Rejected, Reply, UDP_BYTES_WITHOUT_EDNS, empty_and_truncate, reject,
};
use crate::zone::{BeforeSync, Found, Zone};

/// A UDP answer is at most so many times its query, so that nobody is worth abusing us against (BCP 140).
const MAX_AMPLIFICATION: usize = 24;

const CLASS_IN: u16 = 1;

/// What is to become of a packet.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The reply was appended to the buffer.
    Reply,
    Silence,
    Forward(Foreign),
}

/// What all workers answer by.
#[derive(Debug)]
pub(crate) struct Terms {
    pub udp_payload_bytes: u16,
    /// This server's name for whoever asks which one of several answered (RFC 5001).
    pub nsid: Box<[u8]>,
    pub cookies: Cookies,
    /// `None`: no limit.
    pub limiter: Option<Limiter>,
    /// The cluster's own: their hosts get names of other zones resolved, and as many answers as they like. The
    /// internet gets neither (RFC 5358).
    pub local_networks: Networks,
    has_upstreams: AtomicBool,
}

impl Terms {
    pub fn new(config: &Config) -> Self {
        Self {
            udp_payload_bytes: config.udp_payload_bytes,
            nsid: config.nsid.as_bytes().into(),
            cookies: Cookies::new(config.cookie_secret.unwrap_or_else(rand::random)),
            limiter: (config.rate_limit_per_sec > 0)
                .then(|| Limiter::new(config.rate_limit_per_sec, config.rate_limit_slip)),
            local_networks: Networks::new(&[&config.local_networks[..], &this_host(config)].concat()),
            has_upstreams: AtomicBool::new(false),
        }
    }

    pub fn set_recursion(&self, recursion: Recursion) {
        self.has_upstreams.store(recursion == Recursion::Available, Ordering::Relaxed);
    }

    fn recursion(&self) -> Recursion {
        match self.has_upstreams.load(Ordering::Relaxed) {
            true => Recursion::Available,
            false => Recursion::Unavailable,
        }
    }

    fn is_local(&self, client: IpAddr) -> bool {
        self.local_networks.contain(client)
    }
}

/// One worker's, or one connection's, way to answers.
#[derive(Debug)]
pub(crate) struct Responder {
    zone: Cache<Arc<ArcSwap<Zone>>, Arc<Zone>>,
    counters: Arc<Counters>,
    terms: Arc<Terms>,
    /// State of the generator that rotates answers.
    turn: u64,
    /// Where the targets of the SRV answer being written are.
    targets: Vec<(usize, usize)>,
    remembered: Remembered,
}

/// Whether names of other zones can be resolved at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recursion {
    Unavailable,
    Available,
}

/// What is known of who asks.
#[derive(Clone, Copy, Debug)]
struct Asker {
    transport: Transport,
    client: IpAddr,
    standing: Standing,
}

/// Whether the client is where it says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unproven,
    /// It connected, or brought a cookie that only it can have.
    Proven,
}

impl Responder {
    pub fn new(zone: Arc<ArcSwap<Zone>>, counters: Arc<Counters>, terms: Arc<Terms>) -> Self {
        let turn = rand::random();
        Self {
            zone: Cache::new(zone),
            counters,
            terms,
            turn,
            targets: Vec::new(),
            remembered: Remembered::new(),
        }
    }

    /// Prepares for a packet over UDP that is to be answered soon.
    pub fn foresee(&self, packet: &[u8]) {
        self.remembered.foresee(packet);
    }

    /// Answers one packet; the reply is appended to `out`.
    pub fn respond(
        &mut self,
        packet: &[u8],
        transport: Transport,
        client: IpAddr,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.counters.query(transport);
        let recursion = self.terms.recursion();
        // Connections ask too seldom to be worth the space.
        let may_be_known = transport == Transport::Udp && !self.has_limit(client);
        if may_be_known && let Some(given) = self.remembered.reply(self.zone.load(), recursion, packet, out) {
            self.counters.asked(given.record_type);
            self.counters.answered(given.code, given.zone, given.source);
            return Outcome::Reply;
        }
        let start = out.len();
        let mut space = EMPTY_NAME_SPACE;
        let query = match Query::parse(packet, &mut space) {
            Ok(query) => query,
            Err(Rejected::Silently(reason)) => {
                self.counters.silent(reason);
                return Outcome::Silence;
            }
            Err(Rejected::With(code)) => {
                reject(packet, code, out);
                let asker = Asker { transport, client, standing: Standing::Unproven };
                let about = self.is_limited(asker).then_some((0, 0, code.low()));
                return self.conclude(asker, about, code, (OTHER_ZONE, Source::None), start, out);
            }
        };
        self.counters.asked(query.record_type);
        let standing = self.standing(&query, transport, client);
        let asker = Asker { transport, client, standing };
        let (limit, is_limited) = (self.limit(&query, asker), self.is_limited(asker));
        self.turn = self.turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let opt = query.edns.as_ref().map(|edns| self.terms.opt(edns, client));
        let zone = self.zone.load();
        let found = zone.find(query.name());
        if found.is_none()
            && is_answerable(&query).is_ok()
            && query.head().recursion_desired
            && recursion == Recursion::Available
            && self.terms.is_local(client)
        {
            return Outcome::Forward(Foreign::new(query.head(), query.name(), limit, opt));
        }
        let mut reply = Reply::new(query.head(), out, limit, opt);
        if recursion == Recursion::Available {
            reply.set_recursion_available();
        }
        let counted = found.as_ref().map_or((OTHER_ZONE, Source::None), Found::counted);
        let about = is_limited.then(|| match &found {
            Some(Found { node: Some(_), .. }) => zone.hash(query.name()),
            // Missing names of a zone count as one, or every random name would have a limit of its own.
            _ => counted.0 as u64,
        });
        let is_lasting = may_be_known && is_lasting(&query, found.as_ref()) && self.remembered.is_of(zone);
        let code = match (is_answerable(&query), found) {
            (Err(code), _) => code,
            (Ok(()), None) => ResponseCode::Refused,
            (Ok(()), Some(found)) if !zone.is_synced() && found.apex.before_sync == BeforeSync::Fail => {
                ResponseCode::ServFail
            }
            (Ok(()), Some(found)) => {
                reply.set_authoritative();
                let rotation = (self.turn >> 33) as usize;
                let mut answer = Answer { zone, found, query: &query, rotation, targets: &mut self.targets };
                let (code, complete) = answer.write(&mut reply);
                if complete.is_err() {
                    reply.set_truncated();
                    self.counters.truncated();
                }
                code
            }
        };
        reply.finish(code);
        if is_lasting && code == ResponseCode::NoError {
            let (record_type, (zone, source)) = (query.record_type, counted);
            let given = Given { record_type, code, zone, source };
            self.remembered.put(packet, query.head().question.len(), &out[start..], given);
        }
        let about = about.map(|name| (name, u16::from(query.record_type), code.low()));
        self.conclude(asker, about, code, counted, start, out)
    }

    pub fn silent(&self, reason: Silence) {
        self.counters.silent(reason);
    }

    /// Whether the client may be somebody else than it says, to whom too many answers could be sent.
    fn is_limited(&self, asker: Asker) -> bool {
        asker.transport == Transport::Udp
            && asker.standing == Standing::Unproven
            && self.has_limit(asker.client)
    }

    fn has_limit(&self, client: IpAddr) -> bool {
        self.terms.limiter.is_some() && !self.terms.is_local(client)
    }

    /// Counts the reply that begins at `start`, and takes it back if its client has had too many about the same;
    /// `about` is name, type and code, of a client that is limited.
    fn conclude(
        &self,
        asker: Asker,
        about: Option<(u64, u16, u8)>,
        code: ResponseCode,
        (zone, source): (usize, Source),
        start: usize,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if let (Some(about), Some(limiter)) = (about, &self.terms.limiter) {
            match limiter.verdict(asker.client, about, unix_seconds()) {
                Verdict::Send => {}
                Verdict::Slip => {
                    empty_and_truncate(out, start);
                    self.counters.slipped();
                }
                Verdict::Drop => {
                    out.truncate(start);
                    self.counters.silent(Silence::RateLimited);
                    return Outcome::Silence;
                }
            }
        }
        self.counters.answered(code, zone, source);
        Outcome::Reply
    }

    fn standing(&self, query: &Query<'_>, transport: Transport, client: IpAddr) -> Standing {
        let cookie = query.edns.as_ref().and_then(|edns| edns.cookie.as_ref());
        let proven = transport != Transport::Udp
            || cookie.is_some_and(|cookie| self.terms.cookies.is_own(cookie, client, unix_seconds()));
        if proven { Standing::Proven } else { Standing::Unproven }
    }

    /// The size that the reply may have, in bytes.
    fn limit(&self, query: &Query<'_>, asker: Asker) -> usize {
        match (asker.transport, &query.edns) {
            (Transport::Tcp | Transport::Https, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => UDP_BYTES_WITHOUT_EDNS,
            (Transport::Udp, Some(edns)) => {
                let offered = usize::from(
                    edns.payload_bytes.clamp(MIN_UDP_PAYLOAD_BYTES, self.terms.udp_payload_bytes),
                );
                let amplified = (query.packet_bytes() * MAX_AMPLIFICATION).max(UDP_BYTES_WITHOUT_EDNS);
                if asker.standing == Standing::Proven { offered } else { offered.min(amplified) }
            }
        }
    }
}

impl Terms {
    /// The OPT record of a reply.
    fn opt(&self, asked: &Edns, client: IpAddr) -> Opt {
        let mut opt = Opt::answering(asked, self.udp_payload_bytes);
        if asked.asks_nsid && !self.nsid.is_empty() {
            opt.set_nsid(&self.nsid);
        }
        if let Some(cookie) = &asked.cookie {
            opt.set_cookie(cookie.client, self.cookies.server_cookie(cookie.client, client, unix_seconds()));
        }
        opt
    }
}

/// Whoever asks one of the host's own addresses from the host itself does so under that very address, which nobody else
/// can have (the kernel drops such packets from outside).
fn this_host(config: &Config) -> Vec<Network> {
    let own = config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    let own = own.chain(config.node_addresses.iter().copied()).chain(config.public_addresses.iter().copied());
    own.map(Network::host).collect()
}

/// Seconds since 1970, as far as 32 bits go.
fn unix_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as u32)
}

/// The next who asks the same gets the same reply, as long as the zone is: at most one record, so nothing takes turns
/// (the addresses of a service's target do not), and no cookie, which is the client's own.
fn is_lasting(query: &Query<'_>, found: Option<&Found<'_>>) -> bool {
    let Some(node) = found.and_then(|found| found.node) else { return false };
    let n = match query.record_type {
        RecordType::A => node.v4.len(),
        RecordType::AAAA => node.v6.len(),
        RecordType::SRV => node.services.len(),
        _ => return false,
    };
    n < 2 && query.edns.is_none_or(|edns| edns.cookie.is_none())
}

/// What cannot be answered whatever the name.
fn is_answerable(query: &Query<'_>) -> Result<(), ResponseCode> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Err(ResponseCode::BADVERS);
    }
    if query.class != CLASS_IN {
        return Err(ResponseCode::Refused);
    }
    match query.record_type {
        RecordType::AXFR | RecordType::IXFR => Err(ResponseCode::Refused),
        RecordType::ZERO | RecordType::OPT => Err(ResponseCode::FormErr),
        // TKEY, TSIG, MAILB, MAILA: they ask for actions, or for what was abolished.
        other if matches!(u16::from(other), 249 | 250 | 253 | 254) => Err(ResponseCode::NotImp),
        _ => Ok(()),
    }
}
