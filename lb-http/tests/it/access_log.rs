//! The access log: what a line says, which requests have one.

use std::path::Path;

use lb_http::{AccessLogConfig, LogFormat};

use crate::support::*;

/// The lines of the log, as soon as there are `n`.
async fn lines(path: &Path, n: usize) -> Vec<String> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.matches('\n').count() >= n {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    soon("lines of the log", read).await
}

async fn logging(path: &Path, format: LogFormat, one_in: u32, apps: &[&str]) -> Cluster {
    let apps = apps.iter().map(|id| event_watcher::catalog::AppId::new(id)).collect();
    let config = AccessLogConfig { file: Some(path.to_owned()), format, one_in, apps };
    Cluster::with(|c| c.access_log = Some(config)).await
}

#[tokio::test]
async fn a_json_line_tells_who_asked_what_and_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut cluster = logging(&path, LogFormat::Json, 1, &[]).await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET /x?y=\" HTTP/1.1\r\nHost: a.test\r\nX-Request-Id: mine\r\n\r\n").await;
    client.response().await;
    assert_eq!(get(cluster.plane.http_address().unwrap(), "").await.status(), 503);
    let lines = lines(&path, 2).await;
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    for (key, expect) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("target", "/x?y=\""),
        ("protocol", "HTTP/1.1"),
        ("host", "a.test"),
        ("backend", &*format!("a_{}", app.port)),
        ("server", &*format!("127_0_0_1_{}", backend.port)),
        ("request_id", "mine"),
    ] {
        assert_eq!(line[key], expect, "{line}");
    }
    assert_eq!(line["status"], 200);
    assert!(line["bytes"].as_u64() > Some(100) && line["millis"].as_f64() > Some(0.0), "{line}");
    let unrouted: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!((&unrouted["status"], &unrouted["backend"]), (&503.into(), &serde_json::Value::Null));
    cluster.stop().await;
}

#[tokio::test]
async fn common_lines_of_one_app_and_of_some_requests() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut cluster = logging(&path, LogFormat::Common, 2, &["/a"]).await;
    let backend = Backend::named().await;
    let (a, b) = (AppSpec::new("/a").instance(backend.port), AppSpec::new("/b").instance(backend.port));
    cluster.put(&a).await;
    cluster.put(&b).await;
    for _ in 0..3 {
        get(b.address(), "").await;
        get(a.address(), "").await;
    }
    let lines = lines(&path, 2).await;
    assert_eq!(lines.len(), 2, "the first and the third of three, and none of the other app: {lines:?}");
    for line in &lines {
        let (begin, end) = line.split_once("] ").unwrap();
        assert!(begin.starts_with("127.0.0.1 - - ["), "{line}");
        assert!(end.starts_with("\"GET / HTTP/1.1\" 200 "), "{line}");
    }
    cluster.stop().await;
}
