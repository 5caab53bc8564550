//! The access log: what a line says, which requests have one.

use std::path::Path;

use event_watcher::catalog::AppId;
use lb_http::{AccessLogConfig, LogFormat, LoggedApps};

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

async fn logging(path: &Path, format: LogFormat, one_in: u32, apps: LoggedApps) -> Cluster {
    let config = AccessLogConfig { file: Some(path.to_owned()), format, one_in, apps };
    Cluster::with(|c| c.access_log = Some(config)).await
}

#[tokio::test]
async fn a_json_line_tells_who_asked_what_and_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut cluster = logging(&path, LogFormat::Json, 1, LoggedApps::All).await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET /x?y=\" HTTP/1.1\r\nHost: a.test\r\nX-Request-Id: mine\r\n\r\n").await;
    client.response().await;
    // Another worker may write the next line.
    lines(&path, 1).await;
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
async fn what_was_refused_unread_has_a_line_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let cluster = logging(&path, LogFormat::Json, 1, LoggedApps::All).await;
    let mut n = 0;
    for (request, status) in
        [("GET / HTTP/1.1\n\n", 400), ("GET / HTTP/1.1\r\n\r\n", 400), ("GET / HTTP/9.9\r\n\r\n", 505)]
    {
        let mut client = Client::connect(cluster.plane.http_address().unwrap()).await;
        client.send(request).await;
        assert_eq!(client.response().await.status(), status);
        n += 1;
        let lines = lines(&path, n).await;
        let line: serde_json::Value = serde_json::from_str(&lines[n - 1]).unwrap();
        assert_eq!((&line["status"], &line["client"]), (&status.into(), &"127.0.0.1".into()), "{line}");
        assert_eq!((&line["method"], &line["backend"]), (&"-".into(), &serde_json::Value::Null));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn common_lines_of_one_app_and_of_some_requests() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut cluster = logging(&path, LogFormat::Common, 2, LoggedApps::These(vec![AppId::new("/a")])).await;
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

#[tokio::test]
async fn a_label_turns_the_log_of_a_service_on_or_off() {
    let folder = tempfile::tempdir().unwrap();
    for (default, labels, expect) in [
        (LoggedApps::All, ["off", "1/1", "true"], [false, true, true]),
        (LoggedApps::None, ["on", "", "1/4000000000"], [true, false, false]),
        (LoggedApps::These(vec![AppId::new("/a")]), ["", "", "maybe"], [true, false, false]),
    ] {
        let path = folder.path().join("access.log");
        std::fs::write(&path, "").unwrap();
        let mut cluster = logging(&path, LogFormat::Json, 1, default.clone()).await;
        let backend = Backend::named().await;
        let ids = ["/a", "/b", "/c"];
        let mut apps = Vec::new();
        for (id, label) in ids.into_iter().zip(labels) {
            let app = AppSpec::new(id).instance(backend.port);
            let app = if label.is_empty() { app } else { app.label("WAYMARK_0_ACCESS_LOG", label) };
            cluster.put(&app).await;
            get(app.address(), "").await;
            apps.push(app);
        }
        // Last, and logged: what is not there by then never will be.
        let last = AppSpec::new("/z").instance(backend.port).label("WAYMARK_0_ACCESS_LOG", "on");
        cluster.put(&last).await;
        get(last.address(), "").await;
        let n_expected = expect.iter().filter(|logged| **logged).count() + 1;
        let lines = lines(&path, n_expected).await;
        assert_eq!(lines.len(), n_expected, "{default:?} {labels:?}: {lines:?}");
        for (app, is_logged) in apps.iter().zip(expect) {
            let name = format!("\"{}_{}\"", &app.id[1..], app.port);
            assert_eq!(
                lines.iter().any(|l| l.contains(&name)),
                is_logged,
                "{default:?} {labels:?} {}",
                app.id
            );
        }
        let n_problems = cluster.plane.problems().iter().filter(|p| p.at.ends_with("ACCESS_LOG")).count();
        assert_eq!(n_problems, labels.iter().filter(|l| **l == "maybe").count());
        cluster.stop().await;
    }
}

#[tokio::test]
async fn a_file_that_was_rotated_away_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let cluster = logging(&path, LogFormat::Json, 1, LoggedApps::All).await;
    let address = cluster.plane.http_address().unwrap();
    get(address, "X-Request-Id: before\r\n").await;
    lines(&path, 1).await;
    std::fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    get(address, "X-Request-Id: after\r\n").await;
    let after = lines(&path, 1).await;
    assert!(after[0].contains("\"after\""), "{after:?}");
    assert_eq!(lines(&folder.path().join("access.log.1"), 1).await.len(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn a_stop_loses_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut cluster = logging(&path, LogFormat::Common, 1, LoggedApps::All).await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    for _ in 0..300 {
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        client.response().await;
    }
    drop(client);
    cluster.stop().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 300);
}
