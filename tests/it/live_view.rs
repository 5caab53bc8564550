//! `waymark top`: one look without a terminal, and the live view on a terminal (of `script`).
//!
//! Not here: how the panes are laid out row by row (unit tests of the view).

use std::process::Stdio;

use anyhow::Context as _;
use tests::client::DEADLINE;
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::{APP, PROGRAM};

#[tokio::test]
async fn without_a_terminal_it_prints_everything_once() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--simulate"]).await?;
    waymark.ok(&["app", "scale", APP, "3", "--wait"]).await?;
    let text = waymark.ok(&["top"]).await?;
    assert_eq!(text.lines().filter(|line| line.starts_with(APP)).count(), 3, "{text}");
    assert!(text.contains("dcos-101app2.marathon:10000"), "{text}");
    assert!(text.contains("live") && !text.contains('\x1b'), "{text}");
    let json: serde_json::Value = serde_json::from_str(&waymark.ok(&["top", "--json"]).await?)?;
    assert_eq!(json["apps"][0]["instances"].as_array().map(Vec::len), Some(3), "{json}");
    Ok(())
}

#[tokio::test]
async fn on_a_terminal_it_shows_changes_as_they_come_and_ends_on_q() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--simulate"]).await?;
    // util-linux's `script` gives the command a terminal of its own.
    let command = format!("stty rows 40 cols 150; exec {PROGRAM} top");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("WAYMARK_STATS", format!("http://{}", waymark.address("stats")))
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut typed = child.stdin.take().context("no input")?;
    let mut shown = child.stdout.take().context("no output")?;
    let mut screen = String::new();
    read_until(&mut shown, &mut screen, "dcos-101app2.marathon:10000").await?;
    let before = screen.len();
    waymark.ok(&["app", "scale", APP, "2", "--wait"]).await?;
    let mut since = screen.split_off(before);
    read_until(&mut shown, &mut since, APP).await?;
    typed.write_all(b"q").await?;
    let status = tokio::time::timeout(DEADLINE, child.wait()).await??;
    assert!(status.success(), "{status}");
    Ok(())
}

/// Reads what a terminal would show until `text` was part of it.
async fn read_until(
    from: &mut (impl AsyncReadExt + Unpin),
    screen: &mut String,
    text: &str,
) -> anyhow::Result<()> {
    let reading = async {
        let mut buffer = [0; 4096];
        while !screen.contains(text) {
            let n = from.read(&mut buffer).await?;
            anyhow::ensure!(n > 0, "ended without {text:?}: {screen}");
            screen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, reading).await.with_context(|| format!("no {text:?}"))?
}
