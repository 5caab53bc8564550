//! An instance dies without a word: its clients are served by the others, and it is started again.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::client;
use tests::load::{Connections, Load, Shape};
use tests::waymark::{Waymark, processes_when};

use crate::{APP, PROGRAM};

async fn task_ids(waymark: &Waymark) -> anyhow::Result<BTreeSet<String>> {
    let answer = client::get(waymark.address("scheduler"), &format!("/v2/apps{APP}/tasks")).await?.json()?;
    let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
    Ok(tasks.iter().filter_map(|t| t["id"].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn nobody_sees_an_error_when_an_instance_is_killed() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    waymark.ok(&["app", "scale", APP, "3", "--wait"]).await?;
    let before = task_ids(&waymark).await?;
    let shape = Shape { n_clients: 4, connections: Connections::Kept, rate: Some(400) };
    let load = Load::start(waymark.service(10000), "/", shape);
    for victim in before.iter().take(2) {
        for pid in processes_when(victim, |n| n > 0).await? {
            // SAFETY: kill(2) takes numbers only; the process carries the id of our own instance.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        load.sends(100).await;
    }
    // Marathon starts them again after its back-off; the planes must take the new ones in.
    waymark
        .until("/api/apps", "three instances in rotation again", |answer| {
            let apps = answer.json().unwrap_or_default();
            let usable = count(&apps, &|value| value["rotation"] == "in" && value["id"].is_string());
            usable == 3 && !before.iter().take(2).any(|gone| apps.to_string().contains(gone))
        })
        .await?;
    let outcome = load.stop().await;
    assert_eq!(outcome.n_failed, 0, "{:?}", outcome.reasons);
    Ok(())
}

/// Counts the objects anywhere in a document that `accept` likes.
fn count(value: &Value, accept: &dyn Fn(&Value) -> bool) -> usize {
    let below: usize = match value {
        Value::Array(items) => items.iter().map(|item| count(item, accept)).sum(),
        Value::Object(fields) => fields.values().map(|field| count(field, accept)).sum(),
        _ => 0,
    };
    below + usize::from(value.is_object() && accept(value))
}

#[tokio::test]
async fn a_sticky_client_stays_and_moves_on_when_its_instance_goes() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    waymark
        .ok(&[
            "app",
            "update",
            APP,
            r#"labels={"HAPROXY_0_MODE": "http", "HAPROXY_0_STICKY": "true"}"#,
            "--wait",
        ])
        .await?;
    waymark.ok(&["app", "scale", APP, "3", "--wait"]).await?;
    let service = waymark.service(10000);
    let first = client::get(service, "/").await?;
    let cookie =
        first.header("set-cookie").expect("a cookie is set").split(';').next().unwrap_or_default().to_owned();
    assert!(cookie.starts_with("mesosphere_server_id="), "{cookie}");
    let header = format!("Cookie: a=1; {cookie}");
    for _ in 0..6 {
        let again = client::get_with(service, "/", &[&header]).await?;
        assert_eq!(again.text(), first.text());
        assert_eq!(again.header("set-cookie"), None);
    }
    let holder = task_ids(&waymark).await?.into_iter().find(|id| first.text().contains(id.as_str()));
    let holder = holder.expect("the answer names its instance");
    for pid in processes_when(&holder, |n| n > 0).await? {
        // SAFETY: kill(2) takes numbers only; the process carries the id of our own instance.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let moved = client::get_with(service, "/", &[&header]).await?;
    assert_eq!(moved.status, 200);
    assert!(!moved.text().contains(&holder), "{}", moved.text());
    assert!(moved.header("set-cookie").is_some_and(|c| !c.contains(&cookie)), "{moved:?}");
    Ok(())
}
