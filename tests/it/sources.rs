//! Several schedulers, files and faults, as operators see them: on the running program.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::client;
use tests::netns::is_root;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PROGRAM;

/// Answers every request with `name`.
async fn backend(name: &'static str) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", name.len());
                // A client that has gone is no failure of the backend.
                let _ = stream.write_all(format!("{head}{name}").as_bytes()).await;
            }
        }
    });
    Ok(port)
}

fn instance(id: &str, port: u16) -> ScriptedInstance {
    ScriptedInstance { task_id: id.to_owned(), port }
}

/// Until a service answers that.
async fn served(waymark: &Waymark, port: u16, text: &str) -> anyhow::Result<()> {
    let wait = async {
        while client::get(waymark.service(port), "/").await?.text() != text {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(client::DEADLINE, wait)
        .await
        .with_context(|| format!("port {port} never answers {text}"))?
}

async fn status(waymark: &Waymark) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&waymark.stats("/api/status").await?.text())?)
}

#[tokio::test]
async fn two_schedulers_and_a_file_serve_side_by_side() -> anyhow::Result<()> {
    let (one, two) = (ScriptedScheduler::start().await?, ScriptedScheduler::start().await?);
    one.set_app(
        "/one",
        10000,
        json!({"HAPROXY_0_MODE": "http"}),
        &[instance("one.1", backend("one").await?)],
    );
    two.set_app(
        "/two",
        10001,
        json!({"HAPROXY_0_MODE": "http"}),
        &[instance("two.1", backend("two").await?)],
    );
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("apps.toml");
    let fixed = backend("fixed").await?;
    std::fs::write(
        &file,
        format!(
            "[[apps]]\nid = '/fixed'\nlabels = {{ HAPROXY_0_MODE = 'http' }}\n[[apps.services]]\nport = 10002\nendpoints = ['127.0.0.1:{fixed}']\n"
        ),
    )?;
    let (first, second) = (format!("left=http://{}", one.address), format!("right=http://{}", two.address));
    let file = file.to_string_lossy().into_owned();
    // The helper names the first scheduler; these replace it.
    let flags = ["--marathon", &first, "--marathon", &second, "--static", &file];
    let waymark = Waymark::serve_as(PROGRAM, &first, &flags).await?;
    for (port, expect) in [(10000, "one"), (10001, "two"), (10002, "fixed")] {
        assert_eq!(client::get(waymark.service(port), "/").await?.text(), expect);
    }
    let shown = waymark.ok(&["status"]).await?;
    for name in ["left", "right", "static"] {
        assert!(shown.contains(name), "{shown}");
    }

    two.stop();
    waymark.until("/api/status", "stale", |status| status.text().contains("\"stale\"")).await?;
    let sources = status(&waymark).await?["sources"].clone();
    let states: Vec<&str> =
        sources.as_array().into_iter().flatten().filter_map(|s| s["freshness"]["state"].as_str()).collect();
    assert_eq!(states, ["live", "stale", "live"], "{sources}");
    for (port, expect) in [(10000, "one"), (10001, "two"), (10002, "fixed")] {
        assert_eq!(client::get(waymark.service(port), "/").await?.text(), expect);
    }
    one.set_app(
        "/one",
        10000,
        json!({"HAPROXY_0_MODE": "http"}),
        &[instance("one.2", backend("changed").await?)],
    );
    one.status_update("/one", &instance("one.2", 1), "TASK_RUNNING")?;
    served(&waymark, 10000, "changed").await?;
    Ok(())
}

#[tokio::test]
async fn a_restart_while_the_scheduler_is_away_serves_within_a_second_and_says_so() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    let address = scheduler.address;
    scheduler.set_app(
        "/web",
        10000,
        json!({"HAPROXY_0_MODE": "http"}),
        &[instance("web.1", backend("ok").await?)],
    );
    let state = tempfile::tempdir()?;
    let state = state.path().to_string_lossy().into_owned();
    let flags = ["--state-dir", &state];
    let waymark = Waymark::serve(PROGRAM, address, &flags).await?;
    let kept = format!("{state}/kept-marathon");
    let saved = async {
        while !std::path::Path::new(&kept).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(client::DEADLINE, saved).await?;
    waymark.stop().await?;
    scheduler.stop();

    let began = Instant::now();
    let waymark = Waymark::serve(PROGRAM, address, &flags).await?;
    assert_eq!(client::get(waymark.service(10000), "/").await?.text(), "ok");
    // A debug build on a busy machine; what is asked for is one second.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let status = status(&waymark).await?;
    assert_eq!(status["freshness"]["state"], "stale", "{status}");
    assert!(waymark.ok(&["status"]).await?.contains("stale"));
    assert!(waymark.stats("/").await?.text().contains("stale"));
    let metrics = waymark.stats("/metrics").await?.text();
    assert!(metrics.contains("waymark_sync_state{source=\"marathon\",state=\"degraded\"} 1"), "{metrics}");
    assert_eq!(waymark.stats("/readyz").await?.status, 200);
    assert_eq!(waymark.stats("/readyz?max-stale=1h").await?.status, 200);
    waymark.until("/readyz?max-stale=10ms", "too old", |answer| answer.status == 503).await?;
    waymark.stop().await?;

    let damaged = std::fs::read_to_string(&kept)?.replace("web.1", "web.2");
    std::fs::write(&kept, damaged)?;
    let scheduler = ScriptedScheduler::start().await?;
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
    assert!(waymark.log().contains("the file is damaged"), "{}", waymark.log());
    Ok(())
}

