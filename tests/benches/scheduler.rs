//! The embedded scheduler's figures, simulated: listing 1,000 apps with 3 instances each, answering an update,
//! scaling to 10,000 instances, and the memory of it all. Prints each with its limit.
//!
//! Not here: what the planes do meanwhile; they run, as in `waymark dev`.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::client::Connection;
use tests::waymark::Waymark;

const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");
const N_APPS: usize = 1000;
const N_LISTS: u32 = 20;
const N_UPDATES: usize = 100;
const N_SCALED: u64 = 10_000;

async fn send(waymark: &Waymark, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Vec<u8>> {
    let headers: &[&str] = if body.is_some() { &["Content-Type: application/json"] } else { &[] };
    let text = body.map(|body| body.to_string()).unwrap_or_default();
    let mut connection = Connection::open(waymark.address("scheduler")).await?;
    let answer = connection.request(method, path, headers, text.as_bytes()).await?;
    anyhow::ensure!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text());
    Ok(answer.body)
}

/// CPU time of the whole process, from `/proc/PID/stat` (fields 14 and 15, in clock ticks).
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("a stat line")?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: plain library call.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Ok(Duration::from_millis((ticks() + ticks()) * 1000 / per_second))
}

fn resident_mib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]).await?;
    let pid = waymark.pid().context("it runs")?;
    for first in (0..N_APPS).step_by(100) {
        let app = |n: usize| {
            json!({"id": format!("/bench/app-{n}"), "cmd": "x", "cpus": 0.01, "mem": 1, "instances": 3,
                "labels": {"TEAM": "bench"}, "portDefinitions": [{"port": 0, "name": "http"}]})
        };
        let apps: Vec<Value> = (first..first + 100).map(app).collect();
        send(&waymark, "PUT", "/v2/apps", Some(json!(apps))).await?;
        waymark.settled().await?;
    }

    let before = cpu_time(pid)?;
    let mut n_bytes = 0;
    for _ in 0..N_LISTS {
        n_bytes = send(&waymark, "GET", "/v2/apps?embed=apps.tasks", None).await?.len();
    }
    let list = (cpu_time(pid)? - before) / N_LISTS;
    println!("list {N_APPS} apps with tasks ({n_bytes} bytes): {list:?} CPU (limit 50 ms)");

    let mut times = Vec::with_capacity(N_UPDATES);
    for n in 0..N_UPDATES {
        let body = json!({"labels": {"N": n.to_string()}});
        let started = Instant::now();
        send(&waymark, "PUT", &format!("/v2/apps/bench/app-{n}"), Some(body)).await?;
        times.push(started.elapsed());
        waymark.settled().await?;
    }
    times.sort_unstable();
    let (median, worst) = (times[N_UPDATES / 2], times[N_UPDATES * 99 / 100]);
    println!("update answered: median {median:?}, 99th percentile {worst:?} (limit 5 ms)");

    let app = json!({"id": "/bench/big", "cmd": "x", "cpus": 0.001, "mem": 1, "instances": 0});
    send(&waymark, "POST", "/v2/apps", Some(app)).await?;
    waymark.settled().await?;
    let started = Instant::now();
    send(&waymark, "PUT", "/v2/apps/bench/big", Some(json!({"instances": N_SCALED}))).await?;
    waymark.settled().await?;
    println!("scaled to {N_SCALED} instances: {:?} (limit 10 s)", started.elapsed());
    println!("memory of the whole process: {} MiB (limit 300 MB)", resident_mib(pid)?);
    Ok(())
}
