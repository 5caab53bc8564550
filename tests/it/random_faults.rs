//! Random changes while events are lost, doubled and late, streams are cut, lists are garbage and new leaders know
//! nothing: afterwards every plane serves the truth, and an instance that was there throughout has served throughout.
//!
//! Many schedulers at once, each with a seed of its own, before one program. The seed of a failure is in its message:
//! `WAYMARK_SEED` runs that one alone, `WAYMARK_SEEDS` says how many. The same in virtual time, with the catalog alone,
//! is beside the code that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PROGRAM;

/// Schedulers before one program.
const N_AT_ONCE: usize = 25;
const N_APPS: u64 = 5;
const N_CHANGES: usize = 40;
/// What is promised after the last fault.
const REPAIR: Duration = Duration::from_secs(30);

type Ports = BTreeSet<u16>;

/// One scheduler with what it runs.
struct World {
    seed: u64,
    random: StdRng,
    index: usize,
    scheduler: ScriptedScheduler,
    apps: BTreeMap<u64, Ports>,
}

impl World {
    /// App 0 has one instance from the beginning to the end.
    async fn new(seed: u64, index: usize, stable: u16) -> anyhow::Result<Self> {
        let mut apps: BTreeMap<u64, Ports> = (0..N_APPS).map(|app| (app, Ports::new())).collect();
        apps.insert(0, [stable].into());
        let scheduler = ScriptedScheduler::start().await?;
        let world = Self { seed, random: StdRng::seed_from_u64(seed), index, scheduler, apps };
        (0..N_APPS).for_each(|app| world.tell(app));
        Ok(world)
    }

    fn name(&self, app: u64) -> String {
        format!("s{}app{app}", self.index)
    }

    fn service_port(&self, app: u64) -> u16 {
        (10_000 + self.index as u64 * N_APPS + app) as u16
    }

    fn instance(&self, app: u64, port: u16) -> ScriptedInstance {
        ScriptedInstance { task_id: format!("{}.{port}", self.name(app)), port }
    }

    fn tell(&self, app: u64) {
        let instances: Vec<_> = self.apps[&app].iter().map(|port| self.instance(app, *port)).collect();
        let labels = json!({"HAPROXY_0_MODE": "http"});
        self.scheduler.set_app(&format!("/{}", self.name(app)), self.service_port(app), labels, &instances);
    }

    async fn suffer(&mut self, waymark: &Waymark) -> anyhow::Result<()> {
        self.scheduler.stream_opened().await;
        for turn in 0..N_CHANGES {
            let app = 1 + self.random.random_range(0..N_APPS - 1);
            let ports = self.apps.entry(app).or_default();
            let (port, status) = match ports.iter().next().copied().filter(|_| self.random.random()) {
                Some(port) => (port, "TASK_KILLED"),
                None => (20_000 + turn as u16, "TASK_RUNNING"),
            };
            if !ports.remove(&port) {
                ports.insert(port);
            }
            self.tell(app);
            // Lost, once or twice.
            for _ in 0..self.random.random_range(0..3) {
                let instance = self.instance(app, port);
                self.scheduler.status_update(&format!("/{}", self.name(app)), &instance, status)?;
            }
            let list = |text: &str| Some(Arc::from(text.as_bytes()));
            match self.random.random_range(0..16) {
                0 => self.scheduler.cut_streams(),
                1 => {
                    self.scheduler.event("status_update_event", &json!("nonsense"))?;
                }
                2 => self.scheduler.answer_list(list("<html>502</html>")),
                3 => self.scheduler.answer_list(list("{\"apps\": [")),
                4 => {
                    // A new leader that does not know yet what it runs.
                    self.scheduler.answer_list(list("{\"apps\": []}"));
                    self.scheduler.cut_streams();
                }
                5..9 => self.scheduler.answer_list(None),
                _ => {}
            }
            let answer = client::get(waymark.service(self.service_port(0)), "/").await?;
            anyhow::ensure!(answer.status == 200, "the stable instance: {}", answer.text());
        }
        self.scheduler.answer_list(None);
        Ok(())
    }

