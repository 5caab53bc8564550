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
