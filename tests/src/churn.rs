//! App changes under new connections: a scripted scheduler changes apps at a steady pace while connections come at
//! a steady rate, whatever becomes of those before them (an open loop, so a stall shows as what it is).
//!
//! The instances stay up all the while: nothing that fails is their fault.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::client::DEADLINE;
use crate::scheduler::{ScriptedInstance, ScriptedScheduler};
use crate::waymark::Waymark;

/// The app that the connections are for; every fourth change is one of its own.
const APP: &str = "/churn/app0";
const FIRST_PORT: u16 = 20000;
const PACE: Duration = Duration::from_millis(1);
/// Connections come from as many addresses, so that none has more than a client may have.
const N_SOURCES: u32 = 64;
/// More than ever wait where nothing is wrong.
const MOST_WAITING: usize = 20_000;

#[derive(Clone, Copy, Debug)]
pub struct Churn {
    pub n_apps: usize,
    pub n_changes: usize,
    pub changes_per_sec: u32,
    pub connections_per_sec: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub n_ok: u64,
    /// Whatever was not answered with 200, by reason.
    pub failures: BTreeMap<String, u64>,
    /// From when a connection was due to its answer; in order.
    pub times: Vec<Duration>,
    /// Generations that the plane has applied meanwhile.
    pub n_applied: u64,
}

impl Outcome {
    pub fn n_failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// In milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.times.len().saturating_sub(1);
        self.times.get((last as f64 * share).round() as usize).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
    }
}

impl Churn {
    pub async fn run(self, program: &str) -> anyhow::Result<Outcome> {
        let scheduler = ScriptedScheduler::start().await?;
        let backends = [Backend::start(&[]).await?, Backend::start(&[]).await?, Backend::start(&[]).await?];
        let ports = backends.each_ref().map(Backend::port);
        for app in 0..self.n_apps {
            set(&scheduler, app, 0, &ports);
        }
        let waymark = Waymark::serve(program, scheduler.address, &["--planes", "http"]).await?;
        scheduler.stream_opened().await;
        let before = generation(&waymark).await?;

        let stop = Arc::new(tokio::sync::Notify::new());
        let load = tokio::spawn(load(
            waymark.service(FIRST_PORT),
            waymark.address("http"),
            self.connections_per_sec,
            Arc::clone(&stop),
        ));
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.changes_per_sec);
        for change in 1..=self.n_changes {
            pace.tick().await;
            // Its own changes take turns with the others'.
            let app = if change % 4 == 0 { 0 } else { 1 + change % (self.n_apps - 1) };
            set(&scheduler, app, change, &ports);
            let data = json!({"eventType": "api_post_event", "appDefinition": {"id": id(app)}});
            scheduler.event("api_post_event", &data)?;
        }
        let last = format!("v{}.{} ", self.n_changes, name(last_app(self)));
        waymark.until("/_haproxy_getvhostmap", "the last change", |map| map.text().contains(&last)).await?;
        stop.notify_one();
        let mut outcome = load.await??;
        outcome.n_applied = generation(&waymark).await? - before;
        waymark.stop().await?;
        Ok(outcome)
    }
}

fn last_app(churn: Churn) -> usize {
    if churn.n_changes.is_multiple_of(4) { 0 } else { 1 + churn.n_changes % (churn.n_apps - 1) }
}

fn id(app: usize) -> String {
    format!("/churn/app{app}")
}

fn name(app: usize) -> String {
    format!("app{app}.test")
}

/// Each change brings another virtual host, and takes one of the three instances away or brings it back.
fn set(scheduler: &ScriptedScheduler, app: usize, change: usize, ports: &[u16; 3]) {
    let n = if change % 8 < 4 { 3 } else { 2 };
    let instances = ports
        .iter()
        .take(n)
        .map(|port| ScriptedInstance { task_id: format!("churn_app{app}.{port}"), port: *port });
    let labels = json!({"HAPROXY_0_VHOST": format!("{0},v{change}.{0}", name(app))});
    scheduler.set_app(&id(app), FIRST_PORT + app as u16, labels, &instances.collect::<Vec<_>>());
}

async fn generation(waymark: &Waymark) -> anyhow::Result<u64> {
    let status = waymark.stats("/api/status").await?.json()?;
    status["generation"].as_u64().with_context(|| format!("no generation in {status}"))
}

/// New connections by service port and by virtual host, in turns.
async fn load(
    service: SocketAddr,
    hosts: SocketAddr,
    per_sec: u32,
    stop: Arc<tokio::sync::Notify>,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut waiting: JoinSet<anyhow::Result<Duration>> = JoinSet::new();
    let mut pace = tokio::time::interval(PACE);
    // What is due is worked out from the clock, so there is nothing to catch up with.
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut n_sent = 0_u32;
    let stopped = stop.notified();
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            _ = pace.tick() => {
                while let Some(done) = waiting.try_join_next() {
                    outcome.note(done?);
                }
                let due = (began.elapsed().as_secs_f64() * f64::from(per_sec)) as u32;
                anyhow::ensure!(waiting.len() < MOST_WAITING, "{MOST_WAITING} connections wait for an answer");
                while n_sent < due {
                    let at = began + Duration::from_secs_f64(f64::from(n_sent) / f64::from(per_sec));
                    let (number, address) = (n_sent, if n_sent.is_multiple_of(2) { service } else { hosts });
                    waiting.spawn(async move {
                        match tokio::time::timeout(DEADLINE, ask(number, address)).await {
                            Ok(asked) => asked.map(|()| at.elapsed()),
                            Err(_) => Err(anyhow::anyhow!("no answer within {DEADLINE:?}")),
                        }
                    });
                    n_sent += 1;
                }
            }
        }
    }
    while let Some(done) = waiting.join_next().await {
        outcome.note(done?);
    }
    outcome.times.sort_unstable();
    Ok(outcome)
}

impl Outcome {
    fn note(&mut self, answer: anyhow::Result<Duration>) {
        match answer {
            Ok(time) => {
                self.n_ok += 1;
                self.times.push(time);
            }
            Err(error) => *self.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }
}

async fn ask(number: u32, address: SocketAddr) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::from_bits(0x7fc8_0001 + number % N_SOURCES);
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect(address).await.context("connect")?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", name(0));
    stream.write_all(request.as_bytes()).await.context("send")?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await.context("read")?;
    let status = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    anyhow::ensure!(status == b"HTTP/1.1 200 OK", "answered {:?} for {APP}", String::from_utf8_lossy(status));
    anyhow::ensure!(answer.ends_with(b"\n\n"), "the answer was cut");
    Ok(())
}
