//! Load on an address, with every failure counted and the first few told.
//!
//! It measures nothing but success: figures are the benchmarks' business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::Connection;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Each client keeps one connection for all its requests.
    Kept,
    /// Each request has a connection of its own.
    New,
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub n_clients: usize,
    pub connections: Connections,
    /// Requests per second of all clients together; `None`: as fast as they can.
    pub rate: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub n_ok: u64,
    pub n_failed: u64,
    /// The reasons, with how often each was seen.
    pub reasons: BTreeMap<String, u64>,
    /// Successful answers by their body's first line.
    pub answers: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub struct Load {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    n_sent: AtomicU64,
    outcome: Mutex<Outcome>,
}

impl Load {
    pub fn start(address: SocketAddr, target: &str, shape: Shape) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..shape.n_clients {
            tasks.spawn(client(address, target.to_owned(), shape, Arc::clone(&shared)));
        }
        Self { tasks, shared }
    }

    /// Until it has sent as many more requests.
    pub async fn sends(&self, n: u64) {
        let n_sent = || self.shared.n_sent.load(Relaxed);
        let enough = n_sent() + n;
        while n_sent() < enough {
            tokio::task::yield_now().await;
        }
    }

    pub async fn stop(mut self) -> Outcome {
        self.shared.stop.store(true, Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.shared.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

async fn client(address: SocketAddr, target: String, shape: Shape, shared: Arc<Shared>) {
    let mut pace = shape.rate.map(|rate| {
        let period = Duration::from_secs(1) * shape.n_clients as u32 / rate;
        let mut pace = tokio::time::interval(period);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pace
    });
    let mut own = Outcome::default();
    let mut kept: Option<Connection> = None;
    while !shared.stop.load(Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        shared.n_sent.fetch_add(1, Relaxed);
        let answer = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(address).await?,
            };
            let answer = match shape.connections {
                Connections::Kept => connection.request("GET", &target, &[], b"").await?,
                Connections::New => connection.request("GET", &target, &["Connection: close"], b"").await?,
            };
            let closes = answer.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
            if shape.connections == Connections::Kept && !closes {
                kept = Some(connection);
            }
            anyhow::Ok(answer)
        };
        match answer.await {
            Ok(answer) if answer.status == 200 => {
                own.n_ok += 1;
                let first = answer.text().lines().next().unwrap_or_default().to_owned();
                *own.answers.entry(first).or_default() += 1;
            }
            Ok(answer) => own.failed(format!("status {}: {}", answer.status, answer.text().trim())),
            Err(error) => own.failed(format!("{error:#}")),
        }
    }
    let mut all = shared.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.n_ok += own.n_ok;
    all.n_failed += own.n_failed;
    for (reason, n) in own.reasons {
        *all.reasons.entry(reason).or_default() += n;
    }
    for (answer, n) in own.answers {
        *all.answers.entry(answer).or_default() += n;
    }
}

impl Outcome {
    fn failed(&mut self, reason: String) {
        self.n_failed += 1;
        *self.reasons.entry(reason).or_default() += 1;
    }
}
