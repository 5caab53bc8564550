//! Wrong flags, files, labels and definitions: a clear error where its owner looks, and no harm to anybody else.

use std::process::Stdio;

use serde_json::json;
use tests::client::{self, Connection};
use tests::waymark::Waymark;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::{APP, PROGRAM};

/// Runs the program on its own; answers exit code and standard error.
async fn fails(arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let run = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(client::DEADLINE, run).await??;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test]
async fn usage_errors_exit_with_2_and_say_what_is_wrong() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("waymark.toml");
    std::fs::write(&config, "[dns]\nudp_payload_byte = 1232\n")?;
    let config = config.to_string_lossy().into_owned();
    for (arguments, expect) in [
        (&["dev", "--no-such-flag"][..], "--no-such-flag"),
        (&["dev", "--vip-pool", "127.11.0.1/16"], "127.11.0.0/16"),
        (&["dev", "--stats-listen", "nowhere"], "nowhere"),
        (&["dev", "--config", &config], "udp_payload_byte"),
        (&["serve"], "--marathon"),
        (&["app", "update", APP, "instances"], "instances"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let (code, stderr) = fails(arguments).await?;
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expect), "{arguments:?}: {stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_one_line_with_a_hint_and_nothing_is_left_half_started() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    let state = tempfile::tempdir()?;
    let state = state.path().to_string_lossy().into_owned();
    for flag in [
        "--scheduler-listen",
        "--http-listen",
        "--https-listen",
        "--stats-listen",
        "--appid-listen",
        "--dns-listen",
    ] {
        let mut arguments = vec!["dev", "--state-dir", &state];
        for own in [
            "--scheduler-listen",
            "--http-listen",
            "--https-listen",
            "--stats-listen",
            "--appid-listen",
            "--dns-listen",
        ] {
            arguments.extend([own, if own == flag { &address } else { "127.0.0.1:0" }]);
        }
        let (code, stderr) = fails(&arguments).await?;
        assert_eq!(code, Some(1), "{flag}: {stderr}");
        assert!(stderr.contains(&address) && stderr.contains("hint:"), "{flag}: {stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_label_is_a_problem_of_its_app_alone() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    let file = waymark.scratch().join("bad.json");
    let app = json!({
        "id": "/bad/labels", "cmd": "exec sleep 1000", "cpus": 0.01,
        "mem": 8, "portDefinitions": [{"port": 0, "labels": {"VIP_0": "no-port"}}],
        "labels": {"HAPROXY_0_MODE": "http", "HAPROXY_0_BALANCE": "<script>alert(1)</script>"},
    });
    std::fs::write(&file, app.to_string())?;
    waymark.ok(&["app", "add", &file.to_string_lossy(), "--wait"]).await?;
    let status = waymark.ok(&["status"]).await?;
    assert!(status.contains("VIP_0") && status.contains("no-port"), "{status}");
    assert!(status.contains("BALANCE"), "{status}");
    let page = waymark.stats("/").await?.text();
    assert!(page.contains("no-port") && !page.contains("<script>alert"), "{page}");
    assert_eq!(client::get(waymark.service(10000), "/").await?.status, 200, "the other app is served");
    Ok(())
}

#[tokio::test]
async fn the_scheduler_refuses_what_it_cannot_read() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    let mut scheduler = Connection::open(waymark.address("scheduler")).await?;
    let json_type = ["Content-Type: application/json"];
    for (method, path, body, status, message) in [
        ("POST", "/v2/apps", &b"{not json"[..], 400, "Invalid JSON"),
        ("POST", "/v2/apps", br#"{"id": "/x", "cmd": "true", "cpus": "many"}"#, 422, "Invalid JSON"),
        ("POST", "/v2/apps", br#"{"id": "/x"}"#, 422, "Object is not valid"),
        ("POST", "/v2/apps", br#"{"id": "/dcos-101/app2", "cmd": "true"}"#, 409, "already exists"),
        ("GET", "/v2/nope", b"", 404, "URI not found"),
        ("GET", "/v2/apps/nope", b"", 404, "App '/nope' does not exist"),
    ] {
        let answer = scheduler.request(method, path, &json_type, body).await?;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(answer.text().contains(message), "{method} {path}: {}", answer.text());
    }
    let foreign = ["Host: evil.example"];
    assert!(client::get_with(waymark.address("scheduler"), "/v2/apps", &foreign).await?.status >= 400);
    let list = waymark.ok(&["app", "list"]).await?;
    assert!(list.contains(APP) && !list.contains("/x"), "{list}");

    let output = waymark.run(&["app", "show", "/nope"]).await?;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("/nope"), "{}", output.stderr);
    Ok(())
}

#[tokio::test]
async fn unknown_names_and_hosts_have_a_reason() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &[]).await?;
    let output = waymark.run(&["dns", "lookup", "nope.marathon.l4lb.thisdcos.directory"]).await?;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("NXDOMAIN"), "{}", output.stderr);
    let answer = client::get_with(waymark.address("http"), "/", &["Host: nope.example"]).await?;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("nope.example"), "{}", answer.text());
    let answer = client::get_with(waymark.address("http"), "/", &["Host: app2.localhost:9080"]).await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}
