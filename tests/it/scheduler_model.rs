//! Random operations on the embedded scheduler; after each one, what it lists, what its events said, and what
//! was asked of it must agree. The seed is printed; `SCHEDULER_SEED` repeats a run.
//!
//! Not here: single operations and their answers (`compat_documents`), real processes (`restart`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tests::client::{Connection, DEADLINE};
use tests::waymark::Waymark;

use crate::PROGRAM;

const N_STEPS: usize = 150;
const IDS: [&str; 5] = ["/a", "/shop/web", "/shop/db", "/shop/deep/worker", "/other"];
/// More than the agent has: a deployment with this waits for ever.
const TOO_MANY_CPUS: f64 = 1000.0;

/// What the events said so far.
#[derive(Debug, Default)]
struct Told {
    /// Tasks that have been told to run and not to have ended.
    running: BTreeSet<String>,
    /// Deployments that began and did not end.
    deployments: BTreeSet<String>,
    n_events: usize,
}

impl Told {
    fn take(&mut self, event: &Value) {
        self.n_events += 1;
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match event["eventType"].as_str() {
            Some("status_update_event") => match event["taskStatus"].as_str() {
                Some("TASK_RUNNING") => {
                    self.running.insert(text("taskId"));
                }
                Some(_) if has_ended(event) => {
                    self.running.remove(&text("taskId"));
                }
                _ => {}
            },
            Some("deployment_info") => {
                self.deployments.insert(event["plan"]["id"].as_str().unwrap_or_default().to_owned());
            }
            Some("deployment_success" | "deployment_failed") => {
                self.deployments.remove(&text("id"));
            }
            _ => {}
        }
    }
}

fn has_ended(event: &Value) -> bool {
    matches!(event["taskStatus"].as_str(), Some("TASK_KILLED" | "TASK_FAILED" | "TASK_FINISHED"))
}

struct World {
    waymark: Waymark,
    stream: Connection,
    /// Bytes of the stream that are no whole event yet.
    rest: Vec<u8>,
    told: Told,
    /// Instances wanted of each app.
    wanted: BTreeMap<String, u64>,
    log: Vec<String>,
}

impl World {
    async fn start() -> anyhow::Result<Self> {
        let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate", "--cpus", "100"]).await?;
        let mut stream = Connection::open(waymark.address("scheduler")).await?;
        stream.begin("GET", "/v2/events", &["Accept: text/event-stream"]).await?;
        let told = Told::default();
        Ok(Self { waymark, stream, rest: Vec::new(), told, wanted: BTreeMap::new(), log: Vec::new() })
    }

    async fn send(&mut self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<(u16, Value)> {
        let text = body.as_ref().map(Value::to_string).unwrap_or_default();
        self.log.push(format!("{method} {path} {text}"));
        let headers: &[&str] = if body.is_some() { &["Content-Type: application/json"] } else { &[] };
        let mut connection = Connection::open(self.waymark.address("scheduler")).await?;
        let answer = connection.request(method, path, headers, text.as_bytes()).await?;
        Ok((answer.status, answer.json().unwrap_or_default()))
    }

    async fn must(&mut self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, body).await?;
        if status >= 300 {
            bail!("{status} {answer}");
        }
        Ok(answer)
    }

