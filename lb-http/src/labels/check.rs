//! What an app's health check, as the balancer runs it itself, comes to: Marathon-LB's `check` options.
//!
//! It probes nothing: that is `health`'s.

use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{App, HealthCheck, HealthCheckProtocol};

use super::Mode;
use super::reader::Reader;
use crate::access::Scheme;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub kind: CheckKind,
    /// Which port of the instance is probed.
    pub port: CheckPort,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row until a server that is down is up.
    pub rise: u32,
    /// Failures in a row until a server that is up is down.
    pub fall: u32,
    /// Failures of a server that is so young do not count while the scheduler has no verdict about it either.
    pub grace: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    Tcp,
    Http { scheme: Scheme, method: Arc<str>, path: Arc<str>, host: Option<Arc<str>> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckPort {
    /// The one that traffic goes to.
    Own,
    /// Of another service of the same instance.
    Service(usize),
    Fixed(u16),
}

/// Marathon's own defaults.
const INTERVAL_SECONDS: u32 = 60;
const TIMEOUT_SECONDS: u32 = 20;
const MAX_FAILURES: u32 = 3;
const GRACE_SECONDS: u32 = 300;
/// HAProxy's default.
const RISE: u32 = 2;

/// Marathon-LB's `get_health_check`: the first one with a port of its own, which counts for every service, or with the
/// service's index.
pub(super) fn of_service(app: &App, index: usize) -> Option<&HealthCheck> {
    app.health_checks.iter().find(|c| match (c.port, c.port_index) {
        (Some(_), _) => true,
        (None, Some(i)) => i == index,
        (None, None) => index == 0 && c.protocol != HealthCheckProtocol::Command,
    })
}

/// The check that the scheduler has for this service, or for the one that `BACKEND_HEALTHCHECK_PORT_INDEX` names.
pub(super) fn borrowed(reader: &mut Reader<'_>) -> (Option<HealthCheck>, Option<usize>) {
    let app = reader.app();
    let own = of_service(app, reader.index).cloned();
    let Some(other) = reader.number::<usize>("BACKEND_HEALTHCHECK_PORT_INDEX") else { return (own, None) };
    if app.service(other).is_none() {
        reader.problem(
            "BACKEND_HEALTHCHECK_PORT_INDEX",
            format!("the app has no port {other}"),
            "its own port is checked",
        );
        return (own, None);
    }
    let check = own.or_else(|| of_service(app, other).cloned());
    (check, Some(other).filter(|i| *i != reader.index))
}

pub(super) fn spec(check: &HealthCheck, port_index: Option<usize>, mode: Mode) -> Option<CheckSpec> {
    use HealthCheckProtocol::{Command, Http, Https, MesosHttp, MesosHttps};
    let scheme = match check.protocol {
        Command => return None,
        Http | MesosHttp if mode == Mode::Http => Some(Scheme::Http),
        // Marathon-LB connects only, or asks in plain text what the instance wants to be asked over TLS.
        Https | MesosHttps => Some(Scheme::Https),
        _ => None,
    };
    let seconds = |value: Option<u32>, default| Duration::from_secs(value.unwrap_or(default).max(1).into());
    Some(CheckSpec {
        kind: match scheme {
            Some(scheme) => CheckKind::Http {
                scheme,
                method: "GET".into(),
                path: check.path.clone().unwrap_or_else(|| "/".into()),
                host: None,
            },
            None => CheckKind::Tcp,
        },
        port: match (check.port, port_index) {
            (Some(port), _) => CheckPort::Fixed(port),
            (None, Some(index)) => CheckPort::Service(index),
            (None, None) => CheckPort::Own,
        },
        interval: seconds(check.interval_seconds, INTERVAL_SECONDS),
        timeout: seconds(check.timeout_seconds, TIMEOUT_SECONDS),
        rise: RISE,
        fall: check.max_consecutive_failures.unwrap_or(MAX_FAILURES).saturating_add(1),
        grace: Duration::from_secs(check.grace_period_seconds.unwrap_or(GRACE_SECONDS).into()),
    })
}
