//! The scheduler from outside: real sockets, real processes, and waits on its own event stream.
//!
//! Not here: rules that need no IO; they are tested beside the code.

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

fn leads_a_session(pid: u32) -> bool {
    // SAFETY: plain system call.
    unsafe { libc::getsid(pid as libc::pid_t) == pid as libc::pid_t }
}

#[tokio::test]
async fn create_scale_and_remove() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;

    let (status, app) = scheduler.send("POST", "/v2/apps", Some(sleeper("/dcos-101/app2", 1))).await;
    assert_eq!((status, &app["portDefinitions"][0]["port"]), (201, &json!(10000)));
    assert_eq!(
        events.until_deployed().await,
        [
            "group_change_success",
            "api_post_event",
            "deployment_info",
            "deployment_step_success",
            "deployment_info",
            "instance_changed_event Scheduled",
            "instance_changed_event Provisioned",
            "status_update_event TASK_STARTING",
            "instance_changed_event Starting",
            "status_update_event TASK_RUNNING",
            "instance_changed_event Running",
            "deployment_step_success",
            "deployment_success",
        ]
    );
    let first = scheduler.tasks("/dcos-101/app2").await;

    let path = "/service/marathon/v2/apps//dcos-101/app2/?force=False";
    let (status, result) = scheduler.send("PUT", path, Some(json!({"instances": 3, "cmd": null}))).await;
    assert!(status == 200 && result["deploymentId"].is_string(), "{result}");
    events.until_deployed().await;
    let three = scheduler.tasks("/dcos-101/app2").await;
    let mut ports: Vec<u64> = three.iter().filter_map(|task| task["ports"][0].as_u64()).collect();
    ports.dedup();
    assert_eq!((ports.len(), &three[0]), (3, &first[0]));
    assert_eq!(processes_in(&scheduler.state).len(), 3);

    scheduler.send("PUT", "/v2/apps/dcos-101/app2", Some(json!({"instances": 1}))).await;
    let seen = events.until_deployed().await;
    let at = |what: &str| seen.iter().position(|s| s == what).unwrap_or_else(|| panic!("{what} in {seen:?}"));
    assert!(at("status_update_event TASK_KILLING") < at("status_update_event TASK_KILLED"));
    // The youngest went.
    assert_eq!(scheduler.tasks("/dcos-101/app2").await, first);

    assert_eq!(scheduler.send("DELETE", "/v2/apps/dcos-101/app2", None).await.0, 200);
    assert_eq!(
        scheduler.get("/v2/apps/dcos-101/app2").await["message"],
        "App '/dcos-101/app2' does not exist"
    );
    let seen = events.until_deployed().await;
    assert!(seen.contains(&"app_terminated_event".to_owned()), "{seen:?}");
    assert_eq!(processes_in(&scheduler.state), [0; 0]);
    scheduler.stop().await;
}

#[tokio::test]
async fn what_a_get_shows_is_never_older_than_an_event() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a", 2))).await;
    for _ in 0..2 {
        let id = std::cell::RefCell::new(Value::Null);
        events
            .until("status_update_event", |event| {
                id.replace(event["taskId"].clone());
                event["taskStatus"] == "TASK_RUNNING"
            })
            .await;
        let tasks = scheduler.tasks("/a").await;
        let task = tasks.iter().find(|task| task["id"] == *id.borrow()).expect("it is listed");
        assert_eq!(task["state"], "TASK_RUNNING");
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn rolling_upgrade_keeps_its_limits() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let mut app = sleeper("/a", 4);
    app["upgradeStrategy"] = json!({"minimumHealthCapacity": 0.75, "maximumOverCapacity": 0.25});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a", Some(json!({"env": {"NEW": "1"}}))).await;
    let (mut running, mut n_tasks) = (4i32, 4i32);
    loop {
        let event = tokio::time::timeout(DEADLINE, events.next()).await.expect("it goes on");
        match (event["taskStatus"].as_str(), event["condition"].as_str()) {
            (Some("TASK_RUNNING"), _) => running += 1,
            (Some("TASK_KILLING"), _) => running -= 1,
            (Some("TASK_KILLED"), _) => n_tasks -= 1,
            (_, Some("Provisioned")) => n_tasks += 1,
            _ => {}
        }
        assert!(running >= 3 && n_tasks <= 5, "running {running}, tasks {n_tasks}");
        if event["eventType"] == "deployment_success" {
            break;
        }
    }
    let app = scheduler.get("/v2/apps/a").await;
    let version = &app["app"]["version"];
    let tasks = scheduler.tasks("/a").await;
    assert!(tasks.len() == 4 && tasks.iter().all(|task| &task["version"] == version));
    assert_eq!(processes_in(&scheduler.state).len(), 4);
    scheduler.stop().await;
}

