//! A scripted member of a scheduler: answers what the test last set, byte for byte where the test says so.
//!
//! It decides nothing on its own, and keeps every request for the test to look at.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::within;

const ATTACHED: &str = r#"{"eventType": "event_stream_attached", "remoteAddress": "127.0.0.1"}"#;

/// Between two bytes of an answer that drips.
const DRIP: std::time::Duration = std::time::Duration::from_millis(5);

/// One scripted member. What it answers is what the test last set.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) address: SocketAddr,
    script: Arc<Script>,
}

#[derive(Default)]
struct Script {
    apps: Mutex<BTreeMap<String, Value>>,
    /// Whole answers that go before everything else, by path; each is used once.
    next_answers: Mutex<BTreeMap<String, VecDeque<Vec<u8>>>>,
    /// Answers that go before the state, by path, for as long as the test says.
    answers: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Paths whose next answer never ends, a byte at a time.
    drips: Mutex<std::collections::BTreeSet<String>>,
    /// Accepts and reads, and never says a word.
    is_silent: std::sync::atomic::AtomicBool,
    /// Who `X-Marathon-Leader` and `/v2/leader` name.
    leader: Mutex<Option<String>>,
    /// What `/v2/info` says that it is called.
    framework: Mutex<Option<String>>,
    /// What `Authorization` must be.
    password: Mutex<Option<String>>,
    /// Paths whose answers are held back until the test lets them go.
    held: Mutex<BTreeMap<String, watch::Receiver<bool>>>,
    requests: watch::Sender<Vec<Request>>,
    streams: Mutex<Vec<tokio::sync::mpsc::Sender<Vec<u8>>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) head: String,
}

impl Member {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let shared = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // A watcher that hangs up is no failure of the script.
                    let _ = serve(stream, &shared).await;
                });
            }
        });
        Self { address, script }
    }

    pub(super) fn url(&self) -> url::Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(super) fn set_app(&self, id: &str, tasks: &[&str]) {
        let tasks: Vec<Value> = tasks
            .iter()
            .map(|task| {
                json!({"id": task, "host": "127.0.0.1", "state": "TASK_RUNNING", "ports": [31000], "version": "v1"})
            })
            .collect();
        let app = json!({
            "id": id, "version": "v1", "instances": tasks.len(), "networks": [{"mode": "host"}],
            "portDefinitions": [{"port": 10000, "labels": {"VIP_0": format!("{id}:80")}}], "tasks": tasks,
        });
        self.set_raw_app(id, app);
    }

    pub(super) fn set_raw_app(&self, id: &str, app: Value) {
        self.script.apps.lock().unwrap().insert(id.to_owned(), app);
    }

    pub(super) fn remove_app(&self, id: &str) {
        self.script.apps.lock().unwrap().remove(id);
    }

    pub(super) fn answer_once(&self, path: &str, answer: impl Into<Vec<u8>>) {
        self.script.next_answers.lock().unwrap().entry(path.to_owned()).or_default().push_back(answer.into());
    }

    pub(super) fn answer_always(&self, path: &str, answer: impl Into<Vec<u8>>) {
        self.script.answers.lock().unwrap().insert(path.to_owned(), answer.into());
    }

    pub(super) fn answer_as_usual(&self, path: &str) {
        self.script.answers.lock().unwrap().remove(path);
    }

    /// The next answer is a list that arrives a byte at a time, and would for hours.
    pub(super) fn drip_once(&self, path: &str) {
        self.script.drips.lock().unwrap().insert(path.to_owned());
    }

    pub(super) fn fall_silent(&self) {
        self.script.is_silent.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) fn name_leader(&self, leader: &str) {
        *self.script.leader.lock().unwrap() = Some(leader.to_owned());
    }

    pub(super) fn call_framework(&self, name: &str) {
        *self.script.framework.lock().unwrap() = Some(name.to_owned());
    }

    pub(super) fn want_authorization(&self, value: &str) {
        *self.script.password.lock().unwrap() = Some(value.to_owned());
    }

    pub(super) fn n_requests(&self, path: &str) -> usize {
        self.requests().iter().filter(|request| request.path == path).count()
    }

    /// Holds the answers for a path back until `true` is sent. The answer is what the state was at the request.
    pub(super) fn hold(&self, path: &str) -> watch::Sender<bool> {
        let (release, held) = watch::channel(false);
        self.script.held.lock().unwrap().insert(path.to_owned(), held);
        release
    }

    pub(super) async fn requested(&self, n: usize, path: &str) {
        let mut requests = self.script.requests.subscribe();
        let waiting = requests.wait_for(|all| all.iter().filter(|r| r.path == path).count() >= n);
        within("a request", waiting).await.unwrap();
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.script.requests.borrow().clone()
    }

    pub(super) async fn write(&self, bytes: impl Into<Vec<u8>>) {
        let stream = self.script.streams.lock().unwrap().last().cloned().unwrap();
        stream.send(bytes.into()).await.unwrap();
    }

    pub(super) async fn event(&self, body: Value) {
        let kind = body["eventType"].as_str().unwrap().to_owned();
        self.write(format!("event: {kind}\r\ndata: {body}\r\n\r\n")).await;
    }

    /// An event that names no app.
    pub(super) async fn everything(&self) {
        self.event(json!({"eventType": "group_change_success", "groupId": "/"})).await;
    }

    pub(super) async fn status(&self, app: &str, task: &str, status: &str) {
        self.event(
            json!({"eventType": "status_update_event", "appId": app, "taskId": task, "taskStatus": status}),
        )
        .await;
    }

    pub(super) fn cut_streams(&self) {
        self.script.streams.lock().unwrap().clear();
    }
}

