//! HTTP/2 towards clients: what a client of HTTP/1.1 gets, one of HTTP/2 gets.

use h2::Reason;
use lb_http::{AccessLogConfig, LogFormat, LoggedApps};
use tokio_util::sync::CancellationToken;

use crate::http2_client::*;
use crate::support::*;

#[tokio::test]
async fn statistics_and_log_are_those_of_http1() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = AccessLogConfig {
        file: Some(path.clone()),
        format: LogFormat::Json,
        one_in: 1,
        apps: LoggedApps::All,
    };
    let mut cluster = Cluster::with(|c| {
        knows_http2(c);
        c.access_log = Some(config);
    })
    .await;
    let reply = |_, request: Request| match request.head.split(' ').nth(1) {
        Some("/missing") => Reply::Bytes(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno".to_vec()),
        Some("/broken") => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_vec()),
        _ => Reply::Bytes(ok("hello")),
    };
    let (one, two) = (Backend::with(reply).await, Backend::with(reply).await);
    let of_http1 = AppSpec::new("/one").instance(one.port);
    let of_http2 = AppSpec::new("/two").instance(two.port);
    cluster.put(&of_http1).await;
    cluster.put(&of_http2).await;
    let mut http1 = Client::connect(of_http1.address()).await;
    let mut http2 = Streams::connect(of_http2.address()).await;
    for (method, path, refused, status) in [
        ("GET", "/", "", 200),
        ("GET", "/missing", "", 404),
        ("GET", "/", "", 200),
        ("GET", "/broken", "", 502),
        ("GET", "/", "expect", 417),
    ] {
        let line = if refused.is_empty() { String::new() } else { format!("{refused}: much\r\n") };
        http1.send(&format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\n{line}\r\n")).await;
        assert_eq!(http1.response().await.status(), status, "{path}");
        let headers: &[_] = if refused.is_empty() { &[] } else { &[(refused, "much")] };
        assert_eq!(http2.ask(method, path, headers).await.status, status, "{path}");
    }
    let logged = async {
        loop {
            let text = tokio::fs::read_to_string(&path).await.unwrap_or_default();
            let lines: Vec<serde_json::Value> =
                text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if lines.len() == 10 {
                break lines;
            }
            tokio::task::yield_now().await;
        }
    };
    let lines = soon("lines of the log", logged).await;
    let refused: Vec<_> = lines.iter().filter(|l| l["protocol"] == "-").map(|l| &l["status"]).collect();
    assert_eq!(refused, [417, 417]);
    for (protocol, app) in [("HTTP/1.1", &of_http1), ("HTTP/2.0", &of_http2)] {
        let of = |line: &&serde_json::Value| line["protocol"] == protocol;
        let statuses: Vec<_> = lines.iter().filter(of).map(|l| l["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [200, 404, 200, 502], "{protocol}");
        let first = lines.iter().find(of).unwrap();
        assert_eq!(first["backend"], format!("{}_{}", &app.id[1..], app.port));
        assert_eq!(
            (&first["method"], &first["target"], &first["host"]),
            (&"GET".into(), &"/".into(), &"a.test".into())
        );
        assert!(first["bytes"].as_u64() > Some(20), "{first}");
    }
    let row =
        |app: &AppSpec, server: &str| cluster.csv_row(&format!("{}_{}", &app.id[1..], app.port), server);
    for (server1, server2) in [
        ("FRONTEND".to_owned(), "FRONTEND".to_owned()),
        ("BACKEND".to_owned(), "BACKEND".to_owned()),
        (format!("127_0_0_1_{}", one.port), format!("127_0_0_1_{}", two.port)),
    ] {
        let (row1, row2) = (row(&of_http1, &server1), row(&of_http2, &server2));
        for column in [
            "stot",
            "req_tot",
            "hrsp_1xx",
            "hrsp_2xx",
            "hrsp_3xx",
            "hrsp_4xx",
            "hrsp_5xx",
            "ereq",
            "econ",
            "eresp",
            "wretr",
            "wredis",
            "dreq",
            "cli_abrt",
            "srv_abrt",
            "connect",
            "reuse",
            "intercepted",
        ] {
            assert_eq!(row1[column], row2[column], "{column} of {server1}: {row1:?}\n{row2:?}");
        }
        for column in ["bin", "bout"] {
            assert!(row2[column].parse::<u64>().unwrap() > 100, "{column} of {row2:?}");
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn the_rules_of_services_hold() {
    const AUTH: &str = "realm:bob:$6$abcdefgh$Z7KfoKnKTSZrzo5VZ0YubGLQOj9ov6sHo9TmE3zIU/LHKhpE30zCnZ0mcIXYf9r9rQ4DYaXoxAFSPFlcWdxjB.";
    const LOGIN: &[(&str, &str)] = &[("authorization", "Basic Ym9iOnMzY3JldA==")];
    let mut cluster = Cluster::with(knows_http2).await;
    let backend = Backend::named().await;
    let app = |id, label, value| AppSpec::new(id).instance(backend.port).label(label, value);
    let hsts = app("/edits", "HAPROXY_0_USE_HSTS", "true").label("HAPROXY_0_STICKY", "true");
    let locked = app("/locked", "HAPROXY_0_AUTH", AUTH);
    let denied = app("/denied", "WAYMARK_0_DENY", "127.0.0.0/8");
    let moved = app("/moved", "HAPROXY_0_REDIRECT_TO_HTTPS", "true").label("HAPROXY_0_VHOST", "a.test");
    for app in [&hsts, &locked, &denied, &moved] {
        cluster.put(app).await;
    }
    let mut client = Streams::connect(hsts.address()).await;
    let first = client.get("/x?y=1", &[("cookie", "a=1"), ("te", "trailers")]).await;
    assert_eq!(first.headers["strict-transport-security"], "max-age=15768000");
    let set = first.headers["set-cookie"].to_str().unwrap();
    let pair = set.split(';').next().unwrap();
    for line in
        ["GET /x?y=1 HTTP/1.1\r\n", "\r\nhost: a.test\r\n", "\r\nVia: 2.0 waymark\r\n", "\r\ncookie: a=1\r\n"]
    {
        assert!(first.body.contains(line), "{line:?} in {}", first.body);
    }
    assert!(!first.body.to_lowercase().contains("\r\nte:"), "{}", first.body);
    let again = client.get("/", &[("cookie", "a=1"), ("cookie", pair)]).await;
    assert!(!again.headers.contains_key("set-cookie") && !again.body.contains(pair), "{again:?}");

    let mut client = Streams::connect(locked.address()).await;
    let asked = client.get("/", &[]).await;
    assert_eq!(
        (asked.status, &asked.headers["www-authenticate"]),
        (401, &"Basic realm=\"realm\"".parse().unwrap())
    );
    assert_eq!(client.get("/", LOGIN).await.status, 200);
    assert_eq!(Streams::connect(denied.address()).await.get("/", &[]).await.status, 403);

    let by_host = cluster.plane.http_address().unwrap();
    let away = Streams::connect(by_host).await.get("/path", &[]).await;
    assert_eq!((away.status, &away.headers["location"]), (301, &"https://a.test/path".parse().unwrap()));
    cluster.stop().await;
}

#[tokio::test]
async fn a_dead_instance_costs_no_request() {
    let alive = Backend::named().await;
    let app = AppSpec::new("/a").instance(alive.port).instance(free_port()).instance(free_port());
    let (cluster, mut client) = service(&app).await;
    for _ in 0..12 {
        let answer = client.post("body").await;
        assert!(answer.status == 200 && answer.body.starts_with(&alive.port.to_string()), "{answer:?}");
    }
    let row = cluster.csv_row(&format!("a_{}", app.port), "BACKEND");
    let count = |name: &str| row[name].parse::<u64>().unwrap();
    assert!(count("econ") >= 3 && count("wretr") >= 3 && count("wredis") >= 3, "{row:?}");
    assert_eq!(count("hrsp_2xx"), 12);
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn streams_wait_for_their_turn_and_leave_the_queue_when_they_are_reset() {
    let release = CancellationToken::new();
    let held = release.clone();
    let backend = Backend::with(move |_, request| match request.head.contains("/hold") {
        true => Reply::Held(held.clone(), ok("held")),
        false => Reply::Bytes(ok("hello")),
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port).label("WAYMARK_0_MAXCONN_INSTANCE", "1");
    let (cluster, mut client) = service(&app).await;
    let name = format!("a_{}", app.port);
    let until = async |column: &str, row: &str, value: &str| {
        let reached = async {
            while cluster.csv_row(&name, row)[column] != value {
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("{column} is {value}"), reached).await;
    };
    let (first, _) = client.begin("GET", "/hold", &[], true).await;
    until("scur", &format!("127_0_0_1_{}", backend.port), "1").await;
    let (second, _) = client.begin("GET", "/", &[], true).await;
    until("qcur", "BACKEND", "1").await;
    let (third, mut stream) = client.begin("GET", "/", &[], true).await;
    until("qcur", "BACKEND", "2").await;
    stream.send_reset(Reason::CANCEL);
    drop(third);
    until("qcur", "BACKEND", "1").await;
    release.cancel();
    assert_eq!(answer(first).await.unwrap().body, "held");
    assert_eq!(answer(second).await.unwrap().body, "hello");
    drop(client);
    cluster.stop().await;
}

#[tokio::test]
async fn a_stop_lets_streams_finish_and_says_goodbye() {
    let release = CancellationToken::new();
    let held = release.clone();
    let backend = Backend::with(move |_, _| Reply::Held(held.clone(), ok("late"))).await;
    let app = AppSpec::new("/a").instance(backend.port);
    let (cluster, mut client) = service(&app).await;
    let mut idle = Streams::connect(app.address()).await;
    let (response, _) = client.begin("GET", "/", &[], true).await;
    let in_flight = async {
        while cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["scur"] != "1" {
            tokio::task::yield_now().await;
        }
    };
    soon("in flight", in_flight).await;
    cluster.cancel.cancel();
    // The connection without a stream ends at once, and without an error.
    soon("goodbye", &mut idle.connection).await.unwrap().unwrap();
    release.cancel();
    assert_eq!(answer(response).await.unwrap().body, "late");
    soon("goodbye", &mut client.connection).await.unwrap().unwrap();
    assert!(client.send.ready().await.is_err(), "no other stream begins");
    cluster.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_by_our_own_limit_and_counted() {
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    let (cluster, mut client) = service(&app).await;
    let long = "x".repeat(40 * 1024);
    assert_eq!(client.get("/", &[("x-long", &long)]).await.status, 431);
    assert_eq!(client.get("/", &[]).await.status, 200);
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    let is_counted = |line: &str| line.contains("reason=\"head-length\"") && line.ends_with(" 1");
    assert!(metrics.lines().any(is_counted), "{metrics}");
    drop(client);
    cluster.stop().await;
}
