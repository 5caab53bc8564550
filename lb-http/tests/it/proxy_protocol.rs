//! The PROXY protocol on both sides: who a client says it is, and what an instance is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::*;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x09\x08\x07\x0a\0\0\x01\x30\x39\x01\xbb";

fn accepting(id: &'static str) -> AppSpec {
    AppSpec::new(id).label("HAPROXY_0_BIND_OPTIONS", "accept-proxy")
}

async fn get_after(app: &AppSpec, header: &[u8]) -> Option<Response> {
    let mut client = Client::connect(app.address()).await;
    soon("send", client.stream.write_all(header)).await.unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.try_response().await
}

#[tokio::test]
async fn a_client_is_who_its_header_says_it_is() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = accepting("/a").label("WAYMARK_0_DENY", "10.6.6.6").instance(backend.port);
    cluster.put(&app).await;
    assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());
    for (header, expect) in [
        (&b"PROXY TCP4 10.9.8.7 10.0.0.1 12345 443\r\n"[..], "10.9.8.7"),
        (b"PROXY TCP6 fd00::7 fd00::1 12345 443\r\n", "fd00::7"),
        (V2, "10.9.8.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "127.0.0.1"),
    ] {
        let response = get_after(&app, header).await.unwrap();
        let forwarded =
            response.body.lines().find(|l| l.to_ascii_lowercase().starts_with("x-forwarded-for:"));
        assert_eq!(forwarded.unwrap().split(": ").nth(1), Some(expect), "{response:?}");
    }
    let denied = get_after(&app, b"PROXY TCP4 10.6.6.6 10.0.0.1 1 443\r\n").await.unwrap();
    assert_eq!(denied.status(), 403);

    for header in [&b""[..], b"PROXY TCP4 10.9.8.7 10.0.0.1 1\r\n", &V2[..14]] {
        assert!(get_after(&app, header).await.is_none(), "{header:?}");
    }
    let row = cluster.csv_row(&format!("a_{}", app.port), "FRONTEND");
    assert_eq!((&*row["ereq"], &*row["req_tot"]), ("3", "6"));
    cluster.stop().await;
}

/// An instance that tells the first line of what it is sent, before it has been sent more.
async fn reader() -> (u16, Arc<AtomicU16>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let n_connections = Arc::new(AtomicU16::new(0));
    let counter = Arc::clone(&n_connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut announced = None;
                while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                    if announced.is_none()
                        && let Some(at) = seen.iter().position(|b| *b == b'\n')
                    {
                        announced = Some(String::from_utf8_lossy(&seen[..at]).trim_end().to_owned());
                        seen.drain(..=at);
                    }
                    if let (Some(line), true) = (&announced, seen.ends_with(b"\r\n\r\n")) {
                        seen.clear();
                        let _ = stream.write_all(&ok(line)).await;
                    }
                }
            });
        }
    });
    (port, n_connections)
}

#[tokio::test]
async fn instances_are_told_whose_a_connection_is() {
    let mut cluster = Cluster::start().await;
    let (port, n_connections) = reader().await;
    for (id, mode) in [("/http", "http"), ("/tcp", "tcp")] {
        let app =
            AppSpec::new(id).label("WAYMARK_0_MODE", mode).label("WAYMARK_0_SEND_PROXY", "v1").instance(port);
        cluster.put(&app).await;
        assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());
        let before = n_connections.load(Relaxed);
        for n in 1..=3 {
            let mut client = Client::connect(app.address()).await;
            let from = client.stream.local_addr().unwrap().port();
            let told = client.get("").await.body;
            assert_eq!(told, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}", app.port), "{mode}");
            assert_eq!(n_connections.load(Relaxed) - before, n, "one for each client in mode {mode}");
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn what_comes_in_one_version_goes_out_in_the_other() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut cluster = Cluster::start().await;
    let app = accepting("/a")
        .label("WAYMARK_0_MODE", "tcp")
        .label("WAYMARK_0_SEND_PROXY", "v2")
        .label("WAYMARK_0_ALLOW", "10.9.8.0/24")
        .instance(listener.local_addr().unwrap().port());
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("PROXY TCP4 10.9.8.7 10.0.0.1 12345 443\r\nhello").await;
    let (mut stream, _) = soon("accept", listener.accept()).await.unwrap();
    let mut seen = vec![0; V2.len() + 5];
    soon("bytes", stream.read_exact(&mut seen)).await.unwrap();
    let (header, payload) = seen.split_at(V2.len());
    // The service port's own address is where the connection came to.
    assert_eq!(header[..20], V2[..20]);
    assert_eq!(header[20..24], [127, 0, 0, 1]);
    assert_eq!(header[24..26], V2[24..26]);
    assert_eq!(header[26..], app.port.to_be_bytes());
    assert_eq!(payload, b"hello");

    let mut denied = Client::connect(app.address()).await;
    denied.send("PROXY TCP4 10.9.9.7 10.0.0.1 12345 443\r\n").await;
    assert!(denied.is_closed().await);
    cluster.stop().await;
}
