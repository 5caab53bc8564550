//! What a plane itself knows of an endpoint: what is in flight, what failed, what went through it.
//!
//! All of it is relaxed atomics, written on the request path. None of it flows back into the catalog.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use event_watcher::catalog::{InstanceId, Rotation};
use serde::Serialize;

use super::affinity::ID_MASK;
use crate::policy::PeakEwma;

/// Successive failed connects until an endpoint is passed over.
pub(super) const FAILURES_TO_EJECT: u32 = 3;
/// How long the first time. Short, because an instance that has just started may not listen yet.
const FIRST_EJECTION: Duration = Duration::from_millis(50);
/// The time doubles with each failure after it has passed, up to this.
const LONGEST_EJECTION: Duration = Duration::from_secs(10);

/// Moments are times since this one, so that they fit an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since a moment near the start of the process.
pub(super) fn now() -> Duration {
    EPOCH.elapsed()
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

#[derive(Debug)]
pub struct EndpointState {
    pub instance: InstanceId,
    pub address: SocketAddr,
    /// For affinity: tells it from every endpoint of the last 16 million.
    pub(super) id: u32,
    rotation: AtomicU8,
    weight: AtomicU16,
    connect_time: PeakEwma,
    n_in_flight: AtomicU32,
    n_picked: AtomicU64,
    n_connect_failures: AtomicU64,
    n_successive_failures: AtomicU32,
    /// 0: not ejected.
    ejected_until_millis: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// The state of an endpoint at one moment, for people and tools.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    pub instance: InstanceId,
    pub address: SocketAddr,
    pub rotation: Rotation,
    /// Its share of what is new, in relation to the others'. 0: nothing new.
    pub weight: u16,
    pub ejected: bool,
    pub n_in_flight: u32,
    /// Requests or connections given to it.
    pub n_picked: u64,
    pub n_connect_failures: u64,
    /// Peak EWMA of connect times, where the policy measures them.
    pub connect_time_seconds: Option<f64>,
    /// From clients to the endpoint.
    pub bytes_in: u64,
    /// From the endpoint to clients.
    pub bytes_out: u64,
}

impl EndpointState {
    pub fn new(instance: InstanceId, address: SocketAddr) -> Self {
        Self {
            instance,
            address,
            id: NEXT_ID.fetch_add(1, Relaxed) & ID_MASK,
            rotation: AtomicU8::new(Rotation::In as u8),
            weight: AtomicU16::new(1),
            connect_time: PeakEwma::default(),
            n_in_flight: AtomicU32::new(0),
            n_picked: AtomicU64::new(0),
            n_connect_failures: AtomicU64::new(0),
            n_successive_failures: AtomicU32::new(0),
            ejected_until_millis: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    pub fn rotation(&self) -> Rotation {
        match self.rotation.load(Relaxed) {
            r if r == Rotation::In as u8 => Rotation::In,
            r if r == Rotation::Draining as u8 => Rotation::Draining,
            _ => Rotation::Out,
        }
    }

    pub(super) fn set_rotation(&self, rotation: Rotation) {
        self.rotation.store(rotation as u8, Relaxed);
    }

    /// It gets new requests and connections.
    pub fn is_usable(&self) -> bool {
        self.rotation() == Rotation::In && self.weight() > 0
    }

    pub fn weight(&self) -> u16 {
        self.weight.load(Relaxed)
    }

    pub(super) fn set_weight(&self, weight: u16) {
        self.weight.store(weight, Relaxed);
    }

    /// How long a connect that succeeded took.
    pub fn connect_took(&self, time: Duration) {
        self.connect_time.observe(time, now());
    }

    /// What one more connection costs by connect time, in flight and weight; only good for comparing.
    pub(super) fn cost(&self, now: Duration) -> f64 {
        self.connect_time.cost(self.n_in_flight(), now) / f64::from(self.weight().max(1))
    }

    /// Counts one request or connection as given to this endpoint and in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.n_picked.fetch_add(1, Relaxed);
        self.n_in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// The same when fewer than `most` are in flight.
    pub fn begin_below(self: &Arc<Self>, most: u32) -> Option<InFlight> {
        self.n_in_flight.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1)).ok()?;
        self.n_picked.fetch_add(1, Relaxed);
        Some(InFlight(Arc::clone(self)))
    }

    pub fn connect_failed(&self) {
        self.n_connect_failures.fetch_add(1, Relaxed);
        if self.is_ejected() {
            // It was tried because there is nobody else, by many clients perhaps. That says nothing new about it.
            return;
        }
        let n_failures = self.n_successive_failures.fetch_add(1, Relaxed) + 1;
        if let Some(excess) = n_failures.checked_sub(FAILURES_TO_EJECT) {
            let time = FIRST_EJECTION.saturating_mul(1 << excess.min(16)).min(LONGEST_EJECTION);
            self.eject_for(time);
        }
    }

    pub(super) fn eject_for(&self, time: Duration) {
        let until = (now() + time).as_millis() as u64;
        self.ejected_until_millis.store(until.max(1), Relaxed);
    }

    pub fn connect_succeeded(&self) {
        if self.n_successive_failures.load(Relaxed) > 0 {
            self.n_successive_failures.store(0, Relaxed);
            self.ejected_until_millis.store(0, Relaxed);
        }
    }

    /// It failed to connect several times in a row and its time out has not passed yet.
    pub fn is_ejected(&self) -> bool {
        match self.ejected_until_millis.load(Relaxed) {
            0 => false,
            until => (now().as_millis() as u64) < until,
        }
    }

    pub fn n_in_flight(&self) -> u32 {
        self.n_in_flight.load(Relaxed)
    }

    pub fn add_bytes_in(&self, n_bytes: u64) {
        self.bytes_in.fetch_add(n_bytes, Relaxed);
    }

    pub fn add_bytes_out(&self, n_bytes: u64) {
        self.bytes_out.fetch_add(n_bytes, Relaxed);
    }

    pub fn view(&self) -> EndpointView {
        EndpointView {
            instance: self.instance.clone(),
            address: self.address,
            rotation: self.rotation(),
            weight: self.weight(),
            ejected: self.is_ejected(),
            n_in_flight: self.n_in_flight(),
            n_picked: self.n_picked.load(Relaxed),
            n_connect_failures: self.n_connect_failures.load(Relaxed),
            connect_time_seconds: self.connect_time.average().map(|time| time.as_secs_f64()),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}

/// One request or connection in flight at an endpoint.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl InFlight {
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.n_in_flight.fetch_sub(1, Relaxed);
    }
}
