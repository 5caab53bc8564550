//! Answers one packet from the zone: what the rules of DNS and of the zones say, and nothing that needs waiting.
//!
//! It does no IO. A query for somebody else's name is handed back to the caller, who may forward it.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use crate::config::MIN_UDP_PAYLOAD_BYTES;
use crate::forward::Foreign;
use crate::names::WireName;
use crate::stats::{Counters, Silence, Transport};
use crate::wire::{Full, HEADER, Query, Rejected, Reply, Section, UDP_BYTES_WITHOUT_EDNS, reject};
use crate::zone::{BeforeSync, Found, Node, Zone};

/// A UDP answer is at most so many times its query, so that nobody is worth abusing us against (BCP 140).
const MAX_AMPLIFICATION: usize = 24;
/// DC/OS's; how often secondaries would look, if there were any (RFC 1035 section 3.3.13).
const SOA_REFRESH: u32 = 60;
const SOA_RETRY: u32 = 180;
const SOA_EXPIRE: u32 = 86_400;
/// How long "there is no such name" may be remembered: names come with the next deployment (RFC 2308 section 4).
const SOA_MINIMUM: u32 = 1;
const NS_TTL: u32 = 3600;
/// All answers of a name are as good, so every SRV record has the same (RFC 2782).
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 1;

/// What is to become of a packet.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The reply was appended to the buffer.
    Reply,
    Silence,
    Forward(Foreign),
}

/// Which clients get names of other zones resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recursion {
    /// Nobody: there are no upstreams.
    Unavailable,
    /// Hosts of private networks; never the internet (RFC 5358).
    Private,
}

/// One worker's, or one connection's, way to answers.
#[derive(Debug)]
pub(crate) struct Responder {
    zone: Cache<Arc<ArcSwap<Zone>>, Arc<Zone>>,
    counters: Arc<Counters>,
    udp_payload_bytes: u16,
    recursion: Recursion,
    /// State of the generator that rotates answers.
    turn: u64,
    /// Where the targets of the SRV answer being written are.
    targets: Vec<(usize, usize)>,
}

impl Responder {
    pub fn new(
        zone: Arc<ArcSwap<Zone>>,
        counters: Arc<Counters>,
        udp_payload_bytes: u16,
        recursion: Recursion,
    ) -> Self {
        Self {
            zone: Cache::new(zone),
            counters,
            udp_payload_bytes,
            recursion,
            turn: rand::random(),
            targets: Vec::new(),
        }
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
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Rejected::Silently(reason)) => {
                self.counters.silent(reason);
                return Outcome::Silence;
            }
            Err(Rejected::With(code)) => {
                reject(packet, code, out);
                self.counters.answered(code);
                return Outcome::Reply;
            }
        };
        self.counters.asked(query.record_type);
        let limit = self.limit(&query, transport);
        self.turn = self.turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let zone = self.zone.load();
        let found = zone.find(query.name());
        if found.is_none()
            && is_answerable(&query).is_ok()
            && query.head().recursion_desired
            && self.recursion == Recursion::Private
            && is_private(client)
        {
            return Outcome::Forward(Foreign::new(query.head(), limit));
        }
        let mut reply = Reply::new(query.head(), out, limit, self.udp_payload_bytes);
        if self.recursion == Recursion::Private {
            reply.set_recursion_available();
        }
        let code = match (is_answerable(&query), found) {
            (Err(code), _) => code,
            (Ok(()), None) => ResponseCode::Refused,
            (Ok(()), Some(found)) if !zone.is_synced() && found.apex.before_sync == BeforeSync::Fail => {
                ResponseCode::ServFail
            }
            (Ok(()), Some(found)) => {
                reply.set_authoritative();
                let mut answer = Answer {
                    zone,
                    found,
                    query: &query,
                    rotation: (self.turn >> 33) as usize,
                    targets: &mut self.targets,
                };
                let (code, complete) = answer.write(&mut reply);
                if complete.is_err() {
                    reply.set_truncated();
                    self.counters.truncated();
                }
                code
            }
        };
        reply.finish(code);
        self.counters.answered(code);
        Outcome::Reply
    }

    pub fn silent(&self, reason: Silence) {
        self.counters.silent(reason);
    }

    /// The size that the reply may have, in bytes.
    fn limit(&self, query: &Query<'_>, transport: Transport) -> usize {
        match (transport, query.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => UDP_BYTES_WITHOUT_EDNS,
            (Transport::Udp, Some(edns)) => {
                let offered = edns.payload_bytes.clamp(MIN_UDP_PAYLOAD_BYTES, self.udp_payload_bytes);
                let amplified = (query.packet_bytes() * MAX_AMPLIFICATION).max(UDP_BYTES_WITHOUT_EDNS);
                usize::from(offered).min(amplified)
            }
        }
    }
}

