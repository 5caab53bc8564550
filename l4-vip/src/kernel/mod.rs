//! The kernel seam: what a plane inside the kernel holds, how it is changed, and what it counts.
//!
//! Implementations are [`ebpf`] (the backend is picked inside `connect()`) and [`nft`] (addresses are translated in the
//! packet path). Nothing here follows snapshots or decides which plane is used.

mod choice;
pub(crate) mod driver;
pub mod ebpf;
mod error;
pub mod nft;
pub(crate) mod serving;

use std::net::SocketAddr;
use std::time::Duration;

use event_watcher::catalog::Protocol;

pub use choice::{ChoiceConfig, Chosen, OnExit, PlaneChoice, Rejection, UnknownPlane, choose};
pub use error::{ApplyError, OpenError};
pub use serving::ChoiceView;

use crate::stats::{Counts, PlaneKind};

/// An address, port and protocol that the kernel serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub protocol: Protocol,
    pub address: SocketAddr,
}

/// Weight 0: draining, no new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: SocketAddr,
    pub weight: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub frontend: Frontend,
    pub backends: Vec<Backend>,
    /// Session affinity by client address.
    pub affinity: Option<Duration>,
}

#[derive(Clone, Debug)]
pub enum Change {
    Set(Service),
    Remove(Frontend),
}

/// What a plane does not count, see [`KernelPlane::counts`], is 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelCounters {
    pub n_connections: u64,
    pub n_refused: u64,
    /// Connects that the backend refused, did not answer, or that the client gave up.
    pub n_connect_failures: u64,
    /// From clients to the backend. What is counted, and when, is the plane's: see the guide.
    pub bytes_in: u64,
    /// From the backend to clients.
    pub bytes_out: u64,
}

/// What the kernel has counted of everything that it serves.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub frontends: Vec<(Frontend, KernelCounters)>,
    /// Of each backend of each frontend.
    pub backends: Vec<(Frontend, SocketAddr, KernelCounters)>,
    /// How often the kernel had more to tell of connections' ends than it could: bytes of them are missing.
    pub n_unheard: u64,
}

impl std::ops::AddAssign for KernelCounters {
    fn add_assign(&mut self, more: Self) {
        self.n_connections += more.n_connections;
        self.n_refused += more.n_refused;
        self.n_connect_failures += more.n_connect_failures;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
    }
}

pub trait KernelPlane: Send + std::fmt::Debug {
    fn kind(&self) -> PlaneKind;

    /// What it counts at a VIP of this protocol beside connections and refusals.
    fn counts(&self, protocol: Protocol) -> Counts;

    /// Puts the changes in force, all of them or none.
    fn apply(&mut self, changes: &[Change]) -> Result<(), ApplyError>;

    /// Makes the kernel hold exactly `all`: adoption on start, and repair after somebody else changed it. Returns how
    /// many entries differed.
    fn reconcile(&mut self, all: &[Service]) -> Result<usize, ApplyError>;

    /// Whether somebody else changed our kernel state since the last look (cheap; called every 500 ms).
    fn was_changed_by_others(&mut self) -> Result<bool, ApplyError>;

    fn count(&mut self) -> Result<Counted, ApplyError>;

    /// Another plane takes over: takes no new connections from now on, and keeps only what established ones need.
    fn retire(&mut self) -> Result<(), ApplyError> {
        self.flush()
    }

    /// Removes everything of ours from the kernel (`--flush-on-exit`, or another plane takes over).
    fn flush(&mut self) -> Result<(), ApplyError>;
}
