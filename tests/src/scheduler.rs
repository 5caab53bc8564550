//! A scripted scheduler: speaks Marathon's API as far as a watcher reads it, and does exactly what a test tells it.
//!
//! It runs nothing and decides nothing: the test sets what `GET /v2/apps` answers and which events are written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The version that every scripted app has.
const VERSION: &str = "2026-01-01T00:00:00.000Z";

#[derive(Debug)]
pub struct ScriptedScheduler {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    apps: Mutex<BTreeMap<String, Value>>,
    /// The body of `GET /v2/apps`, where that was written beforehand.
    list: Mutex<Option<Arc<[u8]>>>,
    /// Open event streams. A watcher opens one; the test writes to all.
    streams: Mutex<Vec<std::net::TcpStream>>,
    n_streams: watch::Sender<usize>,
}

/// One instance of a scripted app.
#[derive(Clone, Debug)]
pub struct ScriptedInstance {
    pub task_id: String,
    pub port: u16,
}

impl ScriptedScheduler {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// At an address of this network namespace; port 0 is any.
    pub async fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_connections = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&for_connections)));
            }
        });
        Ok(Self { address, shared, accepting })
    }

    /// Defines an app with one port and these instances, or changes them. Tells nobody.
    pub fn set_app(&self, id: &str, service_port: u16, labels: Value, instances: &[ScriptedInstance]) {
        let tasks: Vec<Value> = instances
            .iter()
            .map(|instance| {
                json!({
                    "id": instance.task_id, "appId": id, "host": "127.0.0.1", "slaveId": "agent-S0",
                    "state": "TASK_RUNNING", "stagedAt": VERSION, "startedAt": VERSION, "version": VERSION,
                    "ports": [instance.port],
                    "ipAddresses": [{"ipAddress": "127.0.0.1", "protocol": "IPv4"}],
                })
            })
            .collect();
        let app = json!({
            "id": id, "version": VERSION, "instances": instances.len(), "labels": labels,
            "networks": [{"mode": "host"}],
            "portDefinitions": [{
                "port": service_port, "protocol": "tcp", "labels": {"VIP_0": format!("{id}:80")},
            }],
            "healthChecks": [], "readinessChecks": [], "deployments": [], "tasks": tasks,
            "tasksRunning": instances.len(), "tasksStaged": 0, "tasksHealthy": 0, "tasksUnhealthy": 0,
        });
        lock(&self.shared.apps).insert(id.to_owned(), app);
    }

    /// Defines an app as `/v2/apps` would answer it, or changes it. Tells nobody.
    pub fn set_definition(&self, app: Value) {
        let id = app["id"].as_str().unwrap_or_default().to_owned();
        lock(&self.shared.apps).insert(id, app);
    }

    /// What `GET /v2/apps` answers now.
    pub fn list(&self) -> Arc<[u8]> {
        let written = lock(&self.shared.list).clone();
        let write = || {
            let list = json!({"apps": lock(&self.shared.apps).values().collect::<Vec<_>>()});
            list.to_string().into_bytes().into()
        };
        written.unwrap_or_else(write)
    }

    /// Answers with this list until told otherwise; single apps are answered as they were defined. Writing a large list
    /// takes time, which must not be the watcher's.
    pub fn answer_list(&self, list: Option<Arc<[u8]>>) {
        *lock(&self.shared.list) = list;
    }

    /// Answers from now on as if nothing ran.
    pub fn forget_apps(&self) {
        lock(&self.shared.apps).clear();
    }

    /// Ends every event stream; new ones are welcome.
    pub fn cut_streams(&self) {
        lock(&self.shared.streams).clear();
    }

    pub async fn stream_opened(&self) {
        let mut n_streams = self.shared.n_streams.subscribe();
        let _ = n_streams.wait_for(|n| *n > 0).await;
    }

    /// Writes a `status_update_event` to every stream and answers the moment it was handed to the system.
    pub fn status_update(
        &self,
        app: &str,
        instance: &ScriptedInstance,
        status: &str,
    ) -> anyhow::Result<Instant> {
        let event = json!({
            "eventType": "status_update_event", "timestamp": VERSION, "slaveId": "agent-S0", "message": "",
            "taskId": instance.task_id, "taskStatus": status, "appId": app, "host": "127.0.0.1",
            "ipAddresses": [{"ipAddress": "127.0.0.1", "protocol": "IPv4"}], "ports": [instance.port],
            "version": VERSION,
        });
        self.event("status_update_event", &event)
    }

    /// Goes away: closes its streams and its port.
    pub fn stop(self) {
        lock(&self.shared.streams).clear();
    }

    pub fn event(&self, kind: &str, data: &Value) -> anyhow::Result<Instant> {
        use std::io::Write as _;
        let frame = format!("event: {kind}\r\ndata: {data}\r\n\r\n");
        let chunk = format!("{:x}\r\n{frame}\r\n", frame.len());
        let written = Instant::now();
        lock(&self.shared.streams).retain_mut(|stream| stream.write_all(chunk.as_bytes()).is_ok());
        Ok(written)
    }
}

impl Drop for ScriptedScheduler {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let target = request.split(' ').nth(1).context("no target")?;
        let path = target.split('?').next().unwrap_or(target);
        if path == "/v2/events" {
            return open_stream(stream.into_inner(), &shared).await;
        }
        let written = lock(&shared.list).clone().filter(|_| path == "/v2/apps");
        if let Some(list) = written {
            stream.get_mut().write_all(head("200 OK", list.len()).as_bytes()).await?;
            stream.get_mut().write_all(&list).await?;
            continue;
        }
        let answer = match path {
            "/v2/apps" => Some(json!({"apps": lock(&shared.apps).values().collect::<Vec<_>>()})),
            "/v2/info" => {
                Some(json!({"name": "marathon", "marathon_config": {"framework_name": "marathon"}}))
            }
            "/v2/leader" => Some(json!({"leader": "127.0.0.1:8080"})),
            _ => path
                .strip_prefix("/v2/apps/")
                .and_then(|id| lock(&shared.apps).get(&format!("/{}", id.trim_start_matches('/'))).cloned())
                .map(|app| json!({"app": app})),
        };
        let (status, body) = match answer {
            Some(answer) => ("200 OK", answer.to_string()),
            None => ("404 Not Found", json!({"message": "not scripted"}).to_string()),
        };
        let head = head(status, body.len());
        stream.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    }
}

fn head(status: &str, n_bytes: usize) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {n_bytes}\r\n\r\n")
}

/// Keeps the stream for the test to write to; blocking writes, so that the moment of an event is known exactly.
async fn open_stream(mut stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let attached =
        json!({"remoteAddress": "127.0.0.1", "eventType": "event_stream_attached", "timestamp": VERSION});
    lock(&shared.streams).push(stream);
    shared.n_streams.send_modify(|n| *n += 1);
    let frame = format!("event: event_stream_attached\r\ndata: {attached}\r\n\r\n");
    let chunk = format!("{:x}\r\n{frame}\r\n", frame.len());
    if let Some(stream) = lock(&shared.streams).last_mut() {
        std::io::Write::write_all(stream, chunk.as_bytes())?;
    }
    Ok(())
}