#[tokio::test]
async fn the_whole_process_group_goes() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    // Nobody here ends on SIGTERM: not the shell, not what it started, not what that started. What leaves the
    // group lives until the scheduler stops.
    let cmd = "trap '' TERM; (setsid sleep 1000 &); (sh -c 'sleep 1000 & wait' &) ; sleep 1000 & touch up; while :; do wait; done";
    let app = json!({"id": "/stubborn", "cmd": cmd, "cpus": 0.1, "mem": 16,
        "healthChecks": [{"protocol": "COMMAND", "command": {"value": "test -e up"}, "delaySeconds": 0,
            "intervalSeconds": 1}]});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until_deployed().await;
    assert!(processes_in(&scheduler.state).len() >= 3);
    let task = scheduler.tasks("/stubborn").await[0]["id"].as_str().expect("an id").to_owned();
    let (status, answer) =
        scheduler.send("POST", "/v2/tasks/delete?wipe=true", Some(json!({"ids": [task]}))).await;
    assert_eq!((status, &answer["tasks"][0]["id"]), (200, &json!(task)));
    let seen = events
        .until("status_update_event", |event| {
            event["taskStatus"] == "TASK_KILLED" && event["taskId"] == *task
        })
        .await;
    let environment_of = |pid: &u32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("MESOS_TASK_ID={task}");
    for pid in processes_in(&scheduler.state) {
        let environment = environment_of(&pid);
        let is_of_task = environment.split(|&b| b == 0).any(|v| v == mark.as_bytes());
        assert!(!is_of_task || leads_a_session(pid), "{pid} is left");
    }
    // Another instance takes its place, mostly before the first one is gone; both are gone at the end.
    if !seen.iter().any(|event| event == "status_update_event TASK_RUNNING") {
        events.until("status_update_event", |event| event["taskStatus"] == "TASK_RUNNING").await;
    }
    let state = scheduler.state.clone();
    scheduler.stop().await;
    assert_eq!(processes_in(&state), [0; 0]);
}

#[tokio::test]
async fn a_crash_is_shown_and_backed_off() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let app = json!({"id": "/crash", "cmd": "echo out; echo err >&2; exit 3", "cpus": 0.1, "mem": 16,
        "backoffSeconds": 3600, "maxLaunchDelaySeconds": 3600});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    events.until("instance_changed_event", |event| event["condition"] == "Failed").await;
    let app = scheduler.get("/v2/apps/crash").await;
    let failure = &app["app"]["lastTaskFailure"];
    assert_eq!(failure["message"], "Command exited with status 3");
    let task = failure["taskId"].as_str().expect("an id");
    for (stream, text) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let log = scheduler.get(&format!("/waymark/v1/tasks/{task}/logs/{stream}")).await;
        assert_eq!(log, json!(text));
    }
    let queue = scheduler.get("/v2/queue").await;
    let delay = &queue["queue"][0]["delay"];
    assert!(delay["overdue"] == false && delay["timeLeftSeconds"].as_u64() > Some(3500), "{delay}");
    assert_eq!(scheduler.send("DELETE", "/v2/queue/crash/delay", None).await.0, 204);
    // The second attempt of the same instance.
    let next = task.replace("._app.1", "._app.2");
    events
        .until("status_update_event", |event| {
            event["taskId"] == *next && event["taskStatus"] == "TASK_RUNNING"
        })
        .await;
    scheduler.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_fails_with_a_message() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let app = json!({"id": "/nix", "args": ["/nowhere/to/be/found"], "cpus": 0.1, "mem": 16});
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    let failed = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default();
        event["taskStatus"] == "TASK_FAILED" && message.contains("/nowhere/to/be/found: No such file")
    };
    events.until("status_update_event", failed).await;
    assert_eq!(scheduler.get("/v2/deployments").await[0]["affectedApps"], json!(["/nix"]));
    scheduler.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_waits_and_can_be_overridden() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a", 1))).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a", Some(json!({"instances": 100}))).await;
    let queue = scheduler.get("/v2/queue").await;
    assert_eq!(
        (&queue["queue"][0]["count"], &queue["queue"][0]["delay"]["overdue"]),
        (&json!(60), &json!(true))
    );
    let deployments = scheduler.get("/v2/deployments").await;
    let (status, refusal) = scheduler.send("PUT", "/v2/apps/a", Some(json!({"instances": 2}))).await;
    assert_eq!((status, &refusal["deployments"][0]["id"]), (409, &deployments[0]["id"]));
    let forced = scheduler.send("PUT", "/v2/apps/a?force=True", Some(json!({"instances": 2}))).await;
    assert_eq!(forced.0, 200);
    let seen = events.until_deployed().await;
    assert!(seen.contains(&"deployment_failed".to_owned()), "{seen:?}");
    assert_eq!(
        (scheduler.tasks("/a").await.len(), scheduler.get("/v2/queue").await),
        (2, json!({"queue": []}))
    );

    // Taking a deployment back restores the definition before it.
    let (_, stuck) = scheduler.send("PUT", "/v2/apps/a", Some(json!({"cpus": 100}))).await;
    let id = stuck["deploymentId"].as_str().expect("an id");
    assert_eq!(scheduler.send("DELETE", &format!("/v2/deployments/{id}"), None).await.0, 200);
    events.until_deployed().await;
    assert_eq!(scheduler.get("/v2/apps/a").await["app"]["cpus"], json!(0.1));
    scheduler.stop().await;
}