/// What cannot be answered whatever the name.
fn is_answerable(query: &Query<'_>) -> Result<(), ResponseCode> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Err(ResponseCode::BADVERS);
    }
    match query.record_type {
        RecordType::AXFR | RecordType::IXFR => Err(ResponseCode::Refused),
        RecordType::ZERO | RecordType::OPT => Err(ResponseCode::FormErr),
        // TKEY, TSIG, MAILB, MAILA: they ask for actions, or for what was abolished.
        other if matches!(u16::from(other), 249 | 250 | 253 | 254) => Err(ResponseCode::NotImp),
        _ => Ok(()),
    }
}

/// Loopback, private, link-local and carrier-grade shared networks: where a cluster's own hosts are.
fn is_private(client: IpAddr) -> bool {
    match client.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// One answer from the zone, being written.
struct Answer<'a, 'q> {
    zone: &'a Zone,
    found: Found<'a>,
    query: &'a Query<'q>,
    rotation: usize,
    targets: &'a mut Vec<(usize, usize)>,
}

impl Answer<'_, '_> {
    /// `Err`: not all of it fitted.
    fn write(&mut self, reply: &mut Reply<'_>) -> (ResponseCode, Result<(), Full>) {
        let Some(node) = self.found.node else {
            return (ResponseCode::NXDomain, self.soa(reply, Section::Authority));
        };
        let written = match self.query.record_type {
            RecordType::A if !node.v4.is_empty() => self.addresses(reply, &node.v4),
            RecordType::AAAA if !node.v6.is_empty() => self.addresses(reply, &node.v6),
            RecordType::SRV if !node.services.is_empty() => self.services(reply, node),
            RecordType::SOA if self.found.at_apex => self.soa(reply, Section::Answer),
            RecordType::NS if self.found.at_apex => self.name_server(reply),
            RecordType::ANY => self.any(reply, node),
            _ => self.soa(reply, Section::Authority),
        };
        (ResponseCode::NoError, written)
    }

    /// One set of records is answer enough (RFC 8482 section 4.1).
    fn any(&mut self, reply: &mut Reply<'_>, node: &Node) -> Result<(), Full> {
        if !node.v4.is_empty() {
            self.addresses(reply, &node.v4)
        } else if !node.v6.is_empty() {
            self.addresses(reply, &node.v6)
        } else if !node.services.is_empty() {
            self.services(reply, node)
        } else {
            let section = if self.found.at_apex { Section::Answer } else { Section::Authority };
            self.soa(reply, section)
        }
    }

    fn addresses<A: Address>(&self, reply: &mut Reply<'_>, addresses: &[A]) -> Result<(), Full> {
        rotated(addresses, self.rotation).try_for_each(|address| {
            let (record_type, ttl) = (A::RECORD_TYPE, self.found.apex.ttl);
            reply.record(Section::Answer, HEADER, record_type, ttl, &[address.octets().as_ref()])
        })
    }

    /// SRV records, and as many addresses of their targets as fit (RFC 2782).
    fn services(&mut self, reply: &mut Reply<'_>, node: &Node) -> Result<(), Full> {
        let ttl = self.found.apex.ttl;
        self.targets.clear();
        for at in rotated_indices(node.services.len(), self.rotation) {
            let service = &node.services[at];
            let [p0, p1] = SRV_PRIORITY.to_be_bytes();
            let [w0, w1] = SRV_WEIGHT.to_be_bytes();
            let [port0, port1] = service.port.to_be_bytes();
            let fixed = [p0, p1, w0, w1, port0, port1];
            let (own, zone) = self.spelling(&service.target);
            reply.record(Section::Answer, HEADER, RecordType::SRV, ttl, &[&fixed, own, zone])?;
            self.targets.push((at, reply.len() - own.len() - zone.len()));
        }
        // Services are sorted by target, so those of one target are neighbours.
        for (i, (at, owner)) in self.targets.iter().enumerate() {
            let target = &node.services[*at].target;
            if i > 0 && node.services[self.targets[i - 1].0].target == *target {
                continue;
            }
            let Some(node) = self.zone.node(target.as_bytes()) else { continue };
            let fitted = additional(reply, *owner, ttl, &node.v4)
                .and_then(|()| additional(reply, *owner, ttl, &node.v6));
            if fitted.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// A name of the zone as somebody who asked by an alias expects it, in two parts. Targets are not compressed
    /// (RFC 2782).
    fn spelling<'n>(&self, name: &'n WireName) -> (&'n [u8], &'n [u8])
    where
        Self: 'n,
    {
        let name = name.as_bytes();
        match self.found.alias {
            Some(alias) => match name.strip_suffix(alias.stands_for.as_bytes()) {
                Some(own) => (own, alias.alias.as_bytes()),
                None => (name, &[]),
            },
            None => (name, &[]),
        }
    }

    fn soa(&self, reply: &mut Reply<'_>, section: Section) -> Result<(), Full> {
        let apex = self.found.apex;
        // A negative answer lives as long as the SOA record that comes with it (RFC 2308 section 5).
        let ttl = if section == Section::Authority { SOA_MINIMUM } else { apex.ttl };
        let numbers =
            [self.zone.serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, SOA_MINIMUM].map(u32::to_be_bytes);
        let (server, contact) = (apex.name_server.as_bytes(), apex.contact.as_bytes());
        let data = [server, contact, numbers.as_flattened()];
        reply.record(section, self.apex_in_question(), RecordType::SOA, ttl, &data)
    }

    fn name_server(&self, reply: &mut Reply<'_>) -> Result<(), Full> {
        let server = self.found.apex.name_server.as_bytes();
        reply.record(Section::Answer, self.apex_in_question(), RecordType::NS, NS_TTL, &[server])?;
        let owner = reply.len() - server.len();
        if let Some(node) = self.zone.node(server) {
            let ttl = self.found.apex.ttl;
            let fitted = additional(reply, owner, ttl, &node.v4)
                .and_then(|()| additional(reply, owner, ttl, &node.v6));
            // Addresses of the server are a courtesy; without them the answer is still whole.
            return fitted.or(Ok(()));
        }
        Ok(())
    }

    /// Where in the message the apex's name begins: it is a part of the question, by an alias or not.
    fn apex_in_question(&self) -> usize {
        let apex = self.found.apex.name.as_bytes().len();
        let apex_as_asked = match self.found.alias {
            None => apex,
            Some(alias) => apex - alias.stands_for.as_bytes().len() + alias.alias.as_bytes().len(),
        };
        HEADER + self.query.name().len() - apex_as_asked
    }
}

fn additional<A: Address>(
    reply: &mut Reply<'_>,
    owner: usize,
    ttl: u32,
    addresses: &[A],
) -> Result<(), Full> {
    addresses.iter().try_for_each(|address| {
        reply.record(Section::Additional, owner, A::RECORD_TYPE, ttl, &[address.octets().as_ref()])
    })
}

/// All of `records`, beginning anywhere, so that clients that take the first spread over all.
fn rotated<T>(records: &[T], rotation: usize) -> impl Iterator<Item = &T> {
    rotated_indices(records.len(), rotation).map(|at| &records[at])
}

fn rotated_indices(n: usize, rotation: usize) -> impl Iterator<Item = usize> {
    let first = rotation.checked_rem(n).unwrap_or(0);
    (first..n).chain(0..first)
}

trait Address {
    const RECORD_TYPE: RecordType;
    type Octets: AsRef<[u8]>;
    fn octets(&self) -> Self::Octets;
}

impl Address for std::net::Ipv4Addr {
    const RECORD_TYPE: RecordType = RecordType::A;
    type Octets = [u8; 4];
    fn octets(&self) -> [u8; 4] {
        Self::octets(self)
    }
}

impl Address for std::net::Ipv6Addr {
    const RECORD_TYPE: RecordType = RecordType::AAAA;
    type Octets = [u8; 16];
    fn octets(&self) -> [u8; 16] {
        Self::octets(self)
    }
}

#[cfg(test)]
mod tests {
    use event_watcher::catalog::{Catalog, CatalogConfig};
    use hickory_server::proto::op::Message;
    use proptest::prelude::*;

    use super::*;
    use crate::compile::Compiler;
    use crate::config::Config;

    /// Knows the names of the cluster, which have every type of record but SRV.
    fn responder() -> Responder {
        let catalog = CatalogConfig { framework: "marathon".into(), vip_pools: vec![] };
        let snapshot = Catalog::new(catalog).snapshot().expect("the first is always taken");
        let mut compiler = Compiler::new(&Config::default());
        compiler.apply_without_new_vips(&snapshot);
        let zone = Arc::new(ArcSwap::from_pointee(compiler.zone()));
        Responder::new(zone, Arc::default(), 1232, Recursion::Unavailable)
    }

    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let label = prop_oneof![
            Just(b"mesos".to_vec()),
            Just(b"thisdcos".to_vec()),
            Just(b"directory".to_vec()),
            Just(b"global".to_vec()),
            Just(b"l4lb".to_vec()),
            Just(b"dclb".to_vec()),
            Just(b"localhost".to_vec()),
            Just(b"leader".to_vec()),
            Just(b"*".to_vec()),
            proptest::collection::vec(any::<u8>(), 1..64),
        ];
        let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        let name = proptest::collection::vec(label, 0..9);
        (name, any::<u16>(), any::<bool>(), edits, any::<prop::sample::Index>(), 0..20_u8).prop_map(
            |(name, record_type, edns, edits, cut, whether_cut)| {
                let mut packet = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
                for label in name {
                    packet.push(label.len() as u8);
                    packet.extend(label);
                }
                packet.push(0);
                packet.extend((record_type & 0xff).to_be_bytes());
                packet.extend([0, 1]);
                if edns {
                    packet.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
                }
                for (at, byte) in edits {
                    let at = at.index(packet.len());
                    packet[at] = byte;
                }
                if whether_cut == 0 {
                    packet.truncate(cut.index(packet.len()));
                }
                packet
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whatever comes in: no panic, and what goes out is whole, within its limit, and about the same question.
        #[test]
        fn every_reply_is_well_formed(packet in packet()) {
            let mut reply = Vec::new();
            let outcome = responder().respond(&packet, Transport::Udp, [127, 0, 0, 1].into(), &mut reply);
            match outcome {
                Outcome::Reply => {
                    prop_assert!(reply.len() <= 1232);
                    prop_assert_eq!(&reply[..2], &packet[..2]);
                    let message = Message::from_vec(&reply);
                    prop_assert!(message.is_ok(), "{:?} {:x?}", message, reply);
                    if reply[5] == 1 {
                        let question = &reply[HEADER..];
                        let n = question.len().min(packet.len() - HEADER);
                        let n = n.min(question.iter().position(|b| *b == 0).unwrap_or(0));
                        prop_assert_eq!(&question[..n], &packet[HEADER..][..n]);
                    }
                }
                Outcome::Silence => prop_assert!(reply.is_empty()),
                Outcome::Forward(_) => prop_assert!(false, "there is nobody to forward to"),
            }
        }
    }
}
