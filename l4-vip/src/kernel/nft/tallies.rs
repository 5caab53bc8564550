//! How many connections each backend was given: its slots count them, and what they counted for a backend that lost them
//! is kept here as long as it belongs to the frontend.
//!
//! Slots keep their counts when the agent ends; what is kept here begins anew with it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use super::contents;
use super::edits::Left;
use super::elements::read_slot;
use super::family::{Family, SetKind};
use crate::kernel::{Frontend, KernelCounters, Service};
use crate::netlink::Socket;

type Counts = HashMap<(Frontend, SocketAddr), u64, foldhash::fast::RandomState>;

/// Elements that are asked for at a time: their answers must fit into the socket's buffer.
const N_ASKED: usize = 64;

/// What a change makes of a frontend.
pub(super) enum Now<'a> {
    Unchanged,
    Gone,
    Is(&'a Service),
}

#[derive(Debug, Default)]
pub(super) struct Tallies(Counts);

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

    /// Of every backend, those that drain included.
    pub(super) fn read(
        &self,
        socket: &mut Socket,
    ) -> io::Result<Vec<(Frontend, SocketAddr, KernelCounters)>> {
        let mut counts = self.0.clone();
        for family in Family::ALL {
            contents::counts(socket, family.set(SetKind::Slots), |key, value, count| {
                let backend = value.and_then(|value| super::elements::read_backend(family, value));
                if let (Some((frontend, _)), Some(backend)) = (read_slot(family, key), backend) {
                    *counts.entry((frontend, backend)).or_default() += count;
                }
            })?;
        }
        let counters = |n_connections| KernelCounters { n_connections, ..KernelCounters::default() };
        Ok(counts.into_iter().map(|((frontend, backend), n)| (frontend, backend, counters(n))).collect())
    }
}
