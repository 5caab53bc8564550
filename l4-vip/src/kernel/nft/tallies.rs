//! What was counted of each backend. Its slots count the connections that it was given, and what they counted for a
//! backend that lost them is kept here as long as it belongs to the frontend. Bytes have elements of their own; when a
//! backend leaves its frontend, another element goes on with what they have counted.
//!
//! Elements keep their counts when the agent ends; what is kept here begins anew with it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use super::batch::Value;
use super::contents;
use super::edits::{Edits, Inherited, Left, WEIGHING};
use super::elements::{read_backend, read_frontend, read_member, read_slot};
use super::entry::departed;
use super::expression::Count;
use super::family::{Family, SetKind};
use crate::kernel::{Counted, Frontend, KernelCounters, Service};
use crate::netlink::Socket;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Elements that are asked for at a time: their answers must fit into the socket's buffer.
const N_ASKED: usize = 64;

/// What a change makes of a frontend.
pub(super) enum Now<'a> {
    Unchanged,
    Gone,
    Is(&'a Service),
}

#[derive(Debug, Default)]
pub(super) struct Tallies(Map<(Frontend, SocketAddr), u64>);

/// Reads what elements that go have counted, for those that go on counting for them.
pub(super) fn carry(socket: &mut Socket, edits: &mut Edits) -> io::Result<()> {
    for family in Family::ALL {
        for kind in WEIGHING {
            let of_set = |i: &&Inherited| i.kind == kind && i.family == family;
            let inherited: Vec<&Inherited> = edits.inherited.iter().filter(of_set).collect();
            let mut carried: HashMap<Vec<u8>, Count> = HashMap::new();
            for group in inherited.chunks(N_ASKED) {
                let keys: Vec<&[u8]> = group.iter().map(|inherited| &inherited.from[..]).collect();
                contents::counts_of(socket, family.set(kind), &keys, |key, count| {
                    if let Some(inherited) = group.iter().find(|inherited| inherited.from == key) {
                        *carried.entry(inherited.heir.clone()).or_default() += count;
                    }
                })?;
            }
            let carried = carried.into_iter().map(|(heir, count)| (heir, Value::Counted(count)));
            edits.carried.entry(kind).or_default().extend(carried);
        }
    }
    Ok(())
}

impl Tallies {
    /// Takes in what slots have counted that are about to be given to another backend.
    pub(super) fn keep(&mut self, socket: &mut Socket, left: &[Left]) -> io::Result<()> {
        for family in Family::ALL {
            let of_family: Vec<&Left> =
                left.iter().filter(|left| Family::of(left.frontend.address.ip()) == family).collect();
            for group in of_family.chunks(N_ASKED) {
                let keys: Vec<&[u8]> = group.iter().map(|left| &left.slot[..]).collect();
                contents::counts_of(socket, family.set(SetKind::Slots), &keys, |key, count| {
                    if let Some(left) = group.iter().find(|left| left.slot == key) {
                        *self.0.entry((left.frontend, left.backend)).or_default() += count.n_packets;
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Forgets what was counted for backends that their frontend has no more.
    pub(super) fn forget<'a>(&mut self, now: impl Fn(&Frontend) -> Now<'a>) {
        self.0.retain(|(frontend, backend), _| match now(frontend) {
            Now::Unchanged => true,
            Now::Gone => false,
            Now::Is(service) => service.backends.iter().any(|b| b.address == *backend),
        });
    }

    /// Of every frontend, and of every backend, those that drain included.
    pub(super) fn read(&self, socket: &mut Socket) -> io::Result<Counted> {
        let mut frontends = read_frontends(socket)?;
        let mut backends = Vec::new();
        for ((frontend, backend), counted) in self.read_backends(socket)? {
            if let Some(of_all) = frontends.get_mut(&frontend) {
                of_all.bytes_in += counted.bytes_in;
                of_all.bytes_out += counted.bytes_out;
            }
            if backend != departed(frontend) {
                backends.push((frontend, backend, counted));
            }
        }
        Ok(Counted { frontends: frontends.into_iter().collect(), backends })
    }

    fn read_backends(&self, socket: &mut Socket) -> io::Result<Map<(Frontend, SocketAddr), KernelCounters>> {
        let connections = |n: &u64| KernelCounters { n_connections: *n, ..KernelCounters::default() };
        let mut counters: Map<_, _> = self.0.iter().map(|(key, n)| (*key, connections(n))).collect();
        for family in Family::ALL {
            contents::counts(socket, family.set(SetKind::Slots), |key, value, count| {
                let backend = value.and_then(|value| read_backend(family, value));
                if let (Some((frontend, _)), Some(backend)) = (read_slot(family, key), backend) {
                    counters.entry((frontend, backend)).or_default().n_connections += count.n_packets;
                }
            })?;
            for kind in WEIGHING {
                contents::counts(socket, family.set(kind), |key, _, count| {
                    let Some(member) = read_member(family, key) else { return };
                    let counters = counters.entry(member).or_default();
                    match kind {
                        SetKind::BytesIn => counters.bytes_in += count.n_bytes,
                        _ => counters.bytes_out += count.n_bytes,
                    }
                })?;
            }
        }
        Ok(counters)
    }
}

/// Connections and refusals.
fn read_frontends(socket: &mut Socket) -> io::Result<Map<Frontend, KernelCounters>> {
    let mut counters: Map<Frontend, KernelCounters> = Map::default();
    for family in Family::ALL {
        let mut read = |kind, note: fn(&mut KernelCounters, u64)| {
            contents::counts(socket, family.set(kind), |key, _, count| {
                if let Some(frontend) = read_frontend(family, key) {
                    note(counters.entry(frontend).or_default(), count.n_packets);
                }
            })
        };
        read(SetKind::Connections, |counters, n| counters.n_connections = n)?;
        // What was refused had asked first.
        read(SetKind::Refusals, |counters, n| {
            counters.n_refused = n;
            counters.n_connections = counters.n_connections.saturating_sub(n);
        })?;
    }
    Ok(counters)
}
