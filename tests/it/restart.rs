//! `waymark dev` ends and comes back: nothing of its instances is left behind, and its apps are known again.

use std::time::{Duration, Instant};

use tests::client::{self, DEADLINE};
use tests::waymark::{Waymark, processes_of, processes_when};

use crate::{APP, PROGRAM};

async fn task_ids(waymark: &Waymark) -> anyhow::Result<Vec<String>> {
    let answer = client::get(waymark.address("scheduler"), "/v2/tasks").await?.json()?;
    let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
    Ok(tasks.iter().filter_map(|t| t["id"].as_str().map(str::to_owned)).collect())
}

async fn all_gone(task_ids: &[String]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left: Vec<i32> = task_ids.iter().flat_map(|id| processes_of(id)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "processes of instances are left: {left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn apps_are_kept_and_instances_are_not_left_behind() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let state_dir = state.path().to_string_lossy().into_owned();
    let waymark = Waymark::dev(PROGRAM, &["--state-dir", &state_dir]).await?;
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let tasks = task_ids(&waymark).await?;
    assert_eq!(tasks.len(), 2);
    for task in &tasks {
        processes_when(task, |n| n > 0).await?;
    }
    assert_eq!(waymark.stop().await?, Some(0));
    all_gone(&tasks).await;

    let waymark = Waymark::dev(PROGRAM, &["--state-dir", &state_dir]).await?;
    waymark
        .until("/haproxy?stats;csv", "two servers after the restart", |csv| {
            csv.text().lines().filter(|l| l.starts_with("dcos-101_app2_10000,127_0_0_1_")).count() == 2
        })
        .await?;
    let tasks = task_ids(&waymark).await?;
    waymark.signal(libc::SIGKILL);
    all_gone(&tasks).await;
    Ok(())
}

#[tokio::test]
async fn grandchildren_end_with_their_instance() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let file = waymark.scratch().join("family.json");
    let app = serde_json::json!({
        "id": "/family", "cmd": "trap '' TERM; sleep 1000 & sleep 1000 & wait; sleep 1000", "cpus": 0.01, "mem": 8,
        "taskKillGracePeriodSeconds": 1, "portDefinitions": [],
    });
    std::fs::write(&file, app.to_string())?;
    waymark.ok(&["app", "add", &file.to_string_lossy(), "--wait"]).await?;
    let tasks = task_ids(&waymark).await?;
    // A shell and its children.
    processes_when(&tasks[0], |n| n >= 3).await?;
    waymark.ok(&["app", "remove", "/family", "--wait"]).await?;
    all_gone(&tasks).await;
    Ok(())
}

#[tokio::test]
async fn open_deployments_and_groups_survive_a_kill() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let flags = ["--no-demo", "--cpus", "4", "--state-dir", &state.path().to_string_lossy()];
    let waymark = Waymark::dev(PROGRAM, &flags).await?;
    let group = serde_json::json!({"id": "/shop", "dependencies": ["/base"], "apps": [
        {"id": "web", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16, "instances": 2}]});
    assert_eq!(waymark.api("POST", "/v2/groups", Some(group)).await?.0, 201);
    waymark.settled().await?;
    let stuck = serde_json::json!({"cpus": 100});
    assert_eq!(waymark.api("PUT", "/v2/apps/shop/web", Some(stuck)).await?.0, 200);
    let before = task_ids(&waymark).await?;
    let facts = async |waymark: &Waymark| -> anyhow::Result<_> {
        Ok((
            waymark.api("GET", "/v2/deployments", None).await?.1[0]["id"].clone(),
            waymark.api("GET", "/v2/apps/shop/web/versions", None).await?.1,
            waymark.api("GET", "/v2/groups/shop/versions", None).await?.1,
            waymark.api("GET", "/v2/groups/shop", None).await?.1["dependencies"].clone(),
        ))
    };
    let known = facts(&waymark).await?;
    assert!(known.0.is_string(), "the deployment is stuck: {known:?}");
    waymark.signal(libc::SIGKILL);
    all_gone(&before).await;

    let waymark = Waymark::dev(PROGRAM, &flags).await?;
    assert_eq!(facts(&waymark).await?, known);
    // What the deployment has still to replace runs as it did.
    let deadline = Instant::now() + DEADLINE;
    while waymark.api("GET", "/v2/apps/shop/web", None).await?.1["app"]["tasksRunning"] != 2 {
        assert!(Instant::now() < deadline, "the old instances do not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let small = serde_json::json!({"cpus": 0.2});
    assert_eq!(waymark.api("PUT", "/v2/apps/shop/web", Some(small.clone())).await?.0, 409);
    assert_eq!(waymark.api("PUT", "/v2/apps/shop/web?force=true", Some(small)).await?.0, 200);
    waymark.settled().await?;
    let tasks = task_ids(&waymark).await?;
    assert_eq!(tasks.len(), 2);
    waymark.stop().await?;
    all_gone(&tasks).await;
    Ok(())
}
