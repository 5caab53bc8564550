//! Example definitions as Marathon's documentation writes them, and requests as its clients send them: each
//! definition comes back as it was written, each request gets the answer that its client waits for.
//!
//! Not here: the clients themselves (`compat_clients`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;
use tests::client::{Connection, Response};
use tests::waymark::Waymark;

use crate::PROGRAM;

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path)?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

async fn send(waymark: &Waymark, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Response> {
    let headers: &[&str] = if body.is_some() { &["Content-Type: application/json"] } else { &[] };
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut connection = Connection::open(waymark.address("scheduler")).await?;
    connection.request(method, path, headers, body.as_bytes()).await
}

/// What `written` lost or changed of `asked`; objects may have gained members.
fn differences(path: &str, asked: &Value, written: &Value, found: &mut Vec<String>) {
    match (asked, written) {
        (Value::Object(asked), Value::Object(written)) => {
            for (key, value) in asked {
                let inside = format!("{path}/{key}");
                match written.get(key) {
                    Some(written) => differences(&inside, value, written, found),
                    None => found.push(format!("{inside} is missing")),
                }
            }
        }
        (Value::Array(asked), Value::Array(written)) if asked.len() == written.len() => {
            for (index, (asked, written)) in asked.iter().zip(written).enumerate() {
                differences(&format!("{path}/{index}"), asked, written, found);
            }
        }
        (asked, written) if asked.is_number() && asked.as_f64() == written.as_f64() => {}
        (asked, written) if asked == written => {}
        // Port 0 asks for any.
        (Value::Number(asked), written) if asked.as_u64() == Some(0) && path.ends_with("ort") => {
            assert!(written.as_u64() > Some(0), "{path}: {written}");
        }
        (asked, written) => found.push(format!("{path}: {asked} became {written}")),
    }
}

/// Members whose spelling of Marathon 1.4 is written in today's.
fn modern(mut definition: Value) -> Value {
    if let Some(docker) = definition.pointer_mut("/container/docker").and_then(Value::as_object_mut) {
        let mappings = docker.remove("portMappings");
        if docker.remove("network") == Some("BRIDGE".into()) {
            definition["networks"] = serde_json::json!([{"mode": "container/bridge"}]);
        }
        if let Some(mappings) = mappings {
            definition["container"]["portMappings"] = mappings;
        }
    }
    definition
}

#[tokio::test]
async fn definitions_come_back_as_they_were_written() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]).await?;
    let mut n_read = 0;
    for entry in std::fs::read_dir(fixtures("documents"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "group.json" {
            continue;
        }
        n_read += 1;
        let definition = read(&path)?;
        let collection = if name.starts_with("pod") { "pods" } else { "apps" };
        let created = send(&waymark, "POST", &format!("/v2/{collection}"), Some(&definition)).await?;
        assert_eq!(created.status, 201, "{name}: {}", created.text());
        let id = definition["id"].as_str().context("an id")?.to_owned();
        let shown = send(&waymark, "GET", &format!("/v2/{collection}{id}"), None).await?.json()?;
        let shown = shown.get("app").unwrap_or(&shown).clone();
        let mut found = Vec::new();
        differences("", &modern(definition), &shown, &mut found);
        assert!(found.is_empty(), "{name}: {found:#?}\n{shown:#}");
        // What was shown means the same when it is sent back.
        let path = format!("/v2/{collection}{id}?force=true");
        let echoed = send(&waymark, "PUT", &path, Some(&shown)).await?;
        assert_eq!(echoed.status, 200, "{name}: {}", echoed.text());
        let again = send(&waymark, "GET", &format!("/v2/{collection}{id}"), None).await?.json()?;
        let again = again.get("app").unwrap_or(&again).clone();
        assert_eq!(again["version"], shown["version"], "{name}: an echo changed it");
    }
    assert!(n_read >= 6);
    Ok(())
}

#[tokio::test]
async fn a_group_is_kept_with_its_dependencies() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]).await?;
    let definition = read(&fixtures("documents").join("group.json"))?;
    let created = send(&waymark, "POST", "/v2/groups", Some(&definition)).await?;
    assert_eq!(created.status, 201, "{}", created.text());
    let group = send(&waymark, "GET", "/v2/groups/tools", None).await?.json()?;
    assert_eq!(group["dependencies"], serde_json::json!(["/base"]));
    assert_eq!(group["apps"][0]["id"], "/tools/oauth-server");
    assert_eq!(group["apps"][0]["ports"], serde_json::json!([1980]));
    let below: Vec<&Value> = group["groups"].as_array().into_iter().flatten().collect();
    let of = |id: &str| below.iter().find(|group| group["id"] == id).map(|group| (*group).clone());
    assert_eq!(of("/tools/log").context("the empty group")?["apps"], serde_json::json!([]));
    let docker = of("/tools/docker").context("the nested group")?;
    assert_eq!(docker["dependencies"], serde_json::json!(["/tools/log"]));
    assert_eq!(docker["apps"][0]["dependencies"], serde_json::json!(["/tools/oauth-server"]));
    let known = send(&waymark, "POST", "/v2/groups", Some(&definition)).await?;
    assert_eq!(known.status, 409, "{}", known.text());
    // A version can be looked at, and gone back to, once the group has changed.
    let first = send(&waymark, "GET", "/v2/groups/tools/versions", None).await?.json()?[0].clone();
    let triple = serde_json::json!({"scaleBy": 3});
    let scaled = send(&waymark, "PUT", "/v2/groups/tools?force=true", Some(&triple)).await?;
    assert_eq!(scaled.status, 200, "{}", scaled.text());
    let count = async || -> anyhow::Result<Value> {
        Ok(send(&waymark, "GET", "/v2/apps/tools/oauth-server", None).await?.json()?["app"]["instances"]
            .clone())
    };
    assert_eq!(count().await?, 6);
    let path = format!("/v2/groups/tools/versions/{}", first.as_str().context("a version")?);
    assert_eq!(send(&waymark, "GET", &path, None).await?.json()?["apps"][0]["instances"], 2);
    let back = serde_json::json!({ "version": first });
    assert_eq!(send(&waymark, "PUT", "/v2/groups/tools?force=true", Some(&back)).await?.status, 200);
    assert_eq!(count().await?, 2);
    Ok(())
}

#[tokio::test]
async fn recorded_requests_are_answered() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]).await?;
    let requests = read(&fixtures("requests").join("clients.json"))?;
    for request in requests.as_array().context("a list")? {
        let text = |key: &str| request[key].as_str().unwrap_or_default();
        let mut headers: Vec<String> = vec!["Content-Type: application/json".into()];
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            headers.push(format!("{name}: {}", value.as_str().unwrap_or_default()));
        }
        headers.dedup();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let body = request.get("body").map(Value::to_string).unwrap_or_default();
        let mut connection = Connection::open(waymark.address("scheduler")).await?;
        let answer = connection.request(text("method"), text("path"), &headers, body.as_bytes()).await?;
        assert_eq!(
            answer.status,
            request["status"].as_u64().unwrap_or(200) as u16,
            "{request}: {}",
            answer.text()
        );
        let found = answer.json().unwrap_or_default();
        for pointer in request["has"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(found.pointer(pointer).is_some(), "{request}: no {pointer} in {found}");
        }
        // In a simulation every deployment ends at once; the next request must not meet this one's.
        for _ in 0..500 {
            let open = send(&waymark, "GET", "/v2/deployments", None).await?;
            if open.text() == "[]" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    Ok(())
}
