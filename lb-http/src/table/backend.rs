//! One service as it is served: its labels, its pool, its servers, and what was counted of them.
//!
//! Made by `compile_backend`; nothing here changes but what workers count.

use std::net::SocketAddr;
use std::sync::Arc;

use event_watcher::catalog::ServiceId;
use http::HeaderValue;
use l4_vip::pool::{EndpointState, Pool};
use l4_vip::stats::{Counters, CountersView};

use super::Standing;
use crate::health::{CheckState, Judged};
use crate::labels::{Affinity, Mode, ServiceLabels};
use crate::queue::Queue;
use crate::stats::{Series, Totals};

/// One service of one app, as HAProxy means the word.
#[derive(Debug)]
pub struct Backend {
    pub service: ServiceId,
    /// Marathon-LB's name; the frontend of the service port has it too.
    pub name: Arc<str>,
    pub app_version: Arc<str>,
    pub labels: Arc<ServiceLabels>,
    pub pool: Pool,
    /// One for each of the pool's endpoints, at the same index.
    pub servers: Box<[Server]>,
    pub series: Arc<Series>,
    /// The series of the service port's frontend.
    pub frontend: Arc<Series>,
    /// What the forwarder counts of it in mode tcp.
    pub tcp: Arc<TcpCounters>,
    /// Requests that wait for room, where an endpoint's are limited.
    pub(crate) queue: Arc<Queue>,
    pub standing: Standing,
    /// Endpoints that are in rotation for their own sake, not because no other is.
    pub n_healthy: usize,
}

/// A compiled backend equals only itself: another one of the same service was compiled from something else.
impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Backend {}

/// In mode tcp, by the way that connections take.
#[derive(Debug, Default)]
pub struct TcpCounters {
    pub of_port: Counters,
    /// By the server name of their TLS, which is not ended here.
    pub of_names: Counters,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub name: Arc<str>,
    /// HAProxy's `sid`.
    pub id: u16,
    /// Where the service has session affinity.
    pub cookie: Option<Arc<ServerCookie>>,
    pub host: Arc<str>,
    pub endpoint: Arc<EndpointState>,
    pub series: Arc<Series>,
    pub status: ServerStatus,
    /// What the balancer's own checks say of it, where the service has or had one.
    pub check: Option<Arc<CheckState>>,
    /// Whether the scheduler's checks say something, too.
    pub judged: Judged,
    /// Who is asked. `None`: nobody.
    pub check_address: Option<SocketAddr>,
    pub standing: Standing,
}

/// The sticky cookie that leads to a server.
#[derive(Debug)]
pub struct ServerCookie {
    pub value: String,
    /// Of the header that gives it to a client.
    pub set: HeaderValue,
}

impl Server {
    /// The balancer's own checks say so.
    pub(super) fn is_known_down(&self) -> bool {
        self.check.as_ref().is_some_and(|check| check.is_down())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// The scheduler's health checks pass.
    Up,
    /// The app has no health checks.
    Unchecked,
    /// The scheduler has not said yet.
    Unknown,
    /// Being stopped: finishes what it has.
    Draining,
    /// Taken out of use by a deployment: finishes what it has.
    Disabled,
    /// The scheduler's health checks fail.
    Unhealthy,
    /// The balancer's own checks fail.
    Failing,
}

impl Backend {
    pub fn is_sticky(&self) -> bool {
        self.labels.affinity == Affinity::Cookie && self.labels.mode == Mode::Http
    }

    /// It may have been given something.
    pub fn is_used(&self) -> bool {
        self.series.is_used()
    }

    pub fn totals(&self) -> Totals {
        let totals = self.series.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let ways = [self.tcp.of_port.view(), self.tcp.of_names.view()];
        let sum = |count: fn(&CountersView) -> u64| ways.iter().map(count).sum();
        Totals {
            bytes_in: sum(|w| w.bytes_in),
            bytes_out: sum(|w| w.bytes_out),
            // The series counts those that waited too long for room.
            n_connect_errors: totals.n_connect_errors + sum(|w| w.n_connect_failures + w.n_local_failures),
            n_server_aborts: sum(|w| w.n_resets),
            ..totals
        }
    }

    pub fn totals_of(&self, server: &Server) -> Totals {
        let totals = server.series.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let tcp = server.endpoint.view();
        Totals {
            n_sessions: tcp.n_picked,
            bytes_in: tcp.bytes_in,
            bytes_out: tcp.bytes_out,
            n_connect_errors: tcp.n_connect_failures,
            ..totals
        }
    }

    /// Of the service port.
    pub fn frontend_totals(&self) -> Totals {
        let totals = self.frontend.totals();
        if self.labels.mode == Mode::Http {
            return totals;
        }
        let tcp = self.tcp.of_port.view();
        Totals { bytes_in: tcp.bytes_in, bytes_out: tcp.bytes_out, ..totals }
    }

    /// Requests may wait, or do so, for its endpoints.
    pub(super) fn is_awaited(&self) -> bool {
        self.labels.capacity.per_endpoint.is_some() || self.queue.n_waiting() > 0
    }

    /// A verdict of the balancer's own checks is another one than that it was compiled with.
    pub(super) fn is_overtaken(&self) -> bool {
        let is_down = |s: &Server| s.check_address.is_some() && s.is_known_down();
        self.servers.iter().any(|s| is_down(s) != (s.status == ServerStatus::Failing))
    }

    pub(crate) fn server_of(&self, endpoint: &Arc<EndpointState>) -> Option<usize> {
        self.servers.iter().position(|s| Arc::ptr_eq(&s.endpoint, endpoint))
    }

    /// The usable server that a cookie names.
    pub fn server_of_cookie(&self, value: &[u8]) -> Option<usize> {
        let is_named = |s: &Server| s.cookie.as_ref().is_some_and(|c| c.value.as_bytes() == value);
        self.servers.iter().position(|s| is_named(s) && s.endpoint.is_usable())
    }
}
