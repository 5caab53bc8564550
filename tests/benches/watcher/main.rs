//! What a full sync and one change cost, at 100, 1,000 and 10,000 apps with 10 instances each.
//!
//! `cargo bench -p tests --bench watcher`. A scripted scheduler in this process, the whole program beside it; CPU time
//! is that of all threads of the program, from the kernel's account. The cost of a change must not grow with the number
//! of apps. Then what clients of the HTTP plane notice of a full sync in which every app differs, how long a start
//! takes with 10,000 virtual hosts, and a list of 50 MB.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

mod notice;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;

const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");
const N_INSTANCES: usize = 10;
const N_CHANGES: usize = 1_000;
/// An app that changes all the time is read less often; changes go around among this many.
const N_TURNS: usize = 50;
const N_STORM: usize = 20_000;

struct Usage {
    cpu: Duration,
    resident_mib: u64,
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // Threads come and go.
        let Ok(account) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds += account.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok(Usage { cpu: Duration::from_nanos(nanoseconds), resident_mib: kib >> 10 })
}

fn instances(app: usize, n: usize) -> Vec<ScriptedInstance> {
    let instance = |i| ScriptedInstance {
        task_id: format!("group_app{app}.instance-5cf1e0de-1d35-11e8-9f6f-{app:06x}{i:06x}._app.1"),
        port: 31000 + (app % 1000) as u16,
    };
    (0..n).map(instance).collect()
}

fn set(scheduler: &ScriptedScheduler, app: usize, n_instances: usize) {
    let labels = json!({"HAPROXY_GROUP": "external", "HAPROXY_0_VHOST": format!("app{app}.example.com")});
    let port = 10_000 + app as u16;
    scheduler.set_app(&format!("/group/app{app}"), port, labels, &instances(app, n_instances));
}

async fn generation(waymark: &Waymark) -> anyhow::Result<u64> {
    let status: serde_json::Value = serde_json::from_str(&waymark.stats("/api/status").await?.text())?;
    status["generation"].as_u64().context("no generation")
}

async fn measure(n_apps: usize) -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    for app in 0..n_apps {
        set(&scheduler, app, N_INSTANCES);
    }
    let began = Instant::now();
    // Each app has a service port and a VIP; 10,000 VIPs would take more descriptors than many systems allow, so their
    // sockets are left out. Their table and their names are not.
    let flags = ["--planes", "http,dns", "--workers", "1", "--vip-pool", "127.192.0.0/16"];
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
    let pid = waymark.pid().context("it runs")?;
    let synced = usage(pid)?;
    println!(
        "{n_apps:>6} apps  full sync: {:6.0} ms CPU, {:6.0} ms, peak RSS {} MiB",
        synced.cpu.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3,
        synced.resident_mib
    );
    scheduler.stream_opened().await;

    // What the process does anyway, e.g. reading counters once a second.
    let (before, idle_began) = (usage(pid)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = (usage(pid)?.cpu - before.cpu).as_secs_f64() / idle_began.elapsed().as_secs_f64();

    let mut gone = instances(0, N_INSTANCES + 1);
    let extra = gone.pop().context("one more")?;
    let (before, changes_began) = (usage(pid)?, Instant::now());
    let mut last = generation(&waymark).await?;
    for turn in 0..N_CHANGES {
        let app = turn % N_TURNS.min(n_apps);
        set(&scheduler, app, N_INSTANCES + (turn / N_TURNS + 1) % 2);
        scheduler.status_update(&format!("/group/app{app}"), &extra, "TASK_RUNNING")?;
        // Every plane has applied it.
        let target = format!("/api/status?after={last}&wait=10s");
        let status: serde_json::Value =
            serde_json::from_str(&client::get(waymark.address("stats"), &target).await?.text())?;
        last = status["applied"].as_u64().context("no generation")?;
    }
    let elapsed = changes_began.elapsed().as_secs_f64();
    let cpu = (usage(pid)?.cpu - before.cpu).as_secs_f64();
    // The question itself: the status of everything.
    let (asked, n_questions) = (usage(pid)?, 50);
    let asked_at = Instant::now();
    for _ in 0..n_questions {
        generation(&waymark).await?;
    }
    let questions = (usage(pid)?.cpu - asked.cpu).as_secs_f64() - idle * asked_at.elapsed().as_secs_f64();
    let question = questions.max(0.0) / f64::from(n_questions);
    let each = (cpu - idle * elapsed) / N_CHANGES as f64 - question;
    println!(
        "{n_apps:>6} apps  one change, event to all planes: {:6.3} ms CPU, {:6.2} ms (idle {:.1} % of a core)",
        each * 1e3,
        elapsed / N_CHANGES as f64 * 1e3,
        idle * 100.0
    );

    let (before, storm_began) = (usage(pid)?, Instant::now());
    for n in 0..N_STORM {
        scheduler.status_update(&format!("/group/app{}", n % 10), &extra, "TASK_RUNNING")?;
        if n % 1000 == 999 {
            tokio::time::sleep_until((storm_began + Duration::from_millis(n as u64 / 10)).into()).await;
        }
    }
    let elapsed = storm_began.elapsed().as_secs_f64();
    let cpu = (usage(pid)?.cpu - before.cpu).as_secs_f64();
    println!(
        "{n_apps:>6} apps  storm of {:.0} events/s: {:.0} % of a core",
        N_STORM as f64 / elapsed,
        cpu / elapsed * 100.0
    );
    notice::of_syncs(&scheduler, &waymark, n_apps).await?;
    waymark.stop().await?;
    Ok(())
}

