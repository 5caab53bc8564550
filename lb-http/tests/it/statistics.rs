//! What the plane tells about itself: HAProxy's CSV, JSON and page, metrics, views, problems.

use event_watcher::catalog::InstanceState;
use tokio::io::AsyncReadExt;

use lb_http::stats::Servers;

use crate::support::*;

#[tokio::test]
async fn the_csv_is_haproxys() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/dcos-101/app2").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    for _ in 0..3 {
        client.get("").await;
    }
    let csv = cluster.plane.stats_csv(Servers::All);
    let header = csv.lines().next().unwrap();
    let start = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,\
                 chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,check_status,";
    assert!(header.starts_with(start), "{header}");
    assert!(csv.lines().all(|line| line.ends_with(',')));
    let n_columns = header.split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == n_columns));
    for name in header.trim_start_matches("# ").trim_end_matches(',').split(',') {
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
    }
    let name = format!("dcos-101_app2_{}", app.port);
    let server = format!("127_0_0_1_{}", backend.port);
    let order: Vec<_> = csv.lines().skip(1).map(|l| l.split(',').take(2).collect::<Vec<_>>()).collect();
    assert_eq!(
        order,
        [
            ["stats", "FRONTEND"],
            ["stats", "BACKEND"],
            ["marathon_http_in", "FRONTEND"],
            ["marathon_http_appid_in", "FRONTEND"],
            [&name, "FRONTEND"],
            [&name, &server],
            [&name, "BACKEND"],
        ]
    );
    for (row, expect) in [
        ("FRONTEND", [("stot", "1"), ("req_tot", "3"), ("hrsp_2xx", "3"), ("status", "OPEN"), ("type", "0")]),
        ("BACKEND", [("stot", "3"), ("req_tot", "3"), ("hrsp_2xx", "3"), ("status", "UP"), ("type", "1")]),
        (&server, [("stot", "3"), ("reuse", "2"), ("hrsp_2xx", "3"), ("status", "no check"), ("type", "2")]),
    ] {
        let row = cluster.csv_row(&name, row);
        for (column, value) in expect {
            assert_eq!(row[column], value, "{column} of {row:?}");
        }
        assert!(
            row["bin"].parse::<u64>().unwrap() > 90 && row["bout"].parse::<u64>().unwrap() > 100,
            "{row:?}"
        );
    }
    cluster.stop().await;
}

#[tokio::test]
async fn counters_survive_changes() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    let app = AppSpec::new("/a").instance(a.port);
    cluster.put(&app).await;
    get(app.address(), "").await;
    cluster.put(&app.clone().label("HAPROXY_0_STICKY", "true").instance(b.port)).await;
    for _ in 0..2 {
        get(app.address(), "").await;
    }
    cluster.put(&AppSpec { instances: vec![(b.port, InstanceState::Running)], ..app.clone() }).await;
    assert_eq!(cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["stot"], "3");
    cluster.stop().await;
}

