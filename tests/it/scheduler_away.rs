//! The scheduler goes away: the last good state keeps serving, and everybody can see that it is old.

use serde_json::json;
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PROGRAM;

#[tokio::test]
async fn the_last_good_state_keeps_serving() -> anyhow::Result<()> {
    let backend = TcpListener::bind("127.0.0.1:0").await?;
    let port = backend.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = backend.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    .await;
            }
        }
    });
    let scheduler = ScriptedScheduler::start().await?;
    let instance = ScriptedInstance { task_id: "web.1".into(), port };
    scheduler.set_app("/web", 10000, json!({"HAPROXY_0_MODE": "http"}), &[instance]);
    let waymark = Waymark::serve(PROGRAM, scheduler.address, &[]).await?;
    assert_eq!(client::get(waymark.service(10000), "/").await?.text(), "ok");
    let fresh = waymark.stats("/api/status").await?.text();
    assert!(fresh.contains("\"live\""), "{fresh}");

    scheduler.stop();
    waymark.until("/api/status", "shown as stale", |status| status.text().contains("\"stale\"")).await?;
    assert_eq!(client::get(waymark.service(10000), "/").await?.text(), "ok");
    let name = waymark.ok(&["dns", "lookup", "--short", "web.marathon.l4lb.thisdcos.directory"]).await?;
    assert!(name.starts_with("127."), "{name}");
    let status = waymark.ok(&["status"]).await?;
    assert!(status.contains("stale"), "{status}");
    Ok(())
}
