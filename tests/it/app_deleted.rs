//! An app goes, or its port, its labels or its instances: what is under way ends as if nothing had happened, on every
//! way that leads there; what comes then is refused with the reason.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::client;
use tests::scheduler::ScriptedScheduler;
use tests::waymark::Waymark;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::PROGRAM;

const HTTP_PORT: u16 = 10000;
const TCP_PORT: u16 = 10001;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: going.example\r\n\r\n";
const SWITCH: &[u8] =
    b"GET / HTTP/1.1\r\nHost: going.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nfirst";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst";

/// Begins each answer at once and ends it when it is told to.
async fn backend(end: watch::Receiver<bool>) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut end = end.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut request).await {
                    let switches = request[..n].to_ascii_lowercase().windows(9).any(|w| w == b"websocket");
                    let begin = if switches { SWITCHED } else { ANSWER };
                    if stream.write_all(begin.as_bytes()).await.is_err()
                        || end.wait_for(|end| *end).await.is_err()
                        || stream.write_all(b"end").await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    Ok(port)
}

async fn read_until(stream: &mut TcpStream, text: &str) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    let reading = async {
        while !seen.ends_with(text.as_bytes()) {
            let mut piece = [0; 1024];
            let n = stream.read(&mut piece).await?;
            anyhow::ensure!(n > 0, "closed");
            seen.extend_from_slice(&piece[..n]);
        }
        anyhow::Ok(())
    };
    let read = tokio::time::timeout(client::DEADLINE, reading).await;
    match read {
        Ok(Ok(())) => Ok(()),
        failed => anyhow::bail!("{failed:?} instead of {text:?} after {:?}", String::from_utf8_lossy(&seen)),
    }
}

async fn ask(address: SocketAddr, request: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    read_until(&mut stream, "first").await?;
    Ok(stream)
}

/// An app with a port for HTTP and one for anything else, and a VIP for each.
fn app(port: u16) -> Value {
    let labels = json!({
        "HAPROXY_GROUP": "external", "HAPROXY_0_VHOST": "going.example", "HAPROXY_0_MODE": "http",
        "HAPROXY_1_MODE": "tcp",
    });
    json!({
        "id": "/going", "version": "1", "instances": 1, "labels": labels, "networks": [{"mode": "host"}],
        "portDefinitions": [
            {"port": HTTP_PORT, "protocol": "tcp", "labels": {"VIP_0": "/going:80"}},
            {"port": TCP_PORT, "protocol": "tcp"},
        ],
        "tasks": [{
            "id": "going.1", "appId": "/going", "host": "127.0.0.1", "state": "TASK_RUNNING", "version": "1",
            "ports": [port, port],
        }],
    })
}

struct Case {
    what: &'static str,
    /// What is left of the app.
    left: Option<Value>,
    /// What a request to its service port gets afterwards. `None`: nobody listens there.
    after: Option<(u16, &'static str)>,
    vip_stays: bool,
}

fn cases(app: &Value) -> Vec<Case> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = app.clone();
        change(&mut changed);
        Some(changed)
    };
    vec![
        Case { what: "the app", left: None, after: None, vip_stays: false },
        Case {
            what: "its ports",
            left: with(&|app| app["portDefinitions"] = json!([])),
            after: None,
            vip_stays: false,
        },
        Case {
            what: "its labels",
            left: with(&|app| {
                app["labels"] = json!({});
                app["portDefinitions"][0]["labels"] = json!({});
            }),
            after: None,
            vip_stays: false,
        },
        Case {
            what: "its instance",
            left: with(&|app| app["tasks"] = json!([])),
            after: Some((503, "no-endpoint")),
            vip_stays: true,
        },
    ]
}

#[tokio::test]
async fn what_is_under_way_ends_as_if_nothing_had_happened() -> anyhow::Result<()> {
    for Case { what, left, after, vip_stays } in cases(&app(0)) {
        let (end, ended) = watch::channel(false);
        let port = backend(ended).await?;
        let scheduler = ScriptedScheduler::start().await?;
        scheduler.set_definition(app(port));
        // A group that apps must name to be served: without labels they do not. VIPs outlive their names by a TTL.
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("waymark.toml");
        std::fs::write(&config, "[dns]\nttl = \"1s\"\n")?;
        let flags = ["--group", "external", "--config", &config.to_string_lossy()];
        let waymark = Waymark::serve(PROGRAM, scheduler.address, &flags).await?;
        let vips = waymark.stats("/api/vips").await?.json()?;
        let vip = SocketAddr::new(vips["vips"][0]["addresses"][0].as_str().unwrap_or_default().parse()?, 80);

        let mut under_way = Vec::new();
        for (way, address) in [
            ("service port", waymark.service(HTTP_PORT)),
            ("virtual host", waymark.address("http")),
            ("mode tcp", waymark.service(TCP_PORT)),
            ("VIP", vip),
        ] {
            under_way.push((way, ask(address, REQUEST).await?));
            under_way.push((way, ask(address, SWITCH).await?));
        }

        let before = waymark.stats("/api/status").await?.json()?["generation"].as_u64().unwrap_or_default();
        match left {
            Some(left) => scheduler.set_definition(left),
            None => scheduler.forget_apps(),
        }
        scheduler.event(
            "app_terminated_event",
            &json!({"eventType": "app_terminated_event", "appId": "/going"}),
        )?;
        let target = format!("/api/status?after={before}&wait=10s");
        let status = waymark.stats(&target).await?.json()?;
        assert!(status["applied"].as_u64() > Some(before), "{what}: {status}");

        match (client::get(waymark.service(HTTP_PORT), "/").await, after) {
            (Ok(new), _) => {
                let (expect, reason) = after.unwrap_or((503, "no-route"));
                assert_eq!((new.status, new.header("waymark-reason")), (expect, Some(reason)), "{what}");
            }
            // The port is closed.
            (Err(_), None) => {}
            (Err(error), Some(_)) => panic!("{what}: {error}"),
        }
        let of_host = client::get_with(waymark.address("http"), "/", &["Host: going.example"]).await?;
        let expect = after.map_or("no-route", |(_, reason)| reason);
        assert_eq!((of_host.status, of_host.header("waymark-reason")), (503, Some(expect)), "{what}");

        end.send_replace(true);
        for (way, stream) in &mut under_way {
            if let Err(error) = read_until(stream, "end").await {
                panic!("{what} went, {way}: {error}\n{}", waymark.log());
            }
        }
        // A connection that stays has its next request explained.
        let (_, kept) = &mut under_way[0];
        kept.write_all(REQUEST).await?;
        read_until(kept, "\n").await.map_err(|error| anyhow::anyhow!("{what}: {error}"))?;

        let gone = waymark.until("/api/vips", "the VIP", |vips| vips.text().contains("going") == vip_stays);
        gone.await?;
        let mut closed = vec![];
        closed.extend((!vip_stays).then_some(vip));
        closed.extend(after.is_none().then_some(waymark.service(HTTP_PORT)));
        for address in closed {
            let refused = async {
                while TcpStream::connect(address).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let refused = tokio::time::timeout(client::DEADLINE, refused).await;
            assert!(refused.is_ok(), "{what}: {address} still takes connections");
        }
    }
    Ok(())
}
