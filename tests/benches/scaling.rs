//! Failed requests during 40 scale operations (2 to 4 instances and back) under load.
//!
//! `cargo bench -p tests --bench scaling`. The instances are processes of the demo app that this program starts and
//! stops; a scripted scheduler tells what a real one would, when a real one would.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tests::client;
use tests::load::{Connections, Load, Shape};
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");
const APP: &str = "/bench/web";
const N_OPERATIONS: usize = 40;
/// How long each state of the app is loaded before the next operation.
const DWELL: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// TASK_KILLING is written and SIGTERM sent in the same moment.
    Term,
    /// SIGKILL first, TASK_KILLED after the process is gone.
    Kill,
}

struct Process {
    instance: ScriptedInstance,
    child: Child,
}

async fn start(turn: usize) -> anyhow::Result<Process> {
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let task_id = format!("bench_web.{turn}.{port}");
    let child = Command::new(PROGRAM)
        .arg("demo-app")
        .env("HOST", "127.0.0.1")
        .env("PORT0", port.to_string())
        .env("MESOS_TASK_ID", &task_id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(Process { instance: ScriptedInstance { task_id, port }, child })
}

async fn measure(stop: Stop, shape: Shape) -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    let mut processes = vec![start(0).await?, start(1).await?];
    let tell = |processes: &[Process]| {
        let instances: Vec<_> = processes.iter().map(|p| p.instance.clone()).collect();
        scheduler.set_app(APP, 10000, json!({"HAPROXY_0_MODE": "http"}), &instances);
    };
    tell(&processes);
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &["--planes", "http"]).await?;
    let service = waymark.service(10000);
    while !client::get(service, "/").await.is_ok_and(|a| a.status == 200) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let load = Load::start(service, "/", shape);
    for turn in 0..N_OPERATIONS {
        tokio::time::sleep(DWELL).await;
        if processes.len() == 2 {
            for _ in 0..2 {
                let process = start(turn).await?;
                let instance = process.instance.clone();
                processes.push(process);
                tell(&processes);
                scheduler.status_update(APP, &instance, "TASK_RUNNING")?;
            }
        } else {
            for mut process in processes.drain(..2).collect::<Vec<_>>() {
                let pid = process.child.id().unwrap_or_default() as i32;
                match stop {
                    Stop::Term => {
                        scheduler.status_update(APP, &process.instance, "TASK_KILLING")?;
                        // SAFETY: kill(2) takes numbers only; the child is not reaped yet.
                        unsafe { libc::kill(pid, libc::SIGTERM) };
                        process.child.wait().await?;
                    }
                    Stop::Kill => process.child.kill().await?,
                }
                scheduler.status_update(APP, &process.instance, "TASK_KILLED")?;
            }
            tell(&processes);
        }
    }
    tokio::time::sleep(DWELL).await;
    let outcome = load.stop().await;
    let rate = shape.rate.map_or("full speed".to_owned(), |rate| format!("{rate}/s"));
    println!(
        "{:<5} {:<5} {rate:<10}  failed {:>4} of {:>8}  {:?}",
        format!("{stop:?}").to_uppercase(),
        format!("{:?}", shape.connections),
        outcome.n_failed,
        outcome.n_failed + outcome.n_ok,
        outcome.reasons
    );
    waymark.stop().await?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!(
        "{N_OPERATIONS} operations each; asked for: 0 failed (KILL: none but those in flight at the killed process)"
    );
    for stop in [Stop::Term, Stop::Kill] {
        for connections in [Connections::Kept, Connections::New] {
            for rate in [Some(500), None] {
                let shape = Shape { n_clients: 20, connections, rate };
                runtime.block_on(measure(stop, shape))?;
            }
        }
    }
    println!("Marathon-LB, 20 operations at 500/s: 46 (TERM) and 52 (KILL) failed of 23,500");
    Ok(())
}