#[tokio::test]
async fn a_failing_check_takes_the_instance_out_and_then_ends_it() {
    let (_dir, scheduler) = Scheduler::processes().await;
    let mut events = scheduler.events().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let status = Arc::new(AtomicU16::new(200));
    let answered = status.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let status = answered.load(Ordering::Relaxed);
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
        }
    });
    let mut app = sleeper("/a", 1);
    app["healthChecks"] = json!([{"port": port, "path": "/h", "gracePeriodSeconds": 60, "intervalSeconds": 1,
        "timeoutSeconds": 1, "maxConsecutiveFailures": 1}]);
    scheduler.send("POST", "/v2/apps", Some(app)).await;
    let seen = events.until_deployed().await;
    for kind in ["add_health_check_event", "health_status_changed_event", "instance_health_changed_event"] {
        assert!(seen.contains(&kind.to_owned()), "{kind} in {seen:?}");
    }
    assert_eq!(scheduler.tasks("/a").await[0]["healthCheckResults"][0]["alive"], true);
    status.store(503, Ordering::Relaxed);
    let seen = events.until("status_update_event", |event| event["taskStatus"] == "TASK_KILLED").await;
    let kinds: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "failed_health_check_event",
            "health_status_changed_event",
            "instance_health_changed_event",
            "failed_health_check_event",
            "unhealthy_instance_kill_event",
            "status_update_event TASK_KILLING",
            "instance_changed_event Killing",
            "status_update_event TASK_KILLED",
        ]
    );
    scheduler.stop().await;
}

#[tokio::test]
async fn definitions_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Processes).await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/a/b", 2))).await;
    events.until_deployed().await;
    scheduler.send("PUT", "/v2/apps/a/b", Some(json!({"labels": {"x": "y"}}))).await;
    events.until_deployed().await;
    let before = scheduler.get("/v2/apps/a/b/versions").await;
    let second = Config { state_dir: dir.path().to_owned(), ..Config::default() };
    assert!(matches!(start(second, CancellationToken::new()).await, Err(Error::Locked { .. })));
    scheduler.stop().await;

    let scheduler = Scheduler::start(dir.path(), Instances::Processes).await;
    assert_eq!(scheduler.get("/v2/apps/a/b/versions").await, before);
    let app = scheduler.get("/v2/apps/a/b").await["app"].clone();
    assert_eq!((&app["labels"], &app["portDefinitions"][0]["port"]), (&json!({"x": "y"}), &json!(10000)));
    let known = json!({"id": "/a/b", "cmd": "never used"});
    scheduler.running.ensure_app(known).await.expect("it is known");
    assert_eq!(scheduler.get("/v2/apps/a/b").await["app"]["cmd"], "exec sleep 1000");
    scheduler.stop().await;
}

