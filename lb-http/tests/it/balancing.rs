//! Who gets a request: policies, hosts, app ids, cookies, draining.

use std::collections::BTreeSet;

use event_watcher::catalog::InstanceState;

use crate::support::*;

#[tokio::test]
async fn requests_alternate_between_two_instances_over_all_connections() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    let app = AppSpec::new("/dcos-101/app2").instance(a.port).instance(b.port);
    cluster.put(&app).await;
    let mut ports = Vec::new();
    let mut kept = Client::connect(app.address()).await;
    for _ in 0..10 {
        ports.push(get(app.address(), "").await.port());
        ports.push(kept.get("").await.port());
    }
    assert!(ports.windows(2).all(|w| w[0] != w[1]), "{ports:?}");
    assert!(
        a.n_connections() + b.n_connections() <= 4,
        "one idle connection per worker and endpoint is enough"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn scaling_moves_traffic_and_removing_the_app_closes_its_port() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    let one = AppSpec::new("/a").instance(a.port);
    let mut kept = None;
    for (app, expect) in [
        (&one, BTreeSet::from([a.port])),
        (&one.clone().instance(b.port), BTreeSet::from([a.port, b.port])),
        (&one, BTreeSet::from([a.port])),
    ] {
        cluster.put(app).await;
        let client = match &mut kept {
            Some(client) => client,
            none => none.insert(Client::connect(app.address()).await),
        };
        let mut seen = BTreeSet::new();
        for _ in 0..6 {
            seen.insert(client.get("").await.port());
        }
        assert_eq!(seen, expect);
    }
    cluster.remove("/a").await;
    let last = kept.unwrap().get("").await;
    assert_eq!((last.status(), last.header("waymark-reason")), (503, Some("no-route")));
    let refused = async { while tokio::net::TcpStream::connect(one.address()).await.is_ok() {} };
    soon("the port is closed", refused).await;
    cluster.stop().await;
}

