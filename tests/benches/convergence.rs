//! Event written by the scheduler → first request at the new instance, and → last request at the removed one.
//!
//! `cargo bench -p tests --bench convergence`. A scripted scheduler writes the events; the instances are listeners of
//! this process; a client asks the service port over and over, each time over a new connection.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");
const APP: &str = "/bench/web";
const N_CHANGES: usize = 100;
const PAUSE: Duration = Duration::from_millis(150);

/// Answers every connection's first request with its own port.
async fn responder() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{port}", port.to_string().len());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request).await {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}

/// Asks until `done` likes the answering port; answers how long that took since `since`.
async fn ask_until(
    service: SocketAddr,
    since: Instant,
    mut done: impl FnMut(u16, Instant) -> bool,
) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client::get(service, "/").await?;
        let port = answer.text().parse().with_context(|| answer.text())?;
        let now = Instant::now();
        if done(port, now) {
            return Ok(now - since);
        }
        anyhow::ensure!(now < deadline, "the change never showed");
    }
}

fn print(what: &str, n_apps: usize, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<36} {n_apps:>5} apps  n={:<4} median {:7.2} ms  p90 {:7.2} ms  p99 {:7.2} ms  max {:7.2} ms",
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

async fn measure(n_apps: usize) -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    for number in 1..n_apps {
        let instances: Vec<ScriptedInstance> = (0..3)
            .map(|i| ScriptedInstance { task_id: format!("other_{number}.instance-{i}._app.1"), port: 9 })
            .collect();
        scheduler.set_app(&format!("/other/app{number}"), 0, json!({}), &instances);
    }
    let mut instances: BTreeMap<u16, ScriptedInstance> = BTreeMap::new();
    for _ in 0..2 {
        let port = responder().await?;
        instances.insert(port, ScriptedInstance { task_id: format!("bench_web.{port}"), port });
    }
    let labels = json!({"HAPROXY_0_MODE": "http"});
    let set = |instances: &BTreeMap<u16, ScriptedInstance>| {
        scheduler.set_app(APP, 10000, labels.clone(), &instances.values().cloned().collect::<Vec<_>>());
    };
    set(&instances);
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &["--planes", "http"]).await?;
    scheduler.stream_opened().await;
    let service = waymark.service(10000);

    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for turn in 0..N_CHANGES {
        let port = responder().await?;
        let instance = ScriptedInstance { task_id: format!("bench_web.{turn}.{port}"), port };
        instances.insert(port, instance.clone());
        set(&instances);
        let since = scheduler.status_update(APP, &instance, "TASK_RUNNING")?;
        added.push(ask_until(service, since, |answered, _| answered == port).await?);

        instances.remove(&port);
        set(&instances);
        let since = scheduler.status_update(APP, &instance, "TASK_KILLING")?;
        // The last answer of the removed instance, seen from a window in which it would have had many turns.
        let mut last = since;
        ask_until(service, since, |answered, now| {
            if answered == port {
                last = now;
            }
            now - last > Duration::from_millis(60)
        })
        .await?;
        removed.push(last - since);
        scheduler.status_update(APP, &instance, "TASK_KILLED")?;
        // An app that changes all the time is read less often; that is not what is measured here.
        tokio::time::sleep(PAUSE).await;
    }
    print("event to first request at the new", n_apps, added);
    print("event to last request at the removed", n_apps, removed);
    waymark.stop().await?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for n_apps in [1, 1000] {
        runtime.block_on(measure(n_apps))?;
    }
    println!(
        "asked for: median <= 10 ms, p99 <= 50 ms; Marathon-LB: 145-192 ms with 1 app, 1,448 ms with 1,001"
    );
    Ok(())
}
