//! Real Marathon clients, as their packages are published, against the built program. They are installed once
//! into a folder below the target directory.
//!
//! Not here: what the clients would do against a real Marathon; their recorded requests are in `compat_requests`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tests::client::{self, DEADLINE};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::PROGRAM;

/// A registry may be slow; it is asked this often, and given this long each time.
const ATTEMPTS: usize = 3;
const INSTALL_PATIENCE: Duration = Duration::from_secs(300);

const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// Gives Python 3.10 and later back the names that these clients import from `collections`.
const SHIM: &str = "import collections, collections.abc; vars(collections).update(dict((k, v) for k, v in vars(collections.abc).items() if k[0] != \"_\"))\n";

/// The command line of DC/OS pins versions that no longer build; these do.
const DCOS: [&[&str]; 2] = [
    &["--no-deps", "dcoscli==0.6.1", "dcos==0.6.1"],
    &[
        "docopt",
        "pkginfo",
        "toml<1",
        "virtualenv<16",
        "cryptography",
        "retrying==1.3.3",
        "sseclient==0.0.19",
        "requests",
        "six",
        "jsonschema==2.6.0",
        "pager",
        "prettytable==0.7.2",
        "pygments<3",
        "PyJWT==1.4.2",
    ],
];
const ACME: [&[&str]; 1] = [&["marathon-acme==0.6.1"]];
const MARATHON: [&[&str]; 1] = [&["marathon==0.13.0", "marathon-deploy==3.0.2"]];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name)
}

/// Runs a command to its end. Errors carry what it printed.
async fn run(command: &mut Command, patience: Duration) -> anyhow::Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience, command.output()).await.context("it took too long")??;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{printed}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(printed)
}

/// Fills `folder` unless it was filled before; what was half done is done again.
async fn install<F: Future<Output = anyhow::Result<()>>>(
    folder: &Path,
    fill: impl Fn() -> F,
) -> anyhow::Result<()> {
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(());
    }
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        match fill().await {
            Ok(()) => return Ok(std::fs::write(&complete, "")?),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("no attempt was made")?)
}

pub(crate) async fn install_python(name: &str, packages: &[&[&str]]) -> anyhow::Result<PathBuf> {
    let venv = folder(name);
    install(&venv, || async {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv), INSTALL_PATIENCE).await?;
        for group in packages {
            let mut pip = Command::new(venv.join("bin/pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(*group);
            run(&mut pip, INSTALL_PATIENCE).await?;
        }
        let lib = std::fs::read_dir(venv.join("lib"))?.next().context("no lib folder")??.path();
        Ok(std::fs::write(lib.join("site-packages/zz_compat.pth"), SHIM)?)
    })
    .await?;
    Ok(venv)
}

async fn marathon_venv() -> anyhow::Result<PathBuf> {
    static DONE: OnceCell<PathBuf> = OnceCell::const_new();
    DONE.get_or_try_init(|| install_python("marathon", &MARATHON)).await.cloned()
}

/// Without the packages there is nothing to test; a gate has them.
pub(crate) fn or_skip(installed: anyhow::Result<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    match installed {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if std::env::var_os("CI").is_some() => {
            Err(error.context("the client cannot be installed"))
        }
        Err(error) => {
            eprintln!("SKIPPED: the client cannot be installed: {error:#}");
            Ok(None)
        }
    }
}

async fn scheduler() -> anyhow::Result<Waymark> {
    Waymark::dev(PROGRAM, &["--no-demo", "--cpus", "8", "--mem", "4096"]).await
}

