//! A service as it stands in the maps, and what of a service can stand there.
//!
//! It touches no map.

use std::net::SocketAddr;

use event_watcher::catalog::Protocol;

use super::super::{Backend, Service};
use super::layout::{BackendValue, ServiceValue, SlotValue};
use super::weights;

#[derive(Clone, Debug)]
pub struct Held {
    pub value: ServiceValue,
    pub backends: Vec<HeldBackend>,
    /// Its elements do not fit together: it is written anew, whatever is wanted.
    pub damaged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBackend {
    pub id: u32,
    pub address: SocketAddr,
    pub weight: u16,
}

impl Held {
    pub fn is(&self, service: &Service) -> bool {
        !self.damaged
            && self.value.affinity == service.affinity
            && self.backends.len() == service.backends.len()
            && service.backends.iter().all(|backend| {
                self.backends.iter().any(|b| b.address == backend.address && b.weight == backend.weight)
            })
    }

    pub fn has(&self, id: u32) -> bool {
        self.backends.iter().any(|b| b.id == id)
    }

    pub fn find(&self, address: SocketAddr) -> Option<&HeldBackend> {
        self.backends.iter().find(|b| b.address == address)
    }

    pub fn slots(&self) -> Vec<SlotValue> {
        let weights: Vec<(u32, u16)> = self.backends.iter().map(|b| (b.id, b.weight)).collect();
        weights::slots(&weights)
    }
}

impl HeldBackend {
    /// `service`: the number of its service.
    pub fn value(&self, service: u32) -> BackendValue {
        BackendValue { address: self.address, weight: self.weight, service }
    }
}

/// The service with the backends that its sockets can reach, each once. An IPv4 socket cannot reach an IPv6 backend;
/// an IPv6 TCP socket reaches an IPv4 one by its mapped address, a datagram does not.
pub fn usable(service: &Service) -> Service {
    let frontend = service.frontend;
    let reaches = |backend: &Backend| match (frontend.address.is_ipv4(), backend.address.is_ipv4()) {
        (true, v4) => v4,
        (false, true) => frontend.protocol == Protocol::Tcp,
        (false, false) => true,
    };
    let mut backends: Vec<Backend> = service.backends.iter().copied().filter(reaches).collect();
    backends.sort_by_key(|backend| backend.address);
    backends.dedup_by(|again, first| {
        let same = again.address == first.address;
        if same {
            first.weight = first.weight.max(again.weight);
        }
        same
    });
    Service { backends, ..service.clone() }
}
