//! Writes the answer to one query out of the zone: which records, in which order and section, and what a name that has
//! none is told.
//!
//! Whether a query is answered at all is decided before.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use crate::authority::{Manner, SoaTimes};
use crate::names::WireName;
use crate::wire::{Full, HEADER, Query, Reply, Section};
use crate::zone::{Found, Node, Zone};

const NS_TTL: u32 = 3600;
/// All answers of a name are as good, so every SRV record has the same (RFC 2782).
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 1;

/// One answer from the zone, being written.
pub(super) struct Answer<'a, 'q> {
    pub zone: &'a Zone,
    pub found: Found<'a>,
    pub query: &'a Query<'q>,
    pub rotation: usize,
    /// Space for where in the message the targets of an SRV answer are.
    pub targets: &'a mut Vec<(usize, usize)>,
}

impl Answer<'_, '_> {
    /// `Err`: not all of it fitted.
    pub fn write(&mut self, reply: &mut Reply<'_>) -> (ResponseCode, Result<(), Full>) {
        if self.found.apex.manner == Manner::MesosDns {
            return self.write_as_mesos_dns(reply);
        }
        let Some(node) = self.found.node else {
            return (ResponseCode::NXDomain, self.soa(reply, Section::Authority));
        };
        let written = match self.query.record_type {
            RecordType::SOA if self.found.at_apex => self.soa(reply, Section::Answer),
            RecordType::NS if self.found.at_apex => self.name_server(reply, Section::Answer),
            RecordType::ANY => self.any(reply, node),
            other => match self.records(reply, node, other) {
                Some(written) => written,
                None => self.soa(reply, Section::Authority),
            },
        };
        (ResponseCode::NoError, written)
    }

    /// What Mesos-DNS's own clients have learnt to expect: see [`crate::config::Compat::MesosDns`].
    fn write_as_mesos_dns(&mut self, reply: &mut Reply<'_>) -> (ResponseCode, Result<(), Full>) {
        let node = self.found.node.filter(|node| !node.is_empty() || self.found.at_apex);
        let written = match (self.query.record_type, node) {
            (RecordType::SOA, _) => self.soa(reply, Section::Authority),
            (RecordType::NS, _) => self.name_server(reply, Section::Authority),
            (RecordType::SRV, None) => Ok(()),
            (_, None) => return (ResponseCode::NXDomain, self.soa(reply, Section::Authority)),
            (RecordType::ANY, Some(node)) => [RecordType::SRV, RecordType::A, RecordType::AAAA]
                .into_iter()
                .filter_map(|record_type| self.records(reply, node, record_type))
                .collect::<Result<(), Full>>()
                .and_then(|()| self.soa(reply, Section::Authority))
                .and_then(|()| self.name_server(reply, Section::Authority)),
            (other, Some(node)) => match self.records(reply, node, other) {
                Some(written) => written,
                None => self.soa(reply, Section::Authority),
            },
        };
        (ResponseCode::NoError, written)
    }

    /// The records of one type. `None`: there are none.
    fn records(
        &mut self,
        reply: &mut Reply<'_>,
        node: &Node,
        record_type: RecordType,
    ) -> Option<Result<(), Full>> {
        match record_type {
            RecordType::A if !node.v4.is_empty() => Some(self.v4(reply, &node.v4)),
            RecordType::AAAA if !node.v6.is_empty() => Some(self.v6(reply, &node.v6)),
            RecordType::SRV if !node.services.is_empty() => Some(self.services(reply, node)),
            RecordType::PTR if !node.pointers.is_empty() => Some(self.pointers(reply, &node.pointers)),
            _ => None,
        }
    }

    /// One set of records is answer enough (RFC 8482 section 4.1).
    fn any(&mut self, reply: &mut Reply<'_>, node: &Node) -> Result<(), Full> {
        let types = [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR];
        if let Some(written) = types.into_iter().find_map(|t| self.records(reply, node, t)) {
            return written;
        }
        let section = if self.found.at_apex { Section::Answer } else { Section::Authority };
        self.soa(reply, section)
    }

    fn pointers(&self, reply: &mut Reply<'_>, names: &[WireName]) -> Result<(), Full> {
        rotated(names, self.rotation).into_iter().flatten().try_for_each(|name| {
            reply.record(Section::Answer, HEADER, RecordType::PTR, self.found.ttl(), &[name.as_bytes()])
        })
    }

