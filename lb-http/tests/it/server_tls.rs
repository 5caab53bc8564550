//! Servers that are spoken to in TLS because a label says so: believed only when their certificate is as it should be.

use event_watcher::catalog::InstanceState;

use crate::support::*;

const NAME: &str = "real.test";

async fn server() -> (Backend, String) {
    let reply = |_, request: Request| match request.head.starts_with("POST") {
        true => Reply::Bytes(ok(&String::from_utf8_lossy(&request.body))),
        false => Reply::Bytes(ok(&request.head)),
    };
    Backend::over_tls(&[NAME, "127.0.0.1"], reply).await
}

fn app(id: &'static str, mode: &str, line: &str) -> AppSpec {
    let template = format!("  timeout server 1h\n  {line}\n");
    AppSpec::new(id).label("HAPROXY_0_MODE", mode).label("HAPROXY_0_BACKEND_SERVER_OPTIONS", &template)
}

#[tokio::test]
async fn a_static_server_is_believed_for_its_certificate_or_not_at_all() {
    let mut cluster = Cluster::start().await;
    let (server, certificate) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &certificate).unwrap();
    let (address, file) = (format!("127.0.0.1:{}", server.port), file.display());
    for (options, expect) in [
        (format!("ssl ca-file {file} sni str({NAME})"), 200),
        (format!("ssl verify required ca-file {file}"), 200),
        ("ssl verify none sni str(whoever.test)".to_owned(), 200),
        (format!("ssl ca-file {file} sni str(other.test)"), 503),
        (format!("ssl sni str({NAME})"), 503),
        (format!("ssl ca-file {file}.missing"), 503),
    ] {
        let app = app("/s", "http", &format!("server s {address} {options}"));
        cluster.put(&app).await;
        let response = get(app.address(), "").await;
        assert_eq!(response.status(), expect, "{options}: {response:?}");
        if expect == 503 {
            assert_eq!(response.header("waymark-reason"), Some("handshake-failed"), "{options}");
        }
        let problems = cluster.plane.problems();
        let n_expected = usize::from(options.contains("missing"));
        assert_eq!(problems.len(), n_expected, "{options}: {problems:?}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn requests_and_bodies_share_connections_in_tls() {
    let mut cluster = Cluster::start().await;
    let (server, _) = server().await;
    let app = app("/s", "http", &format!("server s 127.0.0.1:{} ssl verify none", server.port));
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    let body = "0123456789abcdef".repeat(64 * 1024);
    for _ in 0..3 {
        assert_eq!(client.get("").await.status(), 200);
        client
            .send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
            .await;
        let response = client.response().await;
        assert_eq!((response.status(), response.body.len()), (200, body.len()));
        assert!(response.body == body, "1 MiB both ways");
    }
    assert_eq!(server.n_connections(), 1);
    let row = cluster.csv_row(&format!("s_{}", app.port), "s");
    assert_eq!((&*row["connect"], &*row["econ"]), ("1", "0"));
    cluster.stop().await;
}

#[tokio::test]
async fn instances_are_spoken_to_in_tls_too() {
    let mut cluster = Cluster::start().await;
    let (server, certificate) = server().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &certificate).unwrap();
    let line = format!(
        "server {{serverName}} {{host_ipv4}}:{{port}} {{cookieOptions}}{{healthCheckOptions}} ssl ca-file {}",
        file.path().display()
    );
    let app = app("/i", "http", &line);
    cluster.put(&AppSpec { instances: vec![(server.port, InstanceState::Running)], ..app.clone() }).await;
    assert_eq!(get(app.address(), "").await.status(), 200);
    cluster.stop().await;
}

#[tokio::test]
async fn connections_in_mode_tcp_are_put_into_tls() {
    let mut cluster = Cluster::start().await;
    let (server, _) = server().await;
    for (options, is_served) in [("ssl verify none", true), ("ssl", false)] {
        let app = app("/t", "tcp", &format!("server s 127.0.0.1:{} {options}", server.port));
        cluster.put(&app).await;
        let mut client = Client::connect(app.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.try_response().await.is_some_and(|r| r.status() == 200), is_served, "{options}");
    }
    cluster.stop().await;
}
