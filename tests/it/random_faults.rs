//! Random changes while events are lost, doubled and late and streams are cut: afterwards every plane serves the truth,
//! and an instance that was there throughout has served throughout.
//!
//! The seed of a failure is in its message; `WAYMARK_SEED` runs that one again. The same in virtual time, with many more
//! seeds, is beside the code that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PROGRAM;

const N_APPS: u64 = 5;
const N_CHANGES: usize = 60;
/// What the configuration below says, and time for a busy machine.
const REPAIR: Duration = Duration::from_secs(30);

/// Reproducible numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

type World = BTreeMap<u64, BTreeSet<u16>>;

fn name(app: u64) -> String {
    format!("/app{app}")
}

fn instance(app: u64, port: u16) -> ScriptedInstance {
    ScriptedInstance { task_id: format!("app{app}.{port}"), port }
}

fn tell(scheduler: &ScriptedScheduler, world: &World, app: u64) {
    let instances: Vec<ScriptedInstance> = world[&app].iter().map(|port| instance(app, *port)).collect();
    scheduler.set_app(&name(app), 10000 + app as u16, json!({"HAPROXY_0_MODE": "http"}), &instances);
}

/// Differences between the world and what each plane itself says that it serves.
async fn differences(waymark: &Waymark, world: &World) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let routes: Value = waymark.stats("/api/routes").await?.json()?;
    let metrics = waymark.stats("/metrics").await?.text();
    for (app, ports) in world {
        let backend = routes["backends"].as_array().into_iter().flatten().find(|b| b["app"] == name(*app));
        let servers = backend.and_then(|b| b["servers"].as_array()).cloned().unwrap_or_default();
        let served: BTreeSet<u64> = servers
            .iter()
            .filter(|server| server["rotation"] == "in")
            .filter_map(|server| server["address"].as_str()?.rsplit_once(':')?.1.parse().ok())
            .collect();
        if !served.iter().copied().eq(ports.iter().map(|p| u64::from(*p))) {
            found.push(format!("http: {} is {served:?}, not {ports:?}", name(*app)));
        }
        let line = format!("waymark_vip_endpoints{{vip=\"app{app}.marathon\",");
        let n_endpoints = metrics.lines().find(|l| l.starts_with(&line)).and_then(|l| l.rsplit_once(' '));
        if n_endpoints.map(|(_, n)| n.to_owned()) != Some(ports.len().to_string()) {
            found.push(format!("vip: {} has {n_endpoints:?}, not {} endpoints", name(*app), ports.len()));
        }
        let query = format!("_app{app}._tcp.marathon.mesos");
        let answer = waymark.run(&["dns", "lookup", "--short", &query, "SRV"]).await?;
        let named: BTreeSet<u16> = answer
            .stdout
            .lines()
            .filter_map(|line| line.split_whitespace().rev().nth(1)?.parse().ok())
            .collect();
        if named != *ports {
            found.push(format!("dns: {query} is {named:?} ({}), not {ports:?}", answer.stdout.trim()));
        }
    }
    Ok(found)
}

async fn run(seed: u64) -> anyhow::Result<()> {
    let mut random = Random(seed);
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
    let scheduler = ScriptedScheduler::start().await?;
    // App 0 has one instance from the beginning to the end.
    let mut world: World = (0..N_APPS).map(|app| (app, BTreeSet::new())).collect();
    world.entry(0).or_default().insert(stable);
    for app in 0..N_APPS {
        tell(&scheduler, &world, app);
    }
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("waymark.toml");
    std::fs::write(&config, "[watch]\nresync = \"1s\"\nstream_deadline = \"5s\"\n")?;
    let waymark =
        Waymark::serve(PROGRAM, scheduler.address, &["--config", &config.to_string_lossy()]).await?;
    scheduler.stream_opened().await;
    for turn in 0..N_CHANGES {
        let app = 1 + random.below(N_APPS - 1);
        let ports = world.entry(app).or_default();
        let (port, status) = match ports.iter().next().copied().filter(|_| random.below(2) == 0) {
            Some(port) => (port, "TASK_KILLED"),
            None => (20_000 + turn as u16, "TASK_RUNNING"),
        };
        if !ports.remove(&port) {
            ports.insert(port);
        }
        tell(&scheduler, &world, app);
        // Lost, once or twice.
        for _ in 0..random.below(3) {
            scheduler.status_update(&name(app), &instance(app, port), status)?;
        }
        match random.below(12) {
            0 => scheduler.cut_streams(),
            1 => {
                scheduler.event("status_update_event", &json!("nonsense"))?;
            }
            _ => {}
        }
        let answer = client::get(waymark.service(10000), "/").await?;
        anyhow::ensure!(answer.status == 200, "seed {seed}: the stable instance: {}", answer.text());
    }
    let repaired = Instant::now();
    loop {
        let found = differences(&waymark, &world).await.context("the planes can be asked")?;
        if found.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(repaired.elapsed() < REPAIR, "seed {seed}: {found:#?}");
    }
}

#[tokio::test]
async fn every_plane_becomes_the_truth() -> anyhow::Result<()> {
    if let Ok(seed) = std::env::var("WAYMARK_SEED") {
        return run(seed.parse()?).await;
    }
    let first = u64::from(std::process::id()) << 20;
    for seed in first..first + 2 {
        run(seed).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}