#[tokio::test]
async fn the_command_line_of_dcos() -> anyhow::Result<()> {
    let Some(venv) = or_skip(install_python("dcos", &DCOS).await)? else { return Ok(()) };
    let waymark = scheduler().await?;
    let url = format!("http://{}", waymark.address("scheduler"));
    let home = tempfile::tempdir()?;
    let app = home.path().join("app.json");
    std::fs::write(
        &app,
        r#"{"id": "/dcos-101/app2", "cmd": "sleep 1000", "instances": 1, "cpus": 0.1, "mem": 32, "env": null,
            "portDefinitions": [{"port": 10000, "protocol": "tcp", "labels": {"VIP_0": "/dcos-101/app2:10000"}}],
            "labels": {"HAPROXY_GROUP": "external"}, "container": null, "healthChecks": null}"#,
    )?;
    let app = app.to_string_lossy().into_owned();
    let path = format!("{}:{}", venv.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let dcos = |line: &str| {
        let mut command = Command::new(venv.join("bin/dcos"));
        command.args(line.replace("APP.json", &app).split_whitespace());
        command.env("DCOS_DIR", home.path()).env("HOME", home.path()).env("PATH", &path);
        command.env_remove("DCOS_URL");
        command
    };
    for (line, expect) in [
        (format!("cluster setup {url}"), ""),
        ("marathon app add APP.json".into(), "Created deployment"),
        ("marathon app list".into(), "/dcos-101/app2"),
        ("marathon app show /dcos-101/app2".into(), "\"VIP_0\": \"/dcos-101/app2:10000\""),
        ("marathon app update /dcos-101/app2 instances=2".into(), "Created deployment"),
        ("marathon task list".into(), "dcos-101_app2.instance-"),
        ("marathon app version list /dcos-101/app2".into(), "T"),
        ("marathon app update /dcos-101/app2 instances=100 cpus=100".into(), "Created deployment"),
        ("marathon deployment list".into(), "/dcos-101/app2"),
        ("marathon debug list".into(), "/dcos-101/app2"),
        ("marathon debug summary /dcos-101/app2".into(), "CPUS"),
        ("marathon app update --force /dcos-101/app2 instances=1 cpus=0.1".into(), "Created deployment"),
        ("marathon app restart /dcos-101/app2".into(), "Created deployment"),
        ("marathon app kill /dcos-101/app2".into(), "Killed tasks:"),
        ("marathon group list".into(), "/dcos-101"),
        ("marathon group scale /dcos-101 2".into(), "Created deployment"),
        ("marathon pod list".into(), ""),
        ("marathon ping".into(), "Marathon ping response[1x]: \"pong\""),
        ("marathon about".into(), "\"name\": \"marathon\""),
        ("marathon leader show".into(), "127.0.0.1"),
        ("marathon plugin list".into(), ""),
        ("marathon app remove /dcos-101/app2".into(), ""),
        ("marathon app list --json".into(), "[]"),
    ] {
        // Only what overrides a deployment, or looks at one, may meet it.
        if !line.contains("--force") && !line.contains("debug") && !line.contains("deployment") {
            waymark.settled().await.with_context(|| format!("before {line}"))?;
        }
        let printed = run(&mut dcos(&line), CLIENT_PATIENCE).await?;
        assert!(printed.contains(expect), "dcos {line}: {printed}");
    }
    Ok(())
}

#[tokio::test]
async fn pythons_marathon_library() -> anyhow::Result<()> {
    let Some(venv) = or_skip(marathon_venv().await)? else { return Ok(()) };
    let waymark = scheduler().await?;
    let mut python = Command::new(venv.join("bin/python"));
    python.arg(fixture("marathon_library.py")).arg(format!("http://{}", waymark.address("scheduler")));
    let printed = run(&mut python, CLIENT_PATIENCE).await?;
    assert_eq!(printed.trim(), "all calls answered");
    Ok(())
}

#[tokio::test]
async fn marathon_deploy() -> anyhow::Result<()> {
    let Some(venv) = or_skip(marathon_venv().await)? else { return Ok(()) };
    let waymark = scheduler().await?;
    let url = format!("http://{}", waymark.address("scheduler"));
    let file = waymark.scratch().join("web.json");
    std::fs::write(
        &file,
        r#"{"id": "/md/web", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16, "instances": 1}"#,
    )?;
    let file = file.to_string_lossy().into_owned();
    for (words, n_instances) in [
        (vec!["--put", &file], 1),
        (vec!["--appid", "/md/web", "--scale", "3"], 3),
        (vec!["--appid", "/md/web", "--restart"], 3),
        (vec!["--appid", "/md/web", "--inplacerestart"], 3),
        (vec!["--appid", "/md/web", "--instances"], 3),
        (vec!["--put", &file], 1),
    ] {
        let mut deploy = Command::new(venv.join("bin/marathon-deploy"));
        run(deploy.args(["-m", &url]).args(&words), CLIENT_PATIENCE).await?;
        waymark.settled().await?;
        let app = client::get(waymark.address("scheduler"), "/v2/apps/md/web").await?.json()?;
        assert_eq!(app["app"]["tasksRunning"], n_instances, "{words:?}: {app}");
    }
    Ok(())
}

