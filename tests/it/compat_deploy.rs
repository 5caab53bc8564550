//! Blue/green deployments: with the one command, and with Marathon-LB's own zdd.

use std::time::Duration;

use serde_json::{Value, json};
use tests::load::{Connections, Load, Shape};
use tests::waymark::Waymark;
use tokio::process::Command;

use crate::PROGRAM;
use crate::compat_clients::{install_python, or_skip};

const PORT: u16 = 18000;

/// The package does not name what it needs.
const ZDD: [&[&str]; 1] = [&["zdd==0.1.0", "requests", "python-dateutil", "six"]];

/// Version `n` of the app: two instances of the demo app, healthy as soon as they answer.
fn definition(version: u32) -> Value {
    json!({
        "id": "/shop", "cmd": format!("exec {PROGRAM} demo-app"), "cpus": 0.01, "mem": 16, "instances": 2,
        "env": {"VERSION": version.to_string()}, "ports": [PORT], "requirePorts": false,
        "healthChecks": [{
            "protocol": "HTTP", "path": "/", "portIndex": 0, "intervalSeconds": 1, "gracePeriodSeconds": 1,
            "timeoutSeconds": 2, "maxConsecutiveFailures": 3,
        }],
        "labels": {
            "HAPROXY_DEPLOYMENT_GROUP": "shop", "HAPROXY_DEPLOYMENT_ALT_PORT": "18001", "HAPROXY_0_MODE": "http",
        },
    })
}

fn write(waymark: &Waymark, app: &Value) -> anyhow::Result<String> {
    let file = waymark.scratch().join("shop.json");
    std::fs::write(&file, app.to_string())?;
    Ok(file.to_string_lossy().into_owned())
}

async fn colours(waymark: &Waymark) -> anyhow::Result<Vec<String>> {
    let list: Value = serde_json::from_str(&waymark.ok(&["app", "list", "--json"]).await?)?;
    let ids = list.as_array().into_iter().flatten().filter_map(|app| app["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

#[tokio::test]
async fn one_command_replaces_an_app_and_nobody_sees_an_error() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let file = write(&waymark, &definition(1))?;
    waymark.ok(&["deploy", "bluegreen", &file]).await?;
    assert_eq!(colours(&waymark).await?, ["/shop-blue"]);
    let shape = Shape { n_clients: 4, connections: Connections::New, rate: Some(100) };
    let load = Load::start(waymark.service(PORT), "/", shape);

    let file = write(&waymark, &definition(2))?;
    let said = waymark.ok(&["deploy", "bluegreen", &file]).await?;
    assert!(said.contains("/shop-green") && said.contains("/shop-blue is removed"), "{said}");
    assert_eq!(colours(&waymark).await?, ["/shop-green"]);
    let outcome = load.stop().await;
    assert!(outcome.n_ok > 20, "{outcome:?}");
    assert_eq!(outcome.n_failed, 0, "{:?}", outcome.reasons);
    Ok(())
}

#[tokio::test]
async fn a_version_that_does_not_come_up_is_taken_back() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let file = write(&waymark, &definition(1))?;
    waymark.ok(&["deploy", "bluegreen", &file]).await?;
    let mut broken = definition(2);
    broken["cmd"] = json!("exec sleep 1000");
    // Not by its port: an instance of another test may listen there.
    broken["healthChecks"] = json!([{
        "protocol": "COMMAND", "command": {"value": "false"}, "intervalSeconds": 1, "gracePeriodSeconds": 1,
        "timeoutSeconds": 2, "maxConsecutiveFailures": 3,
    }]);
    let file = write(&waymark, &broken)?;
    let output = waymark.run(&["deploy", "bluegreen", &file, "--max-wait", "3s"]).await?;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("no progress") && output.stdout.contains("Went back"), "{output:?}");
    assert_eq!(colours(&waymark).await?, ["/shop-blue"]);
    assert_eq!(tests::client::get(waymark.service(PORT), "/").await?.status, 200);

    let output = waymark.run(&["deploy", "bluegreen", &file, "--abort"]).await?;
    assert_eq!(output.code, Some(1), "nothing is under way: {output:?}");
    Ok(())
}

async fn instances(waymark: &Waymark, app: &str) -> anyhow::Result<u64> {
    let (_, answer) = waymark.api("GET", &format!("/v2/apps{app}"), None).await?;
    Ok(answer["app"]["instances"].as_u64().unwrap_or(0))
}