#[tokio::test]
async fn hosts_paths_and_app_ids_lead_to_apps_and_unknown_ones_are_told() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    cluster.put(&AppSpec::new("/site").label("HAPROXY_0_VHOST", "A.test").instance(a.port)).await;
    let api = AppSpec::new("/api").label("HAPROXY_0_VHOST", "a.test").label("HAPROXY_0_PATH", "/api");
    cluster.put(&api.instance(b.port)).await;
    let (hosts, ids) = (cluster.plane.http_address().unwrap(), cluster.plane.appid_address().unwrap());
    for (address, request, expect) in [
        (hosts, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", Some(a.port)),
        (hosts, "GET / HTTP/1.1\r\nHost: A.TEST:9080\r\n\r\n", Some(a.port)),
        (hosts, "GET /api/x HTTP/1.1\r\nHost: a.test\r\n\r\n", Some(b.port)),
        (hosts, "GET http://a.test/api HTTP/1.1\r\nHost: a.test\r\n\r\n", Some(b.port)),
        (hosts, "GET / HTTP/1.1\r\nHost: c.test\r\n\r\n", None),
        (hosts, "GET / HTTP/1.0\r\n\r\n", None),
        (ids, "GET / HTTP/1.1\r\nHost: x\r\nX-Marathon-App-Id: /API\r\n\r\n", Some(b.port)),
        (ids, "GET / HTTP/1.1\r\nHost: x\r\nX-Marathon-App-Id: /other\r\n\r\n", None),
        (ids, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ] {
        let mut client = Client::connect(address).await;
        client.send(request).await;
        let response = client.response().await;
        match expect {
            Some(port) => assert_eq!(response.port(), port, "{request}"),
            None => {
                assert_eq!(response.status(), 503, "{request}");
                assert_eq!(response.header("waymark-reason"), Some("no-route"));
                assert!(response.body.contains("503 Service Unavailable: "), "{}", response.body);
            }
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn an_app_without_instances_is_told_apart() {
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/a");
    cluster.put(&app).await;
    let response = get(app.address(), "").await;
    assert_eq!((response.status(), response.header("waymark-reason")), (503, Some("no-endpoint")));
    assert!(response.body.contains("no instance"), "{}", response.body);
    cluster.stop().await;
}

#[tokio::test]
async fn a_session_stays_with_its_instance_and_the_instance_does_not_see_the_cookie() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "true").instance(a.port).instance(b.port);
    cluster.put(&app).await;
    let first = get(app.address(), "").await;
    let set = first.header("set-cookie").expect("a cookie").to_owned();
    let cookie = set.strip_suffix("; path=/").expect("a session cookie for the whole site").to_owned();
    assert_eq!(cookie.len(), "mesosphere_server_id=".len() + 10);
    for _ in 0..5 {
        let next = get(app.address(), &format!("Cookie: x=1; {cookie}; y=2\r\n")).await;
        assert_eq!(next.port(), first.port());
        assert_eq!(next.header("set-cookie"), None, "it has a valid one");
        assert!(next.body.contains("Cookie: x=1; y=2\r\n"), "{}", next.body);
    }
    let unknown = get(app.address(), "Cookie: mesosphere_server_id=0000000000\r\n").await;
    assert!(unknown.header("set-cookie").is_some());
    assert!(!unknown.body.contains("Cookie"), "{}", unknown.body);

    // Its instance is being stopped: the session moves on, with a new cookie.
    let mut draining = app.clone();
    for instance in draining.instances.iter_mut().filter(|(port, _)| *port == first.port()) {
        instance.1 = InstanceState::Killing;
    }
    cluster.put(&draining).await;
    let moved = get(app.address(), &format!("Cookie: {cookie}\r\n")).await;
    assert_ne!(moved.port(), first.port());
    assert_ne!(moved.header("set-cookie"), Some(&*set));
    cluster.stop().await;
}

#[tokio::test]
async fn a_response_that_may_be_cached_becomes_private_with_the_cookie() {
    let mut cluster = Cluster::start().await;
    let backend = Backend::with(|_, _| {
        Reply::Bytes(b"HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "true").instance(backend.port);
    cluster.put(&app).await;
    let first = get(app.address(), "").await;
    assert_eq!(first.header("cache-control"), Some("private"));
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(get(app.address(), &format!("Cookie: {cookie}\r\n")).await.header("cache-control"), None);
    cluster.stop().await;
}

#[tokio::test]
async fn least_connections_avoids_the_busy_and_source_is_stable() {
    let mut cluster = Cluster::start().await;
    let release = tokio_util::sync::CancellationToken::new();
    let held = release.clone();
    let make = || {
        let held = held.clone();
        Backend::with(move |port, request| {
            let answer = ok(&port.to_string());
            if request.head.contains("X-Hold") {
                Reply::Held(held.clone(), answer)
            } else {
                Reply::Bytes(answer)
            }
        })
    };
    let (a, b) = (make().await, make().await);
    let app = AppSpec::new("/a").instance(a.port).instance(b.port);
    let least = app.clone().label("HAPROXY_0_BALANCE", "leastconn");
    cluster.put(&least).await;
    let mut busy = Client::connect(app.address()).await;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\nX-Hold: 1\r\n\r\n").await;
    let in_flight = async {
        while cluster.plane.backends()[0].servers.iter().all(|server| server.n_in_flight == 0) {
            tokio::task::yield_now().await;
        }
    };
    soon("in flight", in_flight).await;
    let mut ports = BTreeSet::new();
    for _ in 0..6 {
        ports.insert(get(app.address(), "").await.port());
    }
    assert_eq!(ports.len(), 1);
    release.cancel();
    assert!(!ports.contains(&busy.response().await.port()));

    cluster.put(&app.clone().label("HAPROXY_0_BALANCE", "source")).await;
    let mut ports = BTreeSet::new();
    for _ in 0..6 {
        ports.insert(get(app.address(), "").await.port());
    }
    assert_eq!(ports.len(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn mode_tcp_forwards_bytes_and_counts_them() {
    let mut cluster = Cluster::start().await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
    });
    let app = AppSpec::new("/raw").label("WAYMARK_0_MODE", "tcp").instance(free_port()).instance(port);
    cluster.put(&app).await;
    for _ in 0..2 {
        let mut client = Client::connect(app.address()).await;
        client.send("\0not HTTP at all").await;
        assert_eq!(client.read_exactly(16).await, b"\0not HTTP at all");
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
        assert!(client.is_closed().await);
    }
    let name = format!("raw_{}", app.port);
    let ended = async {
        while cluster.csv_row(&name, "BACKEND")["scur"] != "0" {
            tokio::task::yield_now().await;
        }
    };
    soon("both have ended", ended).await;
    for (row, expect) in [
        ("FRONTEND", [("stot", "2"), ("bin", "32"), ("bout", "32"), ("mode", "tcp"), ("hrsp_2xx", "")]),
        ("BACKEND", [("stot", "2"), ("bin", "32"), ("econ", "1"), ("mode", "tcp"), ("status", "UP")]),
        (
            &format!("127_0_0_1_{port}"),
            [("stot", "2"), ("bin", "32"), ("econ", "0"), ("mode", "tcp"), ("bout", "32")],
        ),
    ] {
        let row = cluster.csv_row(&name, row);
        for (column, value) in expect {
            assert_eq!(row[column], value, "{column} of {row:?}");
        }
    }
    assert_eq!(
        get(cluster.plane.appid_address().unwrap(), "X-Marathon-App-Id: /raw\r\n").await.status(),
        503
    );
    cluster.stop().await;
}