    fn v4(&self, reply: &mut Reply<'_>, addresses: &[Ipv4Addr]) -> Result<(), Full> {
        let (kind, all) = ((RecordType::A, self.found.ttl()), rotated(addresses, self.rotation));
        reply.records_of(Section::Answer, HEADER, kind, all, Ipv4Addr::octets)
    }

    fn v6(&self, reply: &mut Reply<'_>, addresses: &[Ipv6Addr]) -> Result<(), Full> {
        let (kind, all) = ((RecordType::AAAA, self.found.ttl()), rotated(addresses, self.rotation));
        reply.records_of(Section::Answer, HEADER, kind, all, Ipv6Addr::octets)
    }

    /// SRV records, and as many addresses of their targets as fit (RFC 2782).
    fn services(&mut self, reply: &mut Reply<'_>, node: &Node) -> Result<(), Full> {
        let ttl = self.found.ttl();
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
            // Mesos-DNS gives one address of each family.
            let n = if self.found.apex.manner == Manner::MesosDns { 1 } else { usize::MAX };
            if additional(reply, *owner, ttl, first(&node.v4, n), first(&node.v6, n)).is_err() {
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
        let SoaTimes { refresh, retry, expire, minimum } = apex.times;
        // A negative answer lives as long as the SOA record that comes with it (RFC 2308 section 5).
        let ttl = if section == Section::Authority { minimum } else { self.found.ttl() };
        let numbers = [self.zone.serial, refresh, retry, expire, minimum].map(u32::to_be_bytes);
        let (server, contact) = (apex.name_server.as_bytes(), apex.contact.as_bytes());
        let data = [server, contact, numbers.as_flattened()];
        reply.record(section, self.apex_in_question(), RecordType::SOA, ttl, &data)
    }

    fn name_server(&self, reply: &mut Reply<'_>, section: Section) -> Result<(), Full> {
        let server = self.found.apex.name_server.as_bytes();
        reply.record(section, self.apex_in_question(), RecordType::NS, NS_TTL, &[server])?;
        let owner = reply.len() - server.len();
        if let Some(node) = self.zone.node(server) {
            let fitted = additional(reply, owner, self.found.apex.ttl, &node.v4, &node.v6);
            // Addresses of the server are a courtesy; without them the answer is still whole.
            return fitted.or(Ok(()));
        }
        Ok(())
    }

    /// Where in the message the owner of SOA and NS records begins: the apex's name is a part of the question, by an
    /// alias or not. Mesos-DNS has no apex and takes the question's name.
    fn apex_in_question(&self) -> usize {
        if self.found.apex.manner == Manner::MesosDns {
            return HEADER;
        }
        let apex = self.found.apex.name.as_bytes().len();
        let apex_as_asked = match self.found.alias {
            None => apex,
            Some(alias) => apex - alias.stands_for.as_bytes().len() + alias.alias.as_bytes().len(),
        };
        HEADER + self.query.name().len() - apex_as_asked
    }
}

fn additional(
    reply: &mut Reply<'_>,
    owner: usize,
    ttl: u32,
    v4: &[Ipv4Addr],
    v6: &[Ipv6Addr],
) -> Result<(), Full> {
    reply.records_of(Section::Additional, owner, (RecordType::A, ttl), [v4, &[]], Ipv4Addr::octets)?;
    reply.records_of(Section::Additional, owner, (RecordType::AAAA, ttl), [v6, &[]], Ipv6Addr::octets)
}

fn first<T>(records: &[T], n: usize) -> &[T] {
    &records[..records.len().min(n)]
}

/// All of `records`, beginning anywhere, so that clients that take the first spread over all.
fn rotated<T>(records: &[T], rotation: usize) -> [&[T]; 2] {
    let (before, from) = records.split_at(first_of(records.len(), rotation));
    [from, before]
}

fn rotated_indices(n: usize, rotation: usize) -> impl Iterator<Item = usize> {
    let first = first_of(n, rotation);
    (first..n).chain(0..first)
}

/// Most names have one record, for which there is nothing to divide.
fn first_of(n: usize, rotation: usize) -> usize {
    if n < 2 { 0 } else { rotation % n }
}
