//! The scheduler from outside: real sockets, real processes, and waits on its own event stream.
//!
//! Not here: rules that need no IO; they are tested beside the code.

mod api;
mod deployments;
mod processes;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Config, Error, Instances, Running, start};

const DEADLINE: Duration = Duration::from_secs(10);

struct Scheduler {
    running: Running,
    cancel: CancellationToken,
    client: reqwest::Client,
    state: PathBuf,
}

impl Scheduler {
    async fn start(state: &Path, instances: Instances) -> Self {
        // Ports of its own for each scheduler of this test program, clear of the default range.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let first = 21000 + 50 * NEXT.fetch_add(1, Ordering::Relaxed);
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            state_dir: state.to_owned(),
            ports: first..=first + 49,
            cpus: Some(4.0),
            mem: Some(4096.0),
            kill_grace: Duration::from_millis(300),
            instances,
            ..Config::default()
        };
        let cancel = CancellationToken::new();
        let running = start(config, cancel.clone()).await.expect("it starts");
        // The same choice that the health checks make; a client cannot be built without one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { running, cancel, client, state: state.canonicalize().expect("it exists") }
    }

    async fn processes() -> (TempDir, Self) {
        let dir = tempfile::tempdir().expect("a directory");
        let scheduler = Self::start(dir.path(), Instances::Processes).await;
        (dir, scheduler)
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.running.address);
        let mut request = self.client.request(method.parse().expect("a method"), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", path, None).await.1
    }

    async fn tasks(&self, app: &str) -> Vec<Value> {
        let mut answer = self.get(&format!("/v2/apps{app}/tasks")).await;
        answer["tasks"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }

    async fn events(&self) -> Events {
        let url = format!("http://{}/v2/events", self.running.address);
        let request = self.client.get(url).header("accept", "text/event-stream");
        let response = request.send().await.expect("a stream");
        let mut events = Events { response, buffer: Vec::new(), ready: VecDeque::new() };
        events.until("event_stream_attached", |_| true).await;
        events
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(DEADLINE, self.running.stopped()).await.expect("it stops in time");
    }
}

struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
    ready: VecDeque<Value>,
}

impl Events {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            let chunk = self.response.chunk().await.expect("the stream goes on").expect("the stream is open");
            self.buffer.extend_from_slice(&chunk);
            while let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let frame: Vec<u8> = self.buffer.drain(..end + 4).collect();
                let text = String::from_utf8(frame).expect("UTF-8");
                let (event, data) = text.trim().split_once("\r\n").expect("two lines");
                let data: Value =
                    serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
                assert_eq!(event.strip_prefix("event: "), data["eventType"].as_str());
                self.ready.push_back(data);
            }
        }
    }

    /// Reads on until an event of the type that fits; returns everything up to it as `type[ status]`.
    async fn until(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        let wait = async {
            loop {
                let event = self.next().await;
                let name = event["eventType"].as_str().expect("a type").to_owned();
                let status = event["taskStatus"].as_str().or(event["condition"].as_str());
                seen.push(status.map_or(name.clone(), |status| format!("{name} {status}")));
                if name == kind && fits(&event) {
                    return;
                }
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("no {kind} among {seen:#?}");
        }
        seen
    }

    async fn until_deployed(&mut self) -> Vec<String> {
        self.until("deployment_success", |_| true).await
    }
}

fn sleeper(id: &str, instances: u32) -> Value {
    json!({"id": id, "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16, "instances": instances})
}

/// Waits for it: a process that is about to be its command shows no environment for a moment.
async fn processes_become(state: &Path, n: usize) {
    let wait = async {
        while processes_in(state).len() != n {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, wait).await.is_err() {
        panic!("{n} processes wanted, and there are {:?}", processes_in(state));
    }
}

/// Ids of live processes that belong to a sandbox of this scheduler.
fn processes_in(state: &Path) -> Vec<u32> {
    let mark = format!("MESOS_SANDBOX={}/", state.display());
    let entries = std::fs::read_dir("/proc").expect("a proc file system").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&b| b == 0).any(|variable| variable.starts_with(mark.as_bytes()))
    })
    .collect()
}
