//! How many connections each backend was given: its slots count them, and what they counted for a backend that lost
//! them is kept here as long as it belongs to the frontend.
//!
//! Slots keep their counts when the agent ends; what is kept here begins anew with it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use super::contents;
use super::edits::Left;
use super::elements::{read_backend, read_frontend, read_slot};
use super::family::{Family, SetKind};
use super::ledger::Ledger;
use crate::kernel::{Counted, Frontend, KernelCounters, Service};
use crate::netlink::Socket;

type Connections = HashMap<(Frontend, SocketAddr), u64, foldhash::fast::RandomState>;

/// Elements that are asked for at a time: their answers must fit into the socket's buffer.
const N_ASKED: usize = 64;

/// What a change makes of a frontend.
pub(super) enum Now<'a> {
    Unchanged,
    Gone,
    Is(&'a Service),
}

#[derive(Debug, Default)]
pub(super) struct Tallies(Connections);

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
                        *self.0.entry((left.frontend, left.backend)).or_default() += count;
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

    /// Of every frontend, and of every backend, those that drain included. The ledger has the bytes.
    pub(super) fn read(&self, socket: &mut Socket, ledger: &Ledger) -> io::Result<Counted> {
        let (mut frontends, mut backends) = ledger.read();
        for (key, n_connections) in &self.0 {
            backends.entry(*key).or_default().n_connections += n_connections;
        }
        for family in Family::ALL {
            contents::counts(socket, family.set(SetKind::Slots), |key, value, count| {
                let backend = value.and_then(|value| read_backend(family, value));
                if let (Some((frontend, _)), Some(backend)) = (read_slot(family, key), backend) {
                    backends.entry((frontend, backend)).or_default().n_connections += count;
                }
            })?;
            let mut read = |kind, note: fn(&mut KernelCounters, u64)| {
                contents::counts(socket, family.set(kind), |key, _, count| {
                    if let Some(frontend) = read_frontend(family, key) {
                        note(frontends.entry(frontend).or_default(), count);
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
        let backends =
            backends.into_iter().map(|((frontend, backend), counters)| (frontend, backend, counters));
        Ok(Counted {
            frontends: frontends.into_iter().collect(),
            backends: backends.collect(),
            n_unheard: ledger.n_unheard(),
        })
    }
}