    /// Takes in events until one is as wanted.
    async fn events_until(&mut self, fits: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let read = async {
            loop {
                while let Some(end) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                    let frame: Vec<u8> = self.rest.drain(..end + 4).collect();
                    let frame = String::from_utf8(frame)?;
                    let data = frame.lines().find_map(|line| line.strip_prefix("data: "));
                    let event: Value = serde_json::from_str(data.context("no data")?)?;
                    self.told.take(&event);
                    if fits(&event) {
                        return Ok(());
                    }
                }
                let chunk = self.stream.chunk().await?.context("the stream ended")?;
                // A heartbeat is an empty line between events.
                if chunk != b"\r\n" {
                    self.rest.extend(chunk);
                }
            }
        };
        tokio::time::timeout(DEADLINE, read).await.context("the events stop")?
    }

    /// Waits until nothing is being changed, then compares everything.
    async fn check(&mut self) -> anyhow::Result<()> {
        let quiet = async {
            while self.must("GET", "/v2/deployments", None).await? != json!([]) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // A killed task comes back without a deployment.
            while self.must("GET", "/v2/queue", None).await?["queue"] != json!([]) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, quiet).await.context("it does not come to rest")??;
        let all_run = async {
            loop {
                let apps = self.must("GET", "/v2/apps?embed=apps.tasks", None).await?;
                let list: Vec<Value> = apps["apps"].as_array().cloned().unwrap_or_default();
                if list.iter().all(|app| app["tasksRunning"] == app["instances"] && app["tasksStaged"] == 0) {
                    return anyhow::Ok(list);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let apps = tokio::time::timeout(DEADLINE, all_run).await.context("instances are missing")??;
        // A change that changes nothing: once its end is told, everything before it was.
        let marker = self.must("PUT", "/v2/groups", Some(json!({}))).await?;
        self.events_until(|event| {
            event["eventType"] == "deployment_success" && event["id"] == marker["deploymentId"]
        })
        .await?;
        let listed: BTreeMap<String, u64> = apps
            .iter()
            .map(|app| (text(&app["id"]), app["instances"].as_u64().unwrap_or_default()))
            .collect();
        assert_eq!(listed, self.wanted, "the apps listed");
        let running: BTreeSet<String> = apps
            .iter()
            .flat_map(|app| app["tasks"].as_array().into_iter().flatten())
            .map(|t| text(&t["id"]))
            .collect();
        assert_eq!(running, self.told.running, "tasks listed, and told to run");
        assert_eq!(self.told.deployments, BTreeSet::new(), "deployments told to be open");
        let tasks = self.must("GET", "/v2/tasks", None).await?;
        let of_all: BTreeSet<String> =
            tasks["tasks"].as_array().into_iter().flatten().map(|task| text(&task["id"])).collect();
        assert_eq!(of_all, running, "tasks of the apps, and all tasks");
        Ok(())
    }

    async fn step(&mut self, random: &mut StdRng) -> anyhow::Result<()> {
        let id = IDS[random.random_range(0..IDS.len())];
        let path = format!("/v2/apps{id}");
        if !self.wanted.contains_key(id) {
            let instances = random.random_range(0..4_u64);
            let app = json!({"id": id, "cmd": "x", "cpus": 0.1, "instances": instances});
            self.must("POST", "/v2/apps", Some(app)).await?;
            self.wanted.insert(id.to_owned(), instances);
            return Ok(());
        }
        match random.random_range(0..10) {
            0 | 1 => {
                let instances = random.random_range(0..6_u64);
                self.must("PUT", &path, Some(json!({"instances": instances}))).await?;
                self.wanted.insert(id.to_owned(), instances);
            }
            2 => {
                let env = json!({"env": {"STEP": random.random_range(0..1000).to_string()}});
                self.must("PATCH", &path, Some(env)).await?;
            }
            3 => {
                self.must("POST", &format!("{path}/restart"), None).await?;
            }
            4 => {
                self.must("DELETE", &path, None).await?;
                self.wanted.remove(id);
            }
            5 => {
                let tasks = self.must("GET", &format!("{path}/tasks"), None).await?;
                let Some(task) = tasks["tasks"][0]["id"].as_str().map(str::to_owned) else { return Ok(()) };
                let mode = ["", "?wipe=true", "?scale=true"][random.random_range(0..3)];
                self.must("POST", &format!("/v2/tasks/delete{mode}"), Some(json!({"ids": [&task]}))).await?;
                // It dies when its process has; until then it is listed.
                self.events_until(|event| event["taskId"] == task && has_ended(event)).await?;
                if mode == "?scale=true" {
                    *self.wanted.entry(id.to_owned()).or_default() -= 1;
                }
            }
            6 => {
                self.must("PUT", "/v2/groups/shop", Some(json!({"scaleBy": 0.5}))).await?;
                for (id, n) in &mut self.wanted {
                    if id.starts_with("/shop/") {
                        *n = n.div_ceil(2);
                    }
                }
            }
            7 => {
                let versions = self.must("GET", &format!("{path}/versions"), None).await?;
                let all = versions["versions"].as_array().context("versions")?;
                let version = text(&all[random.random_range(0..all.len())]);
                let old = self.must("GET", &format!("{path}/versions/{version}"), None).await?;
                if old["cpus"].as_f64() > Some(1.0) {
                    // It would never fit.
                    return Ok(());
                }
                self.must("PUT", &path, Some(json!({ "version": version }))).await?;
                self.wanted.insert(id.to_owned(), old["instances"].as_u64().context("instances")?);
            }
            8 => {
                // Stuck, locked, and then either taken back or overridden.
                let stuck = json!({"cpus": TOO_MANY_CPUS, "instances": 2});
                let stuck = self.must("PUT", &path, Some(stuck)).await?;
                let (status, _) = self.send("PUT", &path, Some(json!({"instances": 1}))).await?;
                assert_eq!(status, 409, "{id} is locked");
                if random.random() {
                    let deployment = text(&stuck["deploymentId"]);
                    self.must("DELETE", &format!("/v2/deployments/{deployment}"), None).await?;
                } else {
                    let sane = json!({"cpus": 0.1, "instances": 1});
                    self.must("PUT", &format!("{path}?force=true"), Some(sane)).await?;
                    self.wanted.insert(id.to_owned(), 1);
                }
            }
            _ => {
                // A group is there as long as nobody removes it, with or without apps.
                let (status, answer) = self.send("DELETE", "/v2/groups/shop/deep", None).await?;
                assert!(matches!(status, 200 | 404), "{answer}");
                self.wanted.remove("/shop/deep/worker");
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn lists_and_events_agree_after_every_operation() -> anyhow::Result<()> {
    let seed = match std::env::var("SCHEDULER_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64 | 1,
    };
    eprintln!("SCHEDULER_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::start().await?;
    for step in 0..N_STEPS {
        let from = world.log.len();
        let done = async {
            world.step(&mut random).await?;
            world.check().await
        };
        done.await.with_context(|| format!("step {step}: {:#?}", &world.log[from.min(world.log.len())..]))?;
    }
    assert!(world.told.n_events > 2 * N_STEPS, "there was hardly an event: {}", world.told.n_events);
    Ok(())
}