    /// Between this world and what each plane itself says that it serves.
    async fn differences(&self, waymark: &Waymark, shown: &Shown) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for (app, ports) in &self.apps {
            let (seed, name) = (self.seed, self.name(*app));
            let backends = shown.routes["backends"].as_array().into_iter().flatten();
            let backend = backends.into_iter().find(|b| b["app"] == format!("/{name}"));
            let servers = backend.and_then(|b| b["servers"].as_array()).into_iter().flatten();
            let served: Ports = servers
                .filter(|server| server["rotation"] == "in")
                .filter_map(|server| server["address"].as_str()?.rsplit_once(':')?.1.parse().ok())
                .collect();
            if served != *ports {
                found.push(format!("seed {seed}: http: {name} is {served:?}, not {ports:?}"));
            }
            let line = format!("waymark_vip_endpoints{{vip=\"{name}.marathon\",");
            let n_endpoints =
                shown.metrics.lines().find(|l| l.starts_with(&line)).and_then(|l| l.rsplit_once(' '));
            if n_endpoints.map(|(_, n)| n.to_owned()) != Some(ports.len().to_string()) {
                found.push(format!(
                    "seed {seed}: vip: {name} has {n_endpoints:?}, not {} endpoints",
                    ports.len()
                ));
            }
            let target = format!("/v1/services/_{name}._tcp.marathon.mesos");
            let answer = client::get(waymark.address("dns_http"), &target).await?.json()?;
            let records = answer.as_array().into_iter().flatten();
            let named: Ports = records.filter_map(|r| r["port"].as_str()?.parse().ok()).collect();
            if named != *ports {
                found.push(format!("seed {seed}: dns: {name} is {answer}, not {ports:?}"));
            }
        }
        Ok(found)
    }
}

/// What the planes say of themselves, all at once.
struct Shown {
    routes: Value,
    metrics: String,
}

async fn run(seeds: &[u64]) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stable = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request).await {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let worlds = seeds.iter().enumerate().map(|(index, seed)| World::new(*seed, index, stable));
    let mut worlds = try_join_all(worlds).await?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("waymark.toml");
    std::fs::write(&config, "[watch]\nresync = \"1s\"\nstream_deadline = \"5s\"\n")?;
    let config = config.to_string_lossy().into_owned();
    let schedulers: Vec<String> =
        worlds.iter().map(|w| format!("s{}=http://{}", w.index, w.scheduler.address)).collect();
    let mut flags = vec!["--config", &config];
    // The helper names the first scheduler itself, unless it is among the flags.
    schedulers.iter().for_each(|scheduler| flags.extend(["--marathon", scheduler]));
    let waymark = Waymark::serve_as(PROGRAM, "", &flags).await?;
    try_join_all(worlds.iter_mut().map(|world| async {
        let seed = world.seed;
        world.suffer(&waymark).await.with_context(|| format!("seed {seed}"))
    }))
    .await?;
    let repaired = Instant::now();
    loop {
        let shown = Shown {
            routes: waymark.stats("/api/routes").await?.json()?,
            metrics: waymark.stats("/metrics").await?.text(),
        };
        let mut found = Vec::new();
        for world in &worlds {
            found.extend(world.differences(&waymark, &shown).await.context("the planes can be asked")?);
        }
        if found.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(repaired.elapsed() < REPAIR, "{found:#?}");
    }
}

#[tokio::test]
async fn every_plane_becomes_the_truth() -> anyhow::Result<()> {
    if let Ok(seed) = std::env::var("WAYMARK_SEED") {
        return run(&[seed.parse()?]).await;
    }
    let few = if std::env::var_os("CI").is_some() { 500 } else { N_AT_ONCE };
    let n_seeds = std::env::var("WAYMARK_SEEDS").map_or(Ok(few), |n| n.parse())?;
    let first = rand::random::<u32>().into();
    let seeds: Vec<u64> = (first..).take(n_seeds).collect();
    eprintln!("{n_seeds} seeds from {first}");
    for seeds in seeds.chunks(N_AT_ONCE) {
        run(seeds).await?;
    }
    Ok(())
}
