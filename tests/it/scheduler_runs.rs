//! What the embedded scheduler does with a definition on this machine: files fetched, images through `docker`,
//! pods, constraints, container networks, secrets, and who may ask.
//!
//! Not here: deployments and events (`scheduler_model`), answers that need nothing to run (`compat_documents`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::client::{self, Connection, DEADLINE};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PROGRAM;

async fn add(waymark: &Waymark, app: Value) -> anyhow::Result<()> {
    let (status, answer) = waymark.api("POST", "/v2/apps", Some(app)).await?;
    anyhow::ensure!(status == 201, "{status} {answer}");
    Ok(())
}

/// Asks until the answer is as wanted.
async fn until(
    waymark: &Waymark,
    path: &str,
    what: &str,
    fits: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let last = std::cell::RefCell::new(Value::Null);
    let wait = async {
        loop {
            let (_, answer) = waymark.api("GET", path, None).await?;
            if fits(&answer) {
                return anyhow::Ok(answer);
            }
            last.replace(answer);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(2 * DEADLINE, wait).await {
        Ok(answer) => answer,
        Err(_) => anyhow::bail!("{what}: {}\n{}", last.into_inner(), waymark.log()),
    }
}

async fn log_of(waymark: &Waymark, app: &str) -> anyhow::Result<String> {
    let task = waymark.api("GET", &format!("/v2/apps{app}"), None).await?.1["app"]["tasks"][0]["id"].clone();
    let path = format!("/waymark/v1/tasks/{}/logs/stdout", task.as_str().context("a task")?);
    Ok(client::get(waymark.address("scheduler"), &path).await?.text())
}

async fn log_until(waymark: &Waymark, app: &str, wanted: &str) -> anyhow::Result<String> {
    let wait = async {
        loop {
            let log = log_of(waymark, app).await?;
            if log.contains(wanted) {
                return anyhow::Ok(log);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.with_context(|| format!("{app} never wrote {wanted}"))?
}

/// Serves the same bytes to everybody.
async fn file_server(bytes: Vec<u8>) -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(&[head.as_bytes(), &bytes].concat()).await;
        }
    });
    Ok(address)
}

#[tokio::test]
async fn files_are_there_before_the_command() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("inside.txt"), "unpacked")?;
    let archive = folder.path().join("data.tar.gz");
    let tar = std::process::Command::new("tar")
        .args(["-czf", &archive.to_string_lossy(), "-C", &folder.path().to_string_lossy(), "inside.txt"])
        .status()?;
    assert!(tar.success());
    let server = file_server(b"#!/bin/sh\necho fetched; cat inside.txt; exec sleep 1000\n".to_vec()).await?;
    add(
        &waymark,
        json!({"id": "/fetcher", "cmd": "./tool", "cpus": 0.1, "mem": 16, "fetch": [
            {"uri": archive.to_string_lossy()},
            {"uri": format!("http://{server}/tool?x=1"), "executable": true, "cache": true}]}),
    )
    .await?;
    waymark.settled().await?;
    let log = log_until(&waymark, "/fetcher", "unpacked").await?;
    assert!(log.starts_with("fetched\n"), "{log}");

    // A file that cannot be had fails the task and says why.
    add(&waymark, json!({"id": "/lost", "cmd": "true", "cpus": 0.1, "mem": 16, "uris": ["/nowhere/at/all"]}))
        .await?;
    let app =
        until(&waymark, "/v2/apps/lost", "the failure", |a| a["app"]["lastTaskFailure"].is_object()).await?;
    let message = app["app"]["lastTaskFailure"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("Failed to fetch '/nowhere/at/all'"), "{message}");
    Ok(())
}

/// A `docker` that writes down how it was called and runs the command of `run` on this machine.
fn fake_docker(folder: &Path) -> anyhow::Result<()> {
    let script = r#"#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$1" in
run) shift; while [ "$1" != example/image ]; do shift; done; shift; exec "$@" ;;
inspect) echo "172.17.0.2 " ;;
esac
"#;
    let file = folder.join("docker");
    std::fs::write(&file, script)?;
    Ok(std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?)
}

