//! Whom the scheduler trusts and as whom it runs things: certificates of https servers that files are fetched
//! from, and the `user` of an app.
//!
//! Not here: archives and local files (`scheduler_runs`), and who may ask the API.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::client::DEADLINE;
use tests::waymark::Waymark;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::PROGRAM;

/// A server of one file, and its port.
async fn https_server(folder: &Path) -> anyhow::Result<(Child, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(folder.join("authority.pem"), made.cert.pem())?;
    let both = folder.join("server.pem");
    std::fs::write(&both, made.cert.pem() + &made.signing_key.serialize_pem())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clients/https_file.py");
    let mut server = Command::new("python3");
    server.arg(script).arg(both).stdout(Stdio::piped()).kill_on_drop(true);
    let mut server = server.spawn()?;
    let mut port = String::new();
    let output = server.stdout.take().context("it is piped")?;
    tokio::time::timeout(DEADLINE, BufReader::new(output).read_line(&mut port)).await??;
    Ok((server, port.trim().to_owned()))
}

/// Runs an app that fails, and answers with what the scheduler says about it.
async fn failure_of(waymark: &Waymark, app: Value) -> anyhow::Result<String> {
    let path = format!("/v2/apps{}", app["id"].as_str().context("an id")?);
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app)).await?.0, 201);
    let wait = async {
        loop {
            let app = waymark.api("GET", &path, None).await?.1;
            if let Some(message) = app["app"]["lastTaskFailure"]["message"].as_str() {
                return anyhow::Ok(message.to_owned());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.context("it does not fail")?
}

#[tokio::test]
async fn a_private_authority_is_trusted_only_when_it_is_named() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (_server, port) = https_server(folder.path()).await?;
    let uri = format!("https://localhost:{port}/file");
    let app =
        |id: &str, cmd: &str| json!({"id": id, "cmd": cmd, "cpus": 0.1, "mem": 16, "fetch": [{"uri": uri}]});

    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let message = failure_of(&waymark, app("/stranger", "true")).await?;
    assert!(message.starts_with(&format!("Failed to fetch '{uri}'")), "{message}");
    assert!(message.contains("invalid peer certificate"), "{message}");

    let authority = folder.path().join("authority.pem");
    let script = folder.path().join("waymark");
    let line =
        format!("#!/bin/sh\nSSL_CERT_FILE='{}' exec '{PROGRAM}' \"$@\"\n", authority.to_string_lossy());
    std::fs::write(&script, line)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let waymark = Waymark::dev(&script.to_string_lossy(), &["--no-demo"]).await?;
    let cmd = "grep -q 'over tls' file && exec sleep 1000";
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app("/known", cmd))).await?.0, 201);
    waymark.settled().await
}

#[tokio::test]
async fn an_app_runs_as_its_user() -> anyhow::Result<()> {
    // SAFETY: geteuid(2) has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("SKIPPED: only root may switch users");
        return Ok(());
    }
    let state = tempfile::tempdir()?;
    std::fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::write(state.path().join("given"), "given")?;
    let folder = state.path().join("state");
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--state-dir", &folder.to_string_lossy()]).await?;
    // One agent is one group, however many instances there are.
    let app = json!({"id": "/own", "user": "nobody", "cpus": 0.1, "mem": 16, "instances": 2,
        "constraints": [["hostname", "GROUP_BY"]], "fetch": [{"uri": state.path().join("given")}],
        "cmd": "test $(id -un) = nobody && echo more >> given && touch new && exec sleep 1000"});
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app)).await?.0, 201);
    waymark.settled().await?;
    let app = waymark.api("GET", "/v2/apps/own", None).await?.1;
    for task in app["app"]["tasks"].as_array().context("tasks")? {
        let pids = tests::waymark::processes_when(task["id"].as_str().context("an id")?, |n| n > 0).await?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", pids.first().context("a process")?))?;
        let uid = status.lines().find(|line| line.starts_with("Uid:")).context("a uid")?;
        assert!(uid.split_whitespace().skip(1).all(|id| id != "0"), "{uid}");
    }
    let unknown = json!({"id": "/nix", "user": "no-such-user", "cmd": "true", "cpus": 0.1, "mem": 16});
    let message = failure_of(&waymark, unknown).await?;
    assert!(message.contains("there is no user 'no-such-user'"), "{message}");
    Ok(())
}
