//! Our own view of backends and routes, for the stats server's JSON and pages.
//!
//! Shapes here are ours to keep; HAProxy's are in `fields`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{AppId, InstanceId, Rotation};
use serde::Serialize;

use crate::labels::{Case, Mode};
use crate::table::{Backend, Server, Table};

#[derive(Clone, Debug, Serialize)]
pub struct BackendView {
    pub app: AppId,
    pub port_index: usize,
    /// Marathon-LB's name.
    pub name: Arc<str>,
    pub port: u16,
    pub mode: Mode,
    pub balance: l4_vip::policy::Policy,
    pub sticky: bool,
    pub n_in_flight: u32,
    pub n_requests: u64,
    pub requests_per_sec: u32,
    /// By class: 1xx, 2xx, 3xx, 4xx, 5xx, other.
    pub responses: [u64; 6],
    /// From a request's arrival to its response's head: half are below.
    #[serde(rename = "p50_millis", serialize_with = "millis")]
    pub p50: Option<Duration>,
    #[serde(rename = "p99_millis", serialize_with = "millis")]
    pub p99: Option<Duration>,
    pub servers: Vec<ServerView>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerView {
    pub instance: InstanceId,
    pub address: SocketAddr,
    /// Marathon-LB's name.
    pub name: Arc<str>,
    pub rotation: Rotation,
    /// It failed to connect several times in a row; tried last until it has been left alone for a while.
    pub ejected: bool,
    /// The balancer's own check. `None`: it is not checked, or has not been yet.
    pub check: Option<CheckView>,
    pub n_in_flight: u32,
    pub n_requests: u64,
    pub requests_per_sec: u32,
    /// Failed connects and missing or malformed responses.
    pub n_failures: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(rename = "mean_millis", serialize_with = "millis")]
    pub mean_time: Option<Duration>,
    #[serde(rename = "p50_millis", serialize_with = "millis")]
    pub p50: Option<Duration>,
    #[serde(rename = "p99_millis", serialize_with = "millis")]
    pub p99: Option<Duration>,
}

fn millis<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|t| t.as_micros() as f64 / 1000.0).serialize(serializer)
}

#[derive(Clone, Debug, Serialize)]
pub struct CheckView {
    pub down: bool,
    /// As HAProxy's `check_status`: L4OK, L7STS, …
    pub status: &'static str,
    /// Of the HTTP response.
    pub code: Option<u16>,
    pub detail: String,
    pub n_failures: u64,
    #[serde(rename = "duration_millis", serialize_with = "millis")]
    pub took: Option<Duration>,
}

impl CheckView {
    fn of(server: &Server) -> Option<Self> {
        server.check_address?;
        let last = server.check.last()?;
        Some(Self {
            down: server.check.is_down(),
            status: last.result.word(),
            code: last.code,
            detail: last.detail.clone(),
            n_failures: server.check.n_failures(),
            took: Some(last.took),
        })
    }
}

/// One way to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    pub from: RouteFrom,
    pub app: AppId,
    pub port_index: usize,
    pub backend: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFrom {
    ServicePort {
        port: u16,
        mode: Mode,
    },
    Host {
        host: String,
        path: Option<String>,
        ignores_case: bool,
    },
    /// TLS that is passed on as it is.
    ServerName {
        host: String,
    },
    AppId {
        app: String,
    },
}

pub fn backends(table: &Table) -> Vec<BackendView> {
    table.backends.iter().map(|b| backend(b)).collect()
}

fn backend(backend: &Backend) -> BackendView {
    let totals = backend.totals();
    let servers = backend.servers.iter().map(|server| {
        let totals = backend.totals_of(server);
        ServerView {
            instance: server.endpoint.instance.clone(),
            address: server.endpoint.address,
            name: Arc::clone(&server.name),
            rotation: server.endpoint.rotation(),
            ejected: server.endpoint.is_ejected(),
            check: CheckView::of(server),
            n_in_flight: server.endpoint.n_in_flight(),
            n_requests: totals.n_sessions,
            requests_per_sec: server.series.sessions_per_sec().0,
            n_failures: totals.n_connect_errors + totals.n_response_errors,
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            mean_time: totals.mean_time,
            p50: totals.p50,
            p99: totals.p99,
        }
    });
    BackendView {
        app: backend.service.app.clone(),
        port_index: backend.service.port_index,
        name: Arc::clone(&backend.name),
        port: backend.labels.port,
        mode: backend.labels.mode,
        balance: backend.labels.balance,
        sticky: backend.is_sticky(),
        n_in_flight: backend.series.n_current(),
        n_requests: totals.n_requests,
        requests_per_sec: backend.series.requests_per_sec().0,
        responses: totals.responses,
        p50: totals.p50,
        p99: totals.p99,
        servers: servers.collect(),
    }
}

/// Ports, then rules of hosts in the order in which they are tried, hosts whose TLS is passed on, then app ids.
pub fn routes(table: &Table) -> Vec<RouteView> {
    let view = |from, index: usize| {
        let backend: &Backend = &table.backends[index];
        let (app, port_index) = (backend.service.app.clone(), backend.service.port_index);
        RouteView { from, app, port_index, backend: Arc::clone(&backend.name) }
    };
    let mut ports: Vec<_> = table.routes.ports().collect();
    ports.sort_unstable();
    let mut apps: Vec<_> = table.routes.apps().collect();
    apps.sort_unstable();

    let ports = ports.into_iter().map(|(port, index)| {
        view(RouteFrom::ServicePort { port, mode: table.backends[index].labels.mode }, index)
    });
    let hosts = table.routes.rules().iter().map(|(host, rule)| {
        let path = rule.path.as_ref();
        let ignores_case = path.is_some_and(|p| p.case == Case::Ignored);
        let path = path.map(|p| p.prefix.to_string());
        view(RouteFrom::Host { host: host.to_string(), path, ignores_case }, rule.backend)
    });
    let apps = apps.into_iter().map(|(app, index)| view(RouteFrom::AppId { app: app.to_owned() }, index));
    let passed = table.routes.passed_hosts().iter();
    let passed = passed.map(|(host, index)| view(RouteFrom::ServerName { host: host.to_string() }, *index));
    ports.chain(hosts).chain(passed).chain(apps).collect()
}

/// As Marathon-LB's `domain2backend.map`: one line for each host, the first rule's backend.
pub fn vhost_map(table: &Table) -> String {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for (host, rule) in table.routes.rules() {
        first.entry(host.to_string()).or_insert(rule.backend);
    }
    for (host, backend) in table.routes.passed_hosts() {
        first.entry(host.to_string()).or_insert(*backend);
    }
    map(table, first.iter().map(|(host, backend)| (host.as_str(), *backend)).collect())
}

/// As Marathon-LB's `app2backend.map`.
pub fn app_map(table: &Table) -> String {
    map(table, table.routes.apps().collect())
}

fn map(table: &Table, mut lines: Vec<(&str, usize)>) -> String {
    lines.sort_unstable();
    let mut text = String::new();
    for (key, index) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key} {}", table.backends[index].name);
    }
    text
}