#[tokio::test]
async fn answers_of_the_api() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut events = scheduler.events().await;
    scheduler.send("POST", "/v2/apps", Some(sleeper("/g/a", 1))).await;
    events.until_deployed().await;
    let locked = json!({"cpus": 1000.0});
    for (method, path, body, status, message) in [
        ("GET", "/v2/apps/nix", None, 404, "App '/nix' does not exist"),
        ("GET", "/v2/nix", None, 404, "URI not found: /v2/nix"),
        ("DELETE", "/v2/apps/nix", None, 404, "App '/nix' does not exist"),
        ("PATCH", "/v2/apps/nix", Some(json!({"cmd": "x"})), 404, "App '/nix' does not exist"),
        ("POST", "/v2/apps", Some(sleeper("/g/a", 1)), 409, "An app with id [/g/a] already exists."),
        ("POST", "/v2/apps", Some(json!({"id": "/x", "cpus": "1"})), 422, "Invalid JSON"),
        ("POST", "/v2/apps", Some(json!({"id": "/x"})), 422, "Object is not valid"),
        (
            "GET",
            "/v2/apps/g/a/versions/20:39:32.972Z",
            None,
            422,
            "Invalid timestamp provided '20:39:32.972Z'. Expecting ISO-8601 datetime string.",
        ),
        (
            "POST",
            "/v2/tasks/delete",
            Some(json!({"ids": ["unknown-task-id"]})),
            400,
            "Invalid task id 'unknown-task-id'. [taskId unknown-task-id no valid identifier (of class java.lang.String)]",
        ),
        (
            "DELETE",
            "/v2/apps/g/a/tasks?scale=true&wipe=true",
            None,
            400,
            "You cannot use scale and wipe at the same time.",
        ),
        ("DELETE", "/v2/deployments/x", None, 404, "DeploymentPlan x does not exist"),
        ("DELETE", "/v2/queue/g/a/delay", None, 404, "Application /g/a not found in tasks queue."),
        (
            "PUT",
            "/v2/apps/g/a",
            Some(json!({"version": "2015-01-01T00:00:00Z", "cpus": 1})),
            422,
            "The 'version' field may only be combined with the 'id' field.",
        ),
        ("GET", "/v2/groups/nix", None, 404, "Group '/nix' does not exist"),
        ("PUT", "/v2/apps/g/a", Some(locked), 200, ""),
        (
            "POST",
            "/v2/apps/g/a/restart",
            None,
            409,
            "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.",
        ),
    ] {
        let (got, answer) = scheduler.send(method, path, body).await;
        let text = answer["message"].as_str().unwrap_or_default();
        assert_eq!((got, text), (status, message), "{method} {path}: {answer}");
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn the_stream_is_framed_as_marathon_frames_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let mut stream = TcpStream::connect(scheduler.running.address).await.expect("connect");
    let request = "GET /v2/events?event_type=event_stream_attached HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut text = String::new();
    let read = async {
        while !text.ends_with("\r\n\r\n\r\n") {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.expect("read");
            assert!(n > 0, "closed after {text}");
            text.push_str(std::str::from_utf8(&buffer[..n]).expect("UTF-8"));
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("an event in time");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    for line in [
        "content-type: text/event-stream;charset=utf-8",
        "transfer-encoding: chunked",
        "connection: close",
        "cache-control: no-cache, no-store, must-revalidate",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    // One chunk holds the whole event.
    let (size, event) = body.split_once("\r\n").expect("a chunk");
    assert_eq!(usize::from_str_radix(size, 16).expect("a size"), event.len() - 2);
    assert!(event.starts_with("event: event_stream_attached\r\ndata: {\"eventType\""), "{event}");

    // Any other wish than exactly this type is refused.
    let url = format!("http://{}/v2/events", scheduler.running.address);
    let refused = scheduler.client.get(url).header("accept", "text/event-stream;q=1").send().await;
    assert_eq!(refused.expect("an answer").status().as_u16(), 405);
    scheduler.stop().await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let scheduler = Scheduler::start(dir.path(), Instances::Simulated).await;
    let url = format!("http://{}/v2/apps", scheduler.running.address);
    for (method, name, value, status) in [
        ("GET", "host", "rebound.example", 421),
        ("POST", "origin", "http://evil.example", 403),
        ("POST", "sec-fetch-site", "cross-site", 403),
        ("POST", "content-type", "text/plain", 415),
        ("GET", "origin", "http://evil.example", 200),
    ] {
        let request = scheduler.client.request(method.parse().expect("a method"), &url);
        let body = if method == "POST" { sleeper("/evil", 1).to_string() } else { String::new() };
        let answer = request.header(name, value).body(body).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{method} {name}: {value}");
    }
    let too_long = scheduler.client.post(&url).body(vec![b' '; 9 * 1024 * 1024]).send().await;
    // The server may close before everything is sent.
    assert!(too_long.is_err() || too_long.is_ok_and(|answer| answer.status().as_u16() == 413));
    assert_eq!(scheduler.get("/v2/apps").await, json!({"apps": []}));
    let open = Config { listen: "0.0.0.0:0".parse().expect("an address"), ..Config::default() };
    assert!(matches!(start(open, CancellationToken::new()).await, Err(Error::Open { .. })));
    scheduler.stop().await;
}