#[tokio::test]
async fn a_sudden_loss_is_held_until_waymark_sync_accepts_it() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    let port = backend("ok").await?;
    for n in 0..4_u16 {
        let id = format!("web{n}.1");
        scheduler.set_app(
            &format!("/web{n}"),
            10000 + n,
            json!({"HAPROXY_0_MODE": "http"}),
            &[instance(&id, port)],
        );
    }
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &[]).await?;
    scheduler.forget_apps();
    scheduler.cut_streams();
    let held = waymark.until("/api/status", "held", |status| status.text().contains("held_drop")).await?;
    assert!(held.text().contains("\"/web0\":1"), "{}", held.text());
    for n in 0..4 {
        assert_eq!(client::get(waymark.service(10000 + n), "/").await?.text(), "ok");
    }
    let metrics = waymark.stats("/metrics").await?.text();
    assert!(metrics.contains("waymark_big_drop_held{source=\"marathon\",app=\"/web3\"} 1"), "{metrics}");
    assert!(waymark.ok(&["status"]).await?.contains("held: /web2"));
    let mut page = client::Connection::open(waymark.address("stats")).await?;
    let foreign = page.request("POST", "/api/sync?accept", &[], b"").await?;
    assert_eq!(foreign.status, 403, "a page in a browser cannot send the header");
    waymark.ok(&["sync", "--accept"]).await?;
    waymark.until("/api/status", "believed", |status| status.text().contains("\"n_apps\":0")).await?;
    Ok(())
}

#[tokio::test]
async fn secrets_are_in_no_log_and_no_answer() -> anyhow::Result<()> {
    let scheduler = ScriptedScheduler::start().await?;
    scheduler.set_app("/web", 10000, json!({}), &[]);
    let url = format!("http://planted-user:planted-s3cret@{}", scheduler.address);
    let dead = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let folder = tempfile::tempdir()?;
    let token = folder.path().join("token");
    std::fs::write(&token, "planted-t0ken\n")?;
    let second = format!("away=http://{dead}");
    let for_second = format!("away={}", token.display());
    let waymark = Waymark::serve_as(
        PROGRAM,
        &url,
        &["--marathon", &url, "--marathon", &second, "--watch-token-file", &for_second],
    )
    .await?;
    scheduler.cut_streams();
    waymark.until("/api/status", "an attempt of each", |s| s.text().contains("away: ")).await?;
    let mut shown = vec![waymark.log()];
    for path in ["/", "/api/status", "/metrics", "/_haproxy_getconfig", "/api/apps", "/readyz?max-stale=1ms"]
    {
        shown.push(waymark.stats(path).await?.text());
    }
    shown.push(waymark.ok(&["status"]).await?);
    shown.push(waymark.ok(&["status", "--json"]).await?);
    for text in shown {
        for secret in ["s3cret", "t0ken"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    Ok(())
}

/// The state directory is a file system of one megabyte, in a mount namespace of the program's own.
#[tokio::test]
async fn w35_a_full_disk_costs_nothing_but_the_file() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let (disk, script) = (folder.path().join("disk"), folder.path().join("waymark"));
    std::fs::create_dir(&disk)?;
    let inside = format!(r#"mount -t tmpfs -o size=1m none "$0" && exec "{PROGRAM}" "$@""#);
    let line = format!("#!/bin/sh\nexec unshare --mount sh -c '{inside}' '{}' \"$@\"\n", disk.display());
    std::fs::write(&script, line)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    let scheduler = ScriptedScheduler::start().await?;
    let labels = |n_bytes: usize| json!({"HAPROXY_0_MODE": "http", "NOTE": "x".repeat(n_bytes)});
    let first = instance("web.1", backend("first").await?);
    scheduler.set_app("/web", 10000, labels(2 << 20), &[first]);
    let state = disk.to_string_lossy().into_owned();
    let waymark =
        Waymark::serve(&script.to_string_lossy(), scheduler.address, &["--state-dir", &state]).await?;
    let failed = |metrics: &client::Response| {
        let text = metrics.text();
        let line = text.lines().find(|line| line.starts_with("waymark_watcher_keep_failures_total"));
        line.is_some_and(|line| !line.ends_with(" 0"))
    };
    waymark.until("/metrics", "the disk is full", failed).await?;
    assert!(waymark.log().contains("cannot keep the last good state on disk"), "{}", waymark.log());
    assert_eq!(client::get(waymark.service(10000), "/").await?.text(), "first");

    // It goes on, and keeps again what fits.
    let second = instance("web.2", backend("second").await?);
    scheduler.set_app("/web", 10000, labels(1), std::slice::from_ref(&second));
    scheduler.status_update("/web", &second, "TASK_RUNNING")?;
    served(&waymark, 10000, "second").await?;
    let pid = waymark.pid().expect("it runs");
    let seen_inside = format!("/proc/{pid}/root{state}");
    let kept = async {
        while !std::path::Path::new(&seen_inside).join("kept-marathon").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // After a failure it waits for some twenty times as long as that took.
    tokio::time::timeout(6 * client::DEADLINE, kept).await?;
    assert!(!disk.join("kept-marathon").exists(), "nothing of that is outside");
    Ok(())
}