#[tokio::test]
async fn a_split_keeps_some_of_both_until_it_is_ended() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let first = write(&waymark, &definition(1))?;
    // There is nothing yet that traffic could be split with.
    let output = waymark.run(&["deploy", "bluegreen", &first, "--new-instances", "1"]).await?;
    assert_eq!(output.code, Some(2), "{output:?}");
    waymark.ok(&["deploy", "bluegreen", &first]).await?;
    let shape = Shape { n_clients: 2, connections: Connections::New, rate: Some(50) };
    let load = Load::start(waymark.service(PORT), "/", shape);
    let second = write(&waymark, &definition(2))?;
    let output = waymark.run(&["deploy", "bluegreen", &second, "--new-instances", "2"]).await?;
    assert_eq!(output.code, Some(2), "a split leaves something of both: {output:?}");
    let plan = waymark.ok(&["deploy", "bluegreen", &second, "--new-instances", "1", "--dry-run"]).await?;
    assert!(plan.contains("Would create /shop-green (1 instances), which replaces /shop-blue"), "{plan}");
    assert_eq!(colours(&waymark).await?, ["/shop-blue"], "nothing is changed");

    for (ending, left) in [("--complete-prev", "/shop-blue"), ("--complete-cur", "/shop-green")] {
        let said = waymark.ok(&["deploy", "bluegreen", &second, "--new-instances", "1"]).await?;
        assert!(said.contains("Split: /shop-green has 1 instances, /shop-blue has 1"), "{said}");
        assert_eq!(
            (instances(&waymark, "/shop-blue").await?, instances(&waymark, "/shop-green").await?),
            (1, 1)
        );
        waymark
            .until("/haproxy?stats;csv", "one of each is up", |csv| {
                csv.text().lines().filter(|l| l.starts_with("shop_18000,127_") && l.contains(",UP,")).count()
                    == 2
            })
            .await?;
        let output = waymark.run(&["deploy", "bluegreen", &second]).await?;
        assert_eq!(output.code, Some(1), "somebody has to decide: {output:?}");
        assert!(output.stderr.contains("split") && output.stderr.contains("--complete-cur"), "{output:?}");
        waymark.ok(&["deploy", "bluegreen", &second, ending]).await?;
        assert_eq!(colours(&waymark).await?, [left]);
        assert_eq!(instances(&waymark, left).await?, 2);
    }
    let outcome = load.stop().await;
    assert!(outcome.n_ok > 20, "{outcome:?}");
    assert_eq!(outcome.n_failed, 0, "{:?}", outcome.reasons);
    Ok(())
}

#[tokio::test]
async fn a_hook_is_asked_before_anything_is_stopped() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let file = write(&waymark, &definition(1))?;
    waymark.ok(&["deploy", "bluegreen", &file]).await?;
    let (hook, told) = (waymark.scratch().join("hook"), waymark.scratch().join("told"));
    let script = |code: u8| {
        let text = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{}'\nexit {code}\n", told.display());
        std::fs::write(&hook, text)?;
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))
    };
    let hook_flag = hook.to_string_lossy();
    let file = write(&waymark, &definition(2))?;

    script(3)?;
    let output = waymark.run(&["deploy", "bluegreen", &file, "--pre-kill-hook", &hook_flag]).await?;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("the hook") && output.stderr.contains("--abort"), "{output:?}");
    assert_eq!(instances(&waymark, "/shop-blue").await?, 2, "nothing was stopped");
    let arguments = std::fs::read_to_string(&told)?;
    let arguments: Vec<Value> = arguments.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [old, ids, new] = &arguments[..] else { anyhow::bail!("three arguments are wanted: {arguments:?}") };
    assert_eq!((&old["id"], &new["id"]), (&json!("/shop-blue"), &json!("/shop-green")));
    assert_eq!(ids.as_array().map(Vec::len), Some(1), "{ids}");
    assert!(ids[0].as_str().is_some_and(|id| id.starts_with("shop-blue")), "{ids}");

    // It can be given up …
    let said = waymark.ok(&["deploy", "bluegreen", &file, "--abort"]).await?;
    assert!(said.contains("Went back"), "{said}");
    assert_eq!(colours(&waymark).await?, ["/shop-blue"]);
    // … or begun again, and gone on with.
    let output = waymark.run(&["deploy", "bluegreen", &file, "--pre-kill-hook", &hook_flag]).await?;
    assert_eq!(output.code, Some(1), "{output:?}");
    script(0)?;
    let said = waymark.ok(&["deploy", "bluegreen", &file, "--pre-kill-hook", &hook_flag]).await?;
    assert!(said.contains("Resuming: /shop-green replaces /shop-blue"), "{said}");
    assert_eq!(colours(&waymark).await?, ["/shop-green"]);
    Ok(())
}

/// Marathon-LB's own script, from PyPI (package zdd).
#[tokio::test]
async fn zdd_completes_a_deployment() -> anyhow::Result<()> {
    let Some(venv) = or_skip(install_python("zdd", &ZDD).await)? else { return Ok(()) };
    let python = venv.join("bin/python");
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    for (version, expect) in [(1, "/shop-blue"), (2, "/shop-green"), (3, "/shop-blue")] {
        let file = write(&waymark, &definition(version))?;
        // The package's modules import each other as if they were top-level ones.
        let script = "import os, sys, importlib.util as u; \
                      sys.path.insert(0, os.path.dirname(u.find_spec('zdd').origin)); \
                      import zdd; sys.exit(0 if zdd.do_zdd(zdd.process_arguments()) else 1)";
        let run = Command::new(&python)
            .args(["-c", script, "-j", &file, "-f", "-s", "1", "--syslog-socket", "/dev/null"])
            .args(["-m", &format!("http://{}", waymark.address("scheduler"))])
            .args(["-l", &format!("http://{}", waymark.address("stats"))])
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(90), run).await??;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        waymark
            .until("/haproxy?stats;csv", "two servers are up", |csv| {
                csv.text().lines().filter(|l| l.starts_with("shop_18000,127_") && l.contains(",UP,")).count()
                    == 2
            })
            .await?;
        assert_eq!(colours(&waymark).await?, [expect]);
    }
    Ok(())
}