#[tokio::test]
async fn nodes_event_bus_client() -> anyhow::Result<()> {
    let modules = folder("node");
    let installed = install(&modules, || async {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "marathon-event-bus-client@0.1.7"]);
        run(npm.current_dir(&modules), INSTALL_PATIENCE).await.map(drop)
    });
    let Some(modules) = or_skip(installed.await.map(|()| modules.clone()))? else { return Ok(()) };
    let waymark = scheduler().await?;
    let address = waymark.address("scheduler");
    let mut node = Command::new("node");
    node.arg(fixture("event_bus.js")).arg(address.ip().to_string()).arg(address.port().to_string());
    node.env("NODE_PATH", modules.join("node_modules"));
    let listening = tokio::spawn(async move { run(&mut node, CLIENT_PATIENCE).await });
    attached(&waymark).await?;
    let file = waymark.scratch().join("bus.json");
    std::fs::write(&file, r#"{"id": "/bus", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16}"#)?;
    waymark.ok(&["app", "add", &file.to_string_lossy()]).await?;
    let printed = listening.await??;
    assert!(printed.contains("deployed /bus"), "{printed}");
    Ok(())
}

/// The client module of marathon-acme: its command line needs an authority of ACME's first version, which is gone.
#[tokio::test]
async fn marathon_acme() -> anyhow::Result<()> {
    let Some(venv) = or_skip(install_python("acme", &ACME).await)? else { return Ok(()) };
    let waymark = scheduler().await?;
    let mut python = Command::new(venv.join("bin/python"));
    python.args(["-W", "ignore"]).arg(fixture("acme.py"));
    python.args(["scheduler", "stats"].map(|name| format!("http://{}", waymark.address(name))));
    let listening = tokio::spawn(async move { run(&mut python, CLIENT_PATIENCE).await });
    attached(&waymark).await?;
    let app = serde_json::json!({"id": "/acme/web", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16,
        "labels": {"MARATHON_ACME_0_DOMAIN": "web.example"}});
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app)).await?.0, 201);
    let printed = listening.await??;
    for line in [
        "attached event_stream_attached",
        "/acme/web {'MARATHON_ACME_0_DOMAIN': 'web.example'} 1",
        "signal 200",
    ] {
        assert!(printed.lines().any(|l| l == line), "{line} in {printed}");
    }
    Ok(())
}

/// Marathon-LB is in no registry: its two requests, word for word.
#[tokio::test]
async fn the_requests_of_marathon_lb() -> anyhow::Result<()> {
    let waymark = scheduler().await?;
    let address = waymark.address("scheduler");
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let types =
        "event_type=api_post_event&event_type=health_status_changed_event&event_type=status_update_event";
    let request = format!(
        "GET /v2/events?plan-format=light&{types} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: marathon-lb\r\n\
         Accept: text/event-stream\r\nCache-Control: no-cache\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    attached(&waymark).await?;
    let app = serde_json::json!({"id": "/mlb", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16,
        "labels": {"HAPROXY_GROUP": "external"}});
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app)).await?.0, 201);
    let mut text = String::new();
    let told = async {
        let mut buffer = [0; 4096];
        while !text.contains("TASK_RUNNING") {
            let n = stream.read(&mut buffer).await?;
            anyhow::ensure!(n > 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, told).await.context("it is not told")??;
    let kinds: std::collections::BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(kinds, ["api_post_event", "status_update_event"].into());

    let headers = ["Content-Type: application/json", "Accept: application/json", "User-Agent: marathon-lb"];
    let mut connection = client::Connection::open(address).await?;
    let apps = connection.request("GET", "/v2/apps?embed=apps.tasks", &headers, b"").await?.json()?;
    let app = &apps["apps"][0];
    assert_eq!((&app["id"], &app["labels"]["HAPROXY_GROUP"]), (&"/mlb".into(), &"external".into()));
    assert_eq!(app["tasks"][0]["state"], "TASK_RUNNING");
    assert!(app["tasks"][0]["ports"][0].is_u64() && app["tasks"][0]["host"].is_string(), "{app}");
    Ok(())
}

/// Waits for a client's event stream beside the watcher's.
async fn attached(waymark: &Waymark) -> anyhow::Result<()> {
    let wait = async {
        loop {
            let state = client::get(waymark.address("scheduler"), "/waymark/v1/scheduler").await?.json()?;
            if state["subscribers"].as_u64() >= Some(2) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(3 * DEADLINE, wait).await.context("it does not attach")?
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clients").join(name)
}