/// All calls of it, once one of them was that: it writes them down at its own pace.
async fn docker_calls(folder: &Path, wanted: &str) -> anyhow::Result<String> {
    let wait = async {
        loop {
            let calls = std::fs::read_to_string(folder.join("calls")).unwrap_or_default();
            if calls.lines().any(|call| call.contains(wanted)) {
                return calls;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.with_context(|| format!("docker was never told {wanted}"))
}

#[tokio::test]
async fn images_run_through_docker() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    fake_docker(folder.path())?;
    let waymark = Waymark::dev_finding(PROGRAM, folder.path(), &["--no-demo"]).await?;
    add(
        &waymark,
        json!({"id": "/image", "cmd": "exec sleep 1000", "cpus": 0.5, "mem": 64, "env": {"K": "V"},
            "container": {"type": "DOCKER", "docker": {"image": "example/image", "network": "BRIDGE",
                "forcePullImage": true, "privileged": true,
                "portMappings": [{"containerPort": 80, "hostPort": 0, "protocol": "udp,tcp"}],
                "parameters": [{"key": "hostname", "value": "box"}]},
                "volumes": [{"containerPath": "/data", "hostPath": "/tmp", "mode": "RO"}]}}),
    )
    .await?;
    waymark.settled().await?;
    let app = waymark.api("GET", "/v2/apps/image", None).await?.1["app"].clone();
    let task = &app["tasks"][0];
    assert_eq!(task["ipAddresses"][0]["ipAddress"], "172.17.0.2");
    let port = task["ports"][0].as_u64().context("a host port")?;
    let calls = docker_calls(folder.path(), "run ").await?;
    for words in [
        "pull example/image",
        &format!("--name waymark-{}", task["id"].as_str().unwrap_or_default()),
        "--cpu-shares 512 --memory 64m",
        "--env K=V",
        "--env MESOS_SANDBOX=/mnt/mesos/sandbox",
        "--volume /tmp:/data:ro",
        "--network bridge",
        &format!("--publish {port}:80/udp --publish {port}:80/tcp"),
        "--privileged --hostname=box example/image /bin/sh -c exec sleep 1000",
    ] {
        assert!(calls.contains(words), "{words} in {calls}");
    }
    assert_eq!(waymark.api("DELETE", "/v2/apps/image", None).await?.0, 200);
    waymark.settled().await?;
    docker_calls(folder.path(), "rm --force waymark-image.instance-").await?;
    Ok(())
}

#[tokio::test]
async fn pods_run_as_processes() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let container = |name: &str, endpoints: Value| {
        json!({"name": name, "resources": {"cpus": 0.1, "mem": 16}, "endpoints": endpoints,
            "exec": {"command": {"shell": "exec sleep 1000"}}})
    };
    let pod = json!({"id": "/pod", "scaling": {"kind": "fixed", "instances": 1}, "containers": [
        container("web", json!([{"name": "http", "hostPort": 0, "protocol": ["tcp"]}])),
        container("side", json!([]))]});
    let (status, answer) = waymark.api("POST", "/v2/pods", Some(pod.clone())).await?;
    assert_eq!(status, 201, "{answer}");
    waymark.settled().await?;
    let one = waymark.api("GET", "/v2/pods/pod::status", None).await?.1;
    assert_eq!((&one["status"], &one["instances"][0]["status"]), (&json!("STABLE"), &json!("STABLE")));
    let containers = &one["instances"][0]["containers"];
    assert_eq!((&containers[0]["name"], &containers[1]["name"]), (&json!("web"), &json!("side")));
    assert!(containers[0]["endpoints"][0]["allocatedHostPort"].is_u64(), "{containers}");
    for container in [0, 1] {
        let id = containers[container]["containerId"].as_str().context("an id")?;
        tests::waymark::processes_when(id, |n| n == 1).await?;
    }
    // Apps and pods do not show up among each other.
    assert_eq!(waymark.api("GET", "/v2/apps", None).await?.1, json!({"apps": []}));
    assert_eq!(waymark.api("GET", "/v2/apps/pod", None).await?.0, 404);

    let mut scaled = pod;
    scaled["scaling"]["instances"] = json!(3);
    assert_eq!(waymark.api("PUT", "/v2/pods/pod", Some(scaled)).await?.0, 200);
    waymark.settled().await?;
    let all = waymark.api("GET", "/v2/pods/::status", None).await?.1;
    assert_eq!(all[0]["instances"].as_array().map(Vec::len), Some(3));
    let versions = waymark.api("GET", "/v2/pods/pod::versions", None).await?.1;
    assert_eq!(versions.as_array().map(Vec::len), Some(2));
    let first = format!("/v2/pods/pod::versions/{}", versions[1].as_str().unwrap_or_default());
    assert_eq!(waymark.api("GET", &first, None).await?.1["scaling"]["instances"], 1);
    let instance = all[0]["instances"][0]["id"].as_str().context("an id")?;
    let (status, killed) =
        waymark.api("DELETE", &format!("/v2/pods/pod::instances/{instance}"), None).await?;
    assert_eq!((status, killed["id"].as_str()), (200, Some(instance)));
    assert_eq!(all[0]["terminationHistory"], json!([]));
    // The end of one container is the end of all, and of the instance.
    let failing = json!({"id": "/failing", "containers": [{"name": "once", "resources": {"cpus": 0.1, "mem": 16},
        "exec": {"command": {"shell": "exit 3"}}}]});
    assert_eq!(waymark.api("POST", "/v2/pods", Some(failing)).await?.0, 201);
    let failed = |status: &Value| status["terminationHistory"][0]["instanceID"].is_string();
    let history = until(&waymark, "/v2/pods/failing::status", "the failure", failed).await?;
    let last = &history["terminationHistory"][0];
    assert_eq!(last["message"], "Command exited with status 3");
    assert_eq!(last["containers"][0]["lastKnownState"], "TASK_FAILED");
    assert!(last["startedAt"].as_str() <= last["terminatedAt"].as_str(), "{last}");
    assert_eq!(waymark.api("DELETE", "/v2/pods/failing?force=true", None).await?.0, 202);
    assert_eq!(waymark.api("DELETE", "/v2/pods/pod", None).await?.0, 202);
    waymark.settled().await?;
    assert_eq!(waymark.api("GET", "/v2/pods", None).await?.1, json!([]));
    Ok(())
}

#[tokio::test]
async fn what_constraints_or_resources_forbid_waits_and_says_why() -> anyhow::Result<()> {
    let flags = ["--no-demo", "--cpus", "1", "--mem", "100", "--disk", "100", "--attribute", "rack=r1"];
    let waymark = Waymark::dev(PROGRAM, &flags).await?;
    for (id, extra, reason) in [
        ("/unlike", json!({"constraints": [["rack", "UNLIKE", "r[0-9]"]]}), "UnfulfilledConstraint"),
        ("/cpus", json!({"cpus": 2}), "InsufficientCpus"),
        ("/mem", json!({"mem": 200}), "InsufficientMemory"),
        ("/disk", json!({"disk": 200}), "InsufficientDisk"),
        ("/like", json!({"constraints": [["rack", "LIKE", "r.*"], ["hostname", "UNIQUE"]]}), ""),
    ] {
        let mut app = json!({"id": id, "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16});
        app.as_object_mut().context("an object")?.extend(extra.as_object().cloned().unwrap_or_default());
        add(&waymark, app).await?;
        let path = format!("/v2/apps{id}");
        if reason.is_empty() {
            until(&waymark, &path, "it runs", |app| app["app"]["tasksRunning"] == 1).await?;
            continue;
        }
        let queue = waymark.api("GET", "/v2/queue?embed=lastUnusedOffers", None).await?.1;
        let items = queue["queue"].as_array().context("a queue")?;
        let item = items.iter().find(|item| item["app"]["id"] == id).context("it waits")?;
        assert_eq!((&item["count"], &item["delay"]["overdue"]), (&json!(1), &json!(true)), "{item}");
        let summary = &item["processedOffersSummary"]["rejectSummaryLastOffers"];
        let declined = summary.as_array().into_iter().flatten().find(|entry| entry["reason"] == reason);
        assert_eq!(declined.map(|entry| &entry["declined"]), Some(&json!(1)), "{id}: {summary}");
        assert_eq!(item["lastUnusedOffers"][0]["reason"], json!([reason]));
        assert_eq!(waymark.api("GET", "/v2/deployments", None).await?.1.as_array().map(Vec::len), Some(1));
        assert_eq!(waymark.api("DELETE", &path, None).await?.0, 200);
        waymark.settled().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_container_network_gives_addresses_and_a_secret_its_value() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let secrets = state.path().join("scheduler/secrets/db");
    std::fs::create_dir_all(&secrets)?;
    std::fs::write(secrets.join("password"), "s3cret\n")?;
    let waymark =
        Waymark::dev(PROGRAM, &["--no-demo", "--state-dir", &state.path().to_string_lossy()]).await?;
    add(
        &waymark,
        json!({"id": "/net", "cmd": "echo $MESOS_CONTAINER_IP $PORT0 $PASSWORD; exec sleep 1000", "cpus": 0.1,
            "mem": 16, "instances": 2, "networks": [{"mode": "container", "name": "dcos"}],
            "container": {"type": "MESOS", "portMappings": [{"containerPort": 8080, "name": "http"}]},
            "env": {"PASSWORD": {"secret": "s"}}, "secrets": {"s": {"source": "/db/password"}}}),
    )
    .await?;
    waymark.settled().await?;
    let app = waymark.api("GET", "/v2/apps/net", None).await?.1["app"].clone();
    let address =
        |index: usize| app["tasks"][index]["ipAddresses"][0]["ipAddress"].as_str().unwrap_or_default();
    assert!(address(0) != address(1) && address(0).starts_with("127."), "{app}");
    assert_eq!(app["tasks"][0]["ports"], json!([]));
    log_until(&waymark, "/net", &format!("{} 8080 s3cret", address(0))).await?;
    Ok(())
}

#[tokio::test]
async fn beyond_loopback_requests_must_bring_a_token() -> anyhow::Result<()> {
    let refused = std::process::Command::new(PROGRAM)
        .args(["dev", "--scheduler-listen", "0.0.0.0:0", "--stats-listen", "127.0.0.1:0", "--http-listen"])
        .args(["127.0.0.1:0", "--appid-listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0"])
        .args(["--dns-http-listen", "127.0.0.1:0", "--vip-plane", "userspace", "--state-dir"])
        .arg(tempfile::tempdir()?.path())
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("only listen on 0.0.0.0:0 with a token"), "{said}");

    let flags = ["--no-demo", "--scheduler-listen", "0.0.0.0:0", "--scheduler-token", "s3cret"];
    let waymark = Waymark::dev(PROGRAM, &flags).await?;
    let address = (std::net::Ipv4Addr::LOCALHOST, waymark.address("scheduler").port()).into();
    for (header, host, status) in [
        ("X-None: 1", "localhost", 401),
        ("Authorization: token=wrong", "localhost", 401),
        ("Authorization: token=s3cret", "localhost", 200),
        ("Authorization: Bearer s3cret", "192.168.7.7:8080", 200),
        ("Authorization: token=s3cret", "rebound.example", 421),
    ] {
        let mut connection = Connection::open(address).await?;
        let host = format!("Host: {host}");
        let answer = connection.request("GET", "/v2/apps", &[&host, header], b"").await?;
        assert_eq!(answer.status, status, "{header} {host}: {}", answer.text());
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    Ok(())
}