#[tokio::test]
async fn names_from_apps_are_escaped_wherever_they_are_shown() {
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/<script>alert(1)</script>,\"").label("HAPROXY_0_BALANCE", "<b>");
    cluster.put(&app).await;
    let page = cluster.plane.stats_page(Servers::All);
    assert!(!page.contains("<script") && page.contains("&#60;script"), "{page}");
    let csv = cluster.plane.stats_csv(Servers::All);
    assert!(csv.contains(&format!("\"<script>alert(1)<_script>,\"\"_{}\",BACKEND,", app.port)), "{csv}");
    let json: serde_json::Value = serde_json::from_str(&cluster.plane.stats_json(Servers::All)).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 6);
    assert_eq!(json[5][0]["objType"], "Backend");
    assert_eq!(json[5][1]["value"]["value"], "BACKEND");
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    assert!(
        metrics.contains(&format!(
            "haproxy_backend_status{{proxy=\"<script>alert(1)<_script>,\\\"_{}\",state=\"DOWN\"}} 1",
            app.port
        )),
        "{metrics}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn metrics_have_the_exporters_names() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    get(app.address(), "").await;
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    let proxy = format!("proxy=\"a_{}\"", app.port);
    for line in [
        format!("haproxy_frontend_http_requests_total{{{proxy}}} 1"),
        format!("haproxy_backend_http_responses_total{{{proxy},code=\"2xx\"}} 1"),
        format!("haproxy_server_sessions_total{{{proxy},server=\"127_0_0_1_{}\"}} 1", backend.port),
        format!("haproxy_server_status{{{proxy},server=\"127_0_0_1_{}\",state=\"UP\"}} 1", backend.port),
        "haproxy_frontend_status{proxy=\"marathon_http_in\",state=\"UP\"} 1".to_owned(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let mut types: Vec<&str> = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let n = types.len();
    types.dedup();
    assert_eq!(types.len(), n, "each metric is declared once");
    cluster.stop().await;
}

#[tokio::test]
async fn views_maps_and_routes() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").label("HAPROXY_0_VHOST", "a.test,b.test").label("HAPROXY_0_PATH", "/x");
    let app = app.instance(backend.port);
    cluster.put(&app).await;
    get(app.address(), "").await;
    let name = format!("a_{}", app.port);
    assert_eq!(cluster.plane.vhost_map(), format!("a.test {name}\nb.test {name}\n"));
    assert_eq!(cluster.plane.app_map(), format!("/a {name}\n"));
    let routes = serde_json::to_value(cluster.plane.routes()).unwrap();
    assert_eq!(routes[0]["from"], serde_json::json!({"service_port": {"port": app.port, "mode": "http"}}));
    assert_eq!(routes[1]["from"]["host"]["path"], "/x");
    assert_eq!(routes.as_array().unwrap().len(), 4);
    let backends = serde_json::to_value(cluster.plane.backends()).unwrap();
    assert_eq!(backends[0]["n_requests"], 1);
    assert!(backends[0]["p99_millis"].as_f64().unwrap() > 0.0, "{backends}");
    assert_eq!(backends[0]["servers"][0]["instance"], format!("i{}", backend.port));
    cluster.stop().await;
}

#[tokio::test]
async fn the_stages_of_requests_are_told_apart() {
    const HELD: std::time::Duration = std::time::Duration::from_millis(60);
    let mut cluster = Cluster::start().await;
    let release = tokio_util::sync::CancellationToken::new();
    let held = release.clone();
    let backend = Backend::with(move |_, _| Reply::Held(held.clone(), ok("late"))).await;
    let app = AppSpec::new("/a").label("WAYMARK_0_MAXCONN_INSTANCE", "1").instance(backend.port);
    cluster.put(&app).await;
    let proxy = format!("a_{}", app.port);
    let row = |name: &str| cluster.csv_row(&proxy, name);
    let (mut first, mut second) =
        (Client::connect(app.address()).await, Client::connect(app.address()).await);
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let server = format!("127_0_0_1_{}", backend.port);
    soon("the first is served", async {
        while row(&server)["scur"] != "1" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon("the second waits", async {
        while row("BACKEND")["qcur"] != "1" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // For the time to pass that is told below.
    tokio::time::sleep(HELD).await;
    release.cancel();
    assert_eq!((first.response().await.status(), second.response().await.status()), (200, 200));
    soon("both have ended", async {
        while row(&server)["scur"] != "0" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let millis = |name: &str, column: &str| row(name)[column].parse::<u128>().unwrap();
    for column in ["qtime_max", "rtime_max", "ttime_max"] {
        assert!(millis("BACKEND", column) >= HELD.as_millis(), "{column}: {:?}", row("BACKEND"));
    }
    // One of two waited for room, the other one for its response.
    for column in ["qtime", "rtime"] {
        let (mean, longest) = (millis("BACKEND", column), millis("BACKEND", &format!("{column}_max")));
        assert!(mean >= HELD.as_millis() / 2 && mean < longest, "{column}: {:?}", row("BACKEND"));
    }
    assert!(millis(&server, "ttime") >= millis(&server, "rtime"));
    assert!(millis(&server, "ctime") <= millis(&server, "ctime_max"));
    assert_eq!(&*row(&server)["used_conn_cur"], "0");
    assert!(millis(&server, "srv_icur") >= 1, "each worker keeps its own");
    cluster.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_problem_until_it_is_free() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::named().await;
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "maybe").instance(backend.port);
    let other = std::net::TcpListener::bind(app.address()).unwrap();
    cluster.put(&app).await;
    let problems: Vec<String> = cluster.plane.problems().iter().map(ToString::to_string).collect();
    assert!(problems.iter().any(|p| p.contains("cannot listen on 127.0.0.1:")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("labels.HAPROXY_0_STICKY: \"maybe\"")), "{problems:?}");
    drop(other);
    let served = async {
        while tokio::net::TcpStream::connect(app.address()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon("the port is tried again", served).await;
    assert_eq!(get(app.address(), "").await.port(), backend.port);
    let gone = async {
        while cluster.plane.problems().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    soon("the problem is gone", gone).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_stops_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_publisher, subscriber) = event_watcher::publish::channel();
    let config =
        lb_http::Config { http_listen: Some(taken.local_addr().unwrap()), ..lb_http::Config::default() };
    let error =
        lb_http::start(config, subscriber, 1, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("for virtual hosts: another program listens there"), "{error}");
}

#[tokio::test]
async fn every_refusal_is_counted_and_shown_with_its_reason() {
    let mut cluster = Cluster::with(|c| {
        c.limits.connections_per_listener = 1;
        c.http2 = lb_http::Http2::WithPriorKnowledge;
    })
    .await;
    let backend = Backend::with(|_, request| match request.head.contains("/broken") {
        true => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_vec()),
        false => Reply::Bytes(ok("hello")),
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let mut first = Client::connect(app.address()).await;
    first.get("").await;
    assert!(Client::connect(app.address()).await.is_closed().await, "one too many");
    first.send("GET /broken HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(first.response().await.status(), 502);
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    first.send(&format!("{chunked}0\r\nX: {}\r\n\r\n", "x".repeat(9000))).await;
    assert_eq!(first.response().await.status(), 400);
    assert!(first.is_closed().await);
    // A PING has eight bytes.
    let bad_frame =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice(), b"\0\0\x01\x06\0\0\0\0\0x"];
    let refused = async {
        loop {
            let mut client = Client::connect(app.address()).await;
            client.send_bytes(&bad_frame.concat()).await;
            while client.stream.read_u8().await.is_ok() {}
            let page = cluster.plane.stats_page(Servers::All);
            // The place of the connection before may not have been free yet; the count may come after the close.
            if page.contains("http2-error ") {
                break page;
            }
        }
    };
    let page = soon("a connection of HTTP/2 is refused", refused).await;
    assert!(page.contains("Refused requests: trailer-length 1. Refused connections: http2-error "), "{page}");
    assert!(page.contains("Bad responses: framing 1."), "{page}");
    let mut metrics = String::new();
    cluster.plane.metrics(&mut metrics);
    for (what, reason) in [
        ("refused_requests", "trailer-length"),
        ("refused_connections", "http2-error"),
        ("refused_connections", "listener-connections"),
        ("bad_responses", "framing"),
    ] {
        let line = format!("waymark_http_{what}_total{{proxy=\"a_{}\",reason=\"{reason}\"}} ", app.port);
        assert!(metrics.lines().any(|l| l.starts_with(&line)), "{line} is not in\n{metrics}");
    }
    cluster.stop().await;
}