pub(super) fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn serve(stream: TcpStream, script: &Script) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let body = {
            let apps = script.apps.lock().unwrap();
            match path.as_str() {
                "/v2/apps" => Some(json!({"apps": apps.values().collect::<Vec<_>>()})),
                "/v2/leader" => {
                    script.leader.lock().unwrap().as_ref().map(|leader| json!({"leader": leader}))
                }
                "/v2/info" => {
                    let name = script.framework.lock().unwrap().clone();
                    let name = name.unwrap_or_else(|| "dev.marathon".to_owned());
                    Some(json!({"marathon_config": {"framework_name": name}}))
                }
                _ => path.strip_prefix("/v2/apps").and_then(|id| apps.get(id)).map(|app| json!({"app": app})),
            }
        };
        let refused = {
            let wanted = script.password.lock().unwrap();
            wanted.as_ref().is_some_and(|wanted| !head.contains(&format!("uthorization: {wanted}\r\n")))
        };
        script.requests.send_modify(|all| all.push(Request { path: path.clone(), head }));
        if script.is_silent.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if refused {
            stream.write_all(&answer("401 Unauthorized", "", "{}")).await?;
            continue;
        }
        if script.drips.lock().unwrap().remove(&path) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{\"apps\": [").await?;
            loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(DRIP).await;
            }
        }
        let always = script.answers.lock().unwrap().get(&path).cloned();
        let scripted =
            script.next_answers.lock().unwrap().get_mut(&path).and_then(VecDeque::pop_front).or(always);
        let held = script.held.lock().unwrap().get(&path).cloned();
        if let Some(mut held) = held {
            let _ = held.wait_for(|released| *released).await;
        }
        if let Some(bytes) = scripted {
            let closes = !bytes.windows(14).any(|w| w == b"Content-Length") || bytes.ends_with(b"CUT");
            stream.write_all(&bytes).await?;
            if closes {
                return Ok(());
            }
        } else if path == "/v2/events" {
            return write_stream(stream, script).await;
        } else {
            let missing = json!({"message": "App does not exist"});
            let (status, body) = body.map_or(("404 Not Found", missing), |body| ("200 OK", body));
            let leader = script.leader.lock().unwrap().clone();
            let leader =
                leader.map_or(String::new(), |leader| format!("X-Marathon-Leader: http://{leader}\r\n"));
            stream.write_all(&answer(status, &leader, &body.to_string())).await?;
        }
    }
}

/// Close-delimited, as Marathon's own stream is. Ends when the test drops it.
async fn write_stream(mut stream: BufReader<TcpStream>, script: &Script) -> std::io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\nConnection: close\r\n\r\n";
    let attached = format!("event: event_stream_attached\r\ndata: {ATTACHED}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(attached.as_bytes()).await?;
    let (sender, mut bytes) = tokio::sync::mpsc::channel::<Vec<u8>>(64);
    script.streams.lock().unwrap().push(sender);
    while let Some(bytes) = bytes.recv().await {
        stream.write_all(&bytes).await?;
    }
    Ok(())
}
