//! Health and readiness checks of one task: made in time, judged as Marathon judges them (spec 6.4).
//!
//! Not here: what a result means for the instance (`core::instance`).

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::process;
use super::spec::{LaunchSpec, Target};
use crate::scheduler::app::{HealthCheck, Protocol, ReadinessCheck};
use crate::scheduler::core::instance::{Readiness, ReadinessResponse};
use crate::scheduler::core::status::Report;

/// Marathon's first check comes this soon even if the interval is longer.
const FIRST_CHECK_WITHIN: Duration = Duration::from_secs(5);

/// As much of a readiness answer is kept as a person would read.
const KEPT_BODY_BYTES: usize = 4096;

/// Makes health check `index` of the task until it is dropped.
pub async fn watch_health(
    spec: Arc<LaunchSpec>,
    index: usize,
    address: Option<IpAddr>,
    reports: mpsc::Sender<Report>,
) {
    let Some(check) = spec.app.health_checks.get(index) else { return };
    let interval = Duration::from_secs(check.interval_seconds.into());
    let timeout = Duration::from_secs(check.timeout_seconds.into());
    let first = if check.is_marathon_level() {
        interval.min(FIRST_CHECK_WITHIN)
    } else {
        Duration::from_secs(check.delay_seconds.into())
    };
    let mut ticks = tokio::time::interval_at(Instant::now() + first, interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match tokio::time::timeout(timeout, check_once(check, &spec, address, timeout)).await {
            Ok(result) => result,
            Err(_) => Err(format!("timed out after {}s", timeout.as_secs())),
        };
        let report = Report::Checked { task: spec.task.clone(), check: index, result };
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

async fn check_once(
    check: &HealthCheck,
    spec: &LaunchSpec,
    address: Option<IpAddr>,
    timeout: Duration,
) -> Result<(), String> {
    if check.protocol() == Protocol::Command {
        let command = check.command.as_ref().ok_or("the check has no command")?;
        let container = spec.containers.get(check.container).ok_or("the check has no container")?;
        return process::run_check(&command.value, spec, container, timeout).await;
    }
    let target = match check.port {
        Some(port) => {
            let own = address.filter(|_| spec.app.has_own_address());
            Some(Target { host: own.map_or_else(|| spec.host.clone(), |own| own.to_string()), port })
        }
        None => check.port_index.and_then(|index| spec.target(index, address)),
    };
    let Target { host, port } = target.ok_or("the task has no such port")?;
    let scheme = match check.protocol() {
        Protocol::Tcp => {
            let connected = TcpStream::connect((host.as_str(), port)).await;
            return connected.map(drop).map_err(|error| error.to_string());
        }
        Protocol::Https => "https",
        _ => "http",
    };
    let response = get(scheme, &host, port, check.path.as_deref().unwrap_or("/")).await?;
    let status = response.status();
    if check.ignore_http1xx && status.is_informational() {
        return Ok(());
    }
    // Marathon's acceptable responses: 200 until 399.
    if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(status.to_string()) }
}

/// Asks until the task says that it is ready.
pub async fn watch_readiness(spec: Arc<LaunchSpec>, address: Option<IpAddr>, reports: mpsc::Sender<Report>) {
    let Some(check) = spec.app.readiness_check() else { return };
    let interval = Duration::from_secs(check.interval_seconds.into());
    let timeout = Duration::from_secs(check.timeout_seconds.into());
    let index = spec.app.ports().iter().position(|port| port.name == Some(&check.port_name));
    let Some(Target { host, port }) = index.and_then(|index| spec.target(index, address)) else { return };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = ask_ready(check, &host, port);
        let Ok(Some(readiness)) = tokio::time::timeout(timeout, asked).await else { continue };
        let ready = readiness.ready;
        if reports.send(Report::Readiness { task: spec.task.clone(), readiness }).await.is_err() || ready {
            return;
        }
    }
}

async fn ask_ready(check: &ReadinessCheck, host: &str, port: u16) -> Option<Readiness> {
    let scheme = if check.protocol == "HTTPS" { "https" } else { "http" };
    let mut response = get(scheme, host, port, &check.path).await.ok()?;
    let status = response.status().as_u16();
    let ready = check.http_status_codes_for_ready.contains(&status);
    if !check.preserve_last_response {
        return Some(Readiness { ready, last_response: None });
    }
    let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let mut body = Vec::new();
    while body.len() < KEPT_BODY_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(KEPT_BODY_BYTES);
    let body = String::from_utf8_lossy(&body).into_owned();
    Some(Readiness { ready, last_response: Some(ReadinessResponse { status, content_type, body }) })
}

async fn get(scheme: &str, host: &str, port: u16, path: &str) -> Result<reqwest::Response, String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let client = client().as_ref().map_err(Clone::clone)?;
    let sent = client.get(format!("{scheme}://{host}:{port}{slash}{path}")).send().await;
    sent.map_err(|error| innermost(&error))
}

/// What went wrong at the bottom: the outermost message only repeats the URL.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match error.status() {
        Some(status) => status.to_string(),
        None => cause.to_string(),
    }
}

type Client = Result<reqwest::Client, String>;

/// The client that fetches files: as a browser would, with certificates checked.
pub fn fetch_client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let built = reqwest::Client::builder().user_agent("waymark fetcher").build();
        built.map_err(|error| error.to_string())
    })
}

/// One client for all checks: no redirects, no proxy, any certificate, a new connection each time.
fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // Somebody else may have chosen a provider already; any will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .danger_accept_invalid_certs(true)
            .pool_max_idle_per_host(0)
            .user_agent("waymark health check")
            .build()
            .map_err(|error| error.to_string())
    })
}
