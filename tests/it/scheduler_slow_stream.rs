//! An event stream whose client stops reading: it is closed and counted, and nobody else notices.
//!
//! Not here: framing and filters (`compat_endpoints`, and beside the code).

use anyhow::Context as _;
use serde_json::json;
use tests::client::{self, DEADLINE};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::PROGRAM;

const STREAM: &[u8] = b"GET /v2/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
/// With this much in each app, a plan overflows what the kernel holds for a connection after a few.
const FILLER_BYTES: usize = 200_000;
const MAX_ROUNDS: usize = 3000;

async fn attach(waymark: &Waymark, receive_bytes: u32) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(receive_bytes)?;
    let mut stream = socket.connect(waymark.address("scheduler")).await?;
    stream.write_all(STREAM).await?;
    let mut head = [0; 12];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut head)).await??;
    assert_eq!(&head, b"HTTP/1.1 200");
    Ok(stream)
}

async fn n_closed(waymark: &Waymark) -> anyhow::Result<u64> {
    let metrics = client::get(waymark.address("scheduler"), "/metrics").await?.json()?;
    let counter = &metrics["counters"]["marathon.http.event-streams.slow-closed.counter"];
    counter["count"].as_u64().context("the counter is there")
}

/// Reads to the end of what the other side sent before it closed, however it did.
async fn until_closed(mut stream: TcpStream) -> usize {
    let (mut buffer, mut n_bytes) = (vec![0; 65536], 0);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return n_bytes,
            Ok(n) => n_bytes += n,
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_and_the_others_go_on() -> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]).await?;
    let (slow, mut quick) = (attach(&waymark, 4096).await?, attach(&waymark, 1 << 20).await?);
    let reader = tokio::spawn(async move {
        let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let n = quick.read(&mut buffer).await?;
            anyhow::ensure!(n > 0, "the quick client was closed");
            text.extend_from_slice(&buffer[..n]);
            if text.windows(b"/last".len()).any(|w| w == b"/last") {
                return anyhow::Ok(());
            }
            let kept = text.len().saturating_sub(16);
            text.drain(..kept);
        }
    });
    let app = json!({"id": "/big", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16, "instances": 0,
        "labels": {"filler": "x".repeat(FILLER_BYTES)}});
    assert_eq!(waymark.api("POST", "/v2/apps", Some(app)).await?.0, 201);
    let mut n_rounds = 0;
    while n_closed(&waymark).await? == 0 {
        n_rounds += 1;
        anyhow::ensure!(n_rounds < MAX_ROUNDS, "not closed after {n_rounds} updates");
        let change = json!({"instances": n_rounds % 2});
        waymark.api("PUT", "/v2/apps/big?force=true", Some(change)).await?;
    }
    assert_eq!(n_closed(&waymark).await?, 1);
    let n_bytes = tokio::time::timeout(DEADLINE, until_closed(slow)).await.context("it is not closed")?;
    assert!(n_bytes > 0, "it got what had been sent before");
    let last = json!({"id": "/last", "cmd": "sleep 1000", "cpus": 0.1, "mem": 16});
    assert_eq!(waymark.api("POST", "/v2/apps", Some(last)).await?.0, 201);
    tokio::time::timeout(DEADLINE, reader).await.context("the quick client is not told")??
}
