//! What happens when an instance cannot be reached, dies, or is stopped: nobody sees it if it can be helped.

use event_watcher::catalog::InstanceState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::*;

#[tokio::test]
async fn a_dead_instance_costs_no_request() {
    let mut cluster = Cluster::start().await;
    let alive = Backend::named().await;
    let app = AppSpec::new("/a").instance(alive.port).instance(free_port()).instance(free_port());
    cluster.put(&app).await;
    for _ in 0..12 {
        let mut client = Client::connect(app.address()).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
        assert_eq!(client.response().await.port(), alive.port);
    }
    let row = cluster.csv_row(&format!("a_{}", app.port), "BACKEND");
    let count = |name: &str| row[name].parse::<u64>().unwrap();
    assert!(count("econ") >= 3 && count("wretr") >= 3 && count("wredis") >= 3, "{row:?}");
    assert_eq!(count("hrsp_2xx"), 12);
    cluster.stop().await;
}

/// The scheduler still lists tasks that have died.
#[tokio::test]
async fn w37_a_dead_task_is_passed_over_and_most_of_them_are_not() {
    const N_REQUESTS: u64 = 300;
    let mut cluster = Cluster::start().await;
    let (alive, dead) = (Backend::named().await, [free_port(), free_port()]);
    let app = AppSpec::new("/a").instance(alive.port).instance(dead[0]);
    cluster.put(&app).await;
    let failures = |cluster: &Cluster| -> u64 {
        cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["econ"].parse().unwrap()
    };
    let mut client = Client::connect(app.address()).await;
    for _ in 0..N_REQUESTS {
        assert_eq!(client.get("").await.port(), alive.port);
    }
    // Without ejection every other request would have met it. Each failure doubles the time until the next.
    let n_failures = failures(&cluster);
    assert!((3..=20).contains(&n_failures), "{n_failures} of {N_REQUESTS} met the dead one");

    // Two of three: all of them take turns, and still no client sees it.
    cluster.put(&app.clone().instance(dead[1])).await;
    for _ in 0..N_REQUESTS {
        assert_eq!(client.get("").await.port(), alive.port);
    }
    let n_more = failures(&cluster) - n_failures;
    assert!(n_more > N_REQUESTS / 10, "only {n_more} of {N_REQUESTS} met a dead one");
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_accepts() {
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/a").instance(free_port());
    cluster.put(&app).await;
    let response = get(app.address(), "").await;
    assert_eq!((response.status(), response.header("waymark-reason")), (503, Some("connect-failed")));
    let row = cluster.csv_row(&format!("a_{}", app.port), "BACKEND");
    assert_eq!(["econ", "wretr", "wredis", "hrsp_5xx", "qcur"].map(|c| &*row[c]), ["5", "4", "0", "1", "0"]);

    // Nobody may wait: it is said at once.
    cluster.put(&app.clone().label("WAYMARK_0_QUEUE", "0")).await;
    assert_eq!(get(app.address(), "").await.status(), 503);
    assert_eq!(cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["econ"], "6");
    cluster.stop().await;
}

/// In HAProxy, too: `retries 3`, a second apart.
#[tokio::test]
async fn the_only_instance_may_restart_while_a_request_waits() {
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/a").instance(free_port());
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
    let was_refused = async {
        while cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["econ"] == "0" {
            tokio::task::yield_now().await;
        }
    };
    soon("a refused connect", was_refused).await;
    let listener = TcpListener::bind(("127.0.0.1", app.instances[0].0)).await.unwrap();
    let (mut instance, _) = soon("another connect", listener.accept()).await.unwrap();
    let mut request = [0; 1024];
    assert_ne!(soon("the request", instance.read(&mut request)).await.unwrap(), 0);
    instance.write_all(&ok("back")).await.unwrap();
    let response = client.response().await;
    assert_eq!((response.status(), &*response.body), (200, "back"));
    let row = cluster.csv_row(&format!("a_{}", app.port), "BACKEND");
    assert_eq!((row["wretr"] != "0", &*row["hrsp_2xx"]), (true, "1"), "{row:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_session_whose_instance_died_moves_on_with_a_new_cookie() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Backend::named().await, Backend::named().await);
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "true").instance(a.port).instance(b.port);
    cluster.put(&app).await;
    let first = get(app.address(), "").await;
    let set = first.header("set-cookie").unwrap().to_owned();
    let (dead, other) = if first.port() == a.port { (a, b) } else { (b, a) };
    dead.kill().await;
    let moved = get(app.address(), &format!("Cookie: {set}\r\n")).await;
    assert_eq!(moved.port(), other.port);
    assert_ne!(moved.header("set-cookie").expect("a new cookie"), set);
    cluster.stop().await;
}

/// Closes every connection after its first request without saying so.
async fn closes_after_one() -> Backend {
    Backend::with(|port, request| match request.n_before {
        0 => Reply::Bytes(ok(&port.to_string())),
        _ => Reply::Nothing,
    })
    .await
}

#[tokio::test]
async fn an_idle_connection_that_turns_out_dead_is_made_good_for_idempotent_requests() {
    let mut cluster = Cluster::start().await;
    let backend = closes_after_one().await;
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "true").instance(backend.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    for _ in 0..5 {
        assert_eq!(client.get("").await.port(), backend.port, "the only instance, on a new connection");
    }
    assert!(cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["wretr"].parse::<u32>().unwrap() >= 4);

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    let response = client.response().await;
    assert_eq!(response.status(), 502, "it was written and may have had its effect");
    assert_eq!(response.header("waymark-reason"), Some("no-response"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_session_is_not_moved_by_a_dead_idle_connection() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (closes_after_one().await, closes_after_one().await);
    let app = AppSpec::new("/a").label("HAPROXY_0_STICKY", "true").instance(a.port).instance(b.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    let first = client.get("").await;
    let cookie = format!("Cookie: {}\r\n", first.header("set-cookie").unwrap());
    for _ in 0..4 {
        let next = client.get(&cookie).await;
        assert_eq!((next.port(), next.header("set-cookie")), (first.port(), None));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn half_a_response_is_not_sent_again() {
    let mut cluster = Cluster::start().await;
    let broken = Backend::with(|_, _| Reply::Last(b"HTTP/1.1 200 OK\r\nconte".to_vec())).await;
    let app = AppSpec::new("/a").instance(broken.port);
    cluster.put(&app).await;
    assert_eq!(get(app.address(), "").await.status(), 502);
    assert_eq!(broken.n_connections(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn a_cut_body_is_cut_for_the_client_too() {
    let mut cluster = Cluster::start().await;
    let short =
        Backend::with(|_, _| Reply::Last(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()))
            .await;
    let app = AppSpec::new("/a").instance(short.port);
    cluster.put(&app).await;
    let mut client = Client::connect(app.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.try_response().await.is_none());
    assert_eq!(cluster.csv_row(&format!("a_{}", app.port), "BACKEND")["srv_abrt"], "1");
    cluster.stop().await;
}

#[tokio::test]
async fn a_draining_instance_finishes_its_requests_and_gets_no_new_ones() {
    let mut cluster = Cluster::start().await;
    let release = CancellationToken::new();
    let held = release.clone();
    let old = Backend::with(move |port, _| Reply::Held(held.clone(), ok(&port.to_string()))).await;
    let new = Backend::named().await;
    let mut app = AppSpec::new("/a").instance(old.port);
    cluster.put(&app).await;
    let mut waiting = Client::connect(app.address()).await;
    waiting.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let reached = async {
        while old.n_connections() == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the old instance has it", reached).await;
    app.instances[0].1 = InstanceState::Killing;
    cluster.put(&app.clone().instance(new.port)).await;
    for _ in 0..4 {
        assert_eq!(get(app.address(), "").await.port(), new.port);
    }
    assert_eq!(
        cluster.csv_row(&format!("a_{}", app.port), &format!("127_0_0_1_{}", old.port))["status"],
        "DRAIN"
    );
    release.cancel();
    assert_eq!(waiting.response().await.port(), old.port);
    cluster.stop().await;
}

/// The port of a task that has ended is another app's: what was opened to the one must not carry requests to the other.
#[tokio::test]
async fn w38_idle_connections_to_a_port_that_another_app_got_are_closed_at_once() {
    let mut cluster = Cluster::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (served, mut connections) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for n in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let served = served.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let mut n_requests = 0;
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    n_requests += 1;
                    stream.write_all(&ok(&format!("connection {n}"))).await.unwrap();
                }
                // Nobody listens once the test has ended.
                let _ = served.send((n, n_requests)).await;
            });
        }
    });
    let ended = AppSpec::new("/ended").instance(port);
    cluster.put(&ended).await;
    assert_eq!(get(ended.address(), "").await.body, "connection 0");
    cluster.put(&AppSpec { instances: vec![], ..ended.clone() }).await;
    let closed = soon("the idle connection is closed", connections.recv()).await;
    assert_eq!(closed, Some((0, 1)), "after the one request of its app");
    let next = AppSpec::new("/next").instance(port);
    cluster.put(&next).await;
    assert_eq!(get(next.address(), "").await.body, "connection 1");
    assert_eq!(get(ended.address(), "").await.status(), 503, "nothing of the app leads there any more");
    cluster.stop().await;
}

#[tokio::test]
async fn scaling_under_load_fails_no_request() {
    let mut cluster = Cluster::start().await;
    let first = Backend::named().await;
    let app = AppSpec::new("/a").instance(first.port);
    cluster.put(&app).await;
    let stop = CancellationToken::new();
    let load = |method: &'static str| {
        let (stop, address) = (stop.clone(), app.address());
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut n = 0;
            while !stop.is_cancelled() {
                client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")).await;
                let response = client.response().await;
                assert_eq!(response.status(), 200, "{method}: {response:?}");
                n += 1;
            }
            n
        })
    };
    let loads: Vec<_> = (0..8).map(|i| load(if i % 2 == 0 { "GET" } else { "POST" })).collect();
    for _ in 0..20 {
        let second = Backend::named().await;
        let mut scaled = app.clone().instance(second.port);
        cluster.put(&scaled).await;
        // As Marathon does it: told that it is being killed, it ends when it has nothing left to do.
        scaled.instances[1].1 = InstanceState::Killing;
        cluster.put(&scaled).await;
        let idle = async {
            while cluster.plane.backends()[0]
                .servers
                .iter()
                .any(|s| s.address.port() == second.port && s.n_in_flight > 0)
            {
                tokio::task::yield_now().await;
            }
        };
        soon("the instance is idle", idle).await;
        second.kill().await;
        cluster.put(&app).await;
    }
    stop.cancel();
    for load in loads {
        assert!(load.await.unwrap() > 0);
    }
    cluster.stop().await;
}