/// From the start of the program to the moment when it serves many apps with a virtual host each.
async fn measure_start() -> anyhow::Result<()> {
    const N_APPS: usize = 10_000;
    let scheduler = ScriptedScheduler::start().await?;
    (0..N_APPS).for_each(|app| set(&scheduler, app, 1));
    // Writing the list takes time, which is not the program's.
    scheduler.answer_list(Some(scheduler.list()));
    let began = Instant::now();
    let flags = ["--planes", "http,dns", "--workers", "1", "--vip-pool", "127.192.0.0/16"];
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
    let took = began.elapsed().as_secs_f64();
    let used = usage(waymark.pid().context("it runs")?)?;
    println!(
        "{N_APPS} apps with a virtual host and an instance each: ready after {took:.2} s, {:.0} ms CPU, peak RSS {} MiB \
         (asked for: <= 3 s, <= 200 MB)",
        used.cpu.as_secs_f64() * 1e3,
        used.resident_mib
    );
    waymark.stop().await?;
    Ok(())
}

/// 2,000 apps with 10 tasks each, and as much that nobody reads as real lists have.
async fn measure_large_list() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    for app in 0..2_000 {
        set(&scheduler, app, N_INSTANCES);
    }
    let list = String::from_utf8(scheduler.list().to_vec())?;
    let padding = format!("\"localVolumes\":[\"{}\"],\"slaveId\"", "x".repeat(2_300));
    let list: Arc<[u8]> = list.replace("\"slaveId\"", &padding).into_bytes().into();
    let n_bytes = list.len();
    scheduler.answer_list(Some(list));
    let waymark =
        Waymark::serve(PROGRAM, scheduler.address, &["--planes", "http,dns", "--workers", "1"]).await?;
    let used = usage(waymark.pid().context("it runs")?)?;
    println!(
        "a list of {} MB with 20,000 tasks: {:.0} ms CPU, peak RSS {} MiB (asked for: <= 2 s, <= 150 MB)",
        n_bytes / 1_000_000,
        used.cpu.as_secs_f64() * 1e3,
        used.resident_mib
    );
    waymark.stop().await?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let words: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let sizes = if words.is_empty() { vec![100, 1_000, 10_000] } else { words };
    for n_apps in sizes {
        runtime.block_on(measure(n_apps))?;
    }
    runtime.block_on(measure_start())?;
    runtime.block_on(measure_large_list())?;
    println!(
        "asked for at 10,000 apps: sync <= 3 s CPU and <= 400 MiB, one change <= 1 ms CPU at every size, \
         p99 during a sync <= 1.1 of before"
    );
    Ok(())
}
