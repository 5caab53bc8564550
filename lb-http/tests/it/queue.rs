//! Instances with a maximum of requests: what is over it goes elsewhere, or waits its turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::InstanceState;
use lb_http::stats::Servers;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::*;

/// Holds every request for a path that contains `hold`, until it is let go.
async fn holding() -> (Backend, CancellationToken) {
    let release = CancellationToken::new();
    let held = release.clone();
    let backend = Backend::with(move |port, request| {
        let answer = ok(&format!("{port}\n{}", request.head));
        if request.head.contains("hold") { Reply::Held(held.clone(), answer) } else { Reply::Bytes(answer) }
    });
    (backend.await, release)
}

struct Service {
    cluster: Cluster,
    app: AppSpec,
}

impl Service {
    async fn start(app: AppSpec, labels: &[(&'static str, &str)]) -> Self {
        let app = labels.iter().fold(app, |app, (name, value)| app.label(name, value));
        let mut cluster = Cluster::start().await;
        cluster.put(&app).await;
        assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());
        Self { cluster, app }
    }

    /// Sends a request that is held, and returns when `n` wait or are in flight in all.
    async fn send(&self, path: &str, headers: &str, column: &str, n: u32) -> Client {
        let mut client = Client::connect(self.app.address()).await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n")).await;
        self.until(column, n).await;
        client
    }

    fn column(&self, row: &str, column: &str) -> String {
        self.cluster.csv_row(&format!("a_{}", self.app.port), row)[column].clone()
    }

    fn has_counted(&self, expect: &[(&str, u32)]) {
        let mut metrics = String::new();
        self.cluster.plane.metrics(&mut metrics);
        for (name, n) in expect {
            let line = format!("waymark_http_{name}_total{{proxy=\"a_{}\"}} {n}", self.app.port);
            assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
    }

    /// Of the backend and its servers together.
    async fn until(&self, column: &str, n: u32) {
        let sum = || -> u32 {
            let servers = self.app.instances.iter().map(|(port, _)| format!("127_0_0_1_{port}"));
            let own = if column == "qcur" { Some("BACKEND".to_owned()) } else { None };
            servers.chain(own).map(|row| self.column(&row, column).parse::<u32>().unwrap()).sum()
        };
        let reached = async {
            while sum() != n {
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("{column} is {n}"), reached).await;
    }

    fn server(&self, index: usize) -> String {
        format!("127_0_0_1_{}", self.app.instances[index].0)
    }
}

const ONE: (&str, &str) = ("WAYMARK_0_MAXCONN_INSTANCE", "1");

#[tokio::test]
async fn what_is_over_the_maximum_goes_to_another_and_then_waits_in_order() {
    let ((a, release_a), (b, release_b)) = (holding().await, holding().await);
    let service = Service::start(AppSpec::new("/a").instance(a.port).instance(b.port), &[ONE]).await;
    let first = service.send("/hold", "", "scur", 1).await;
    let second = service.send("/hold", "", "scur", 2).await;
    let mut third = service.send("/hold-third", "", "qcur", 1).await;
    let mut fourth = service.send("/fourth", "", "qcur", 2).await;
    assert_eq!(
        (service.column("BACKEND", "qcur"), service.column("BACKEND", "qmax")),
        ("2".into(), "2".into())
    );
    assert_eq!(service.column(&service.server(0), "slim"), "1");
    assert_eq!(service.column(&service.server(0), "qlimit"), "1024");
    let page = service.cluster.plane.stats_page(Servers::All);
    assert!(page.contains("<td>1024</td>"), "the limit of the queue is on the page");
    release_a.cancel();
    // Which of the two that is depends on the turn.
    let (mut at_a, mut at_b) = if first.is_answered().await { (first, second) } else { (second, first) };
    assert_eq!(at_a.response().await.port(), a.port);
    assert_eq!(third.response().await.port(), a.port, "its place is the third's, who came first");
    assert_eq!(fourth.response().await.port(), a.port);
    release_b.cancel();
    assert_eq!(at_b.response().await.port(), b.port);
    assert_eq!(
        (service.column("BACKEND", "qcur"), service.column("BACKEND", "qmax")),
        ("0".into(), "2".into())
    );
    let mut metrics = String::new();
    service.cluster.plane.metrics(&mut metrics);
    let proxy = format!("proxy=\"a_{}\"", service.app.port);
    for line in [
        format!("haproxy_backend_max_queue{{{proxy}}} 2"),
        format!("haproxy_server_limit_sessions{{{proxy},server=\"{}\"}} 1", service.server(0)),
        format!("waymark_http_queued_requests_total{{{proxy}}} 2"),
        format!("waymark_http_queue_timeouts_total{{{proxy}}} 0"),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    service.cluster.stop().await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_so() {
    let (a, release) = holding().await;
    let labels = [ONE, ("WAYMARK_0_TIMEOUT_QUEUE", "200ms")];
    let service = Service::start(AppSpec::new("/a").instance(a.port), &labels).await;
    let mut first = service.send("/hold", "", "scur", 1).await;
    let mut waits = Client::connect(service.app.address()).await;
    let late = waits.get("").await;
    assert_eq!((late.status(), late.header("waymark-reason")), (503, Some("queue-timeout")));
    assert_eq!(service.column("BACKEND", "qcur"), "0");
    assert_eq!(service.column("BACKEND", "econ"), "1", "as HAProxy counts it");
    release.cancel();
    assert_eq!(first.response().await.status(), 200);
    assert_eq!(waits.get("").await.status(), 200, "the connection goes on");
    service.has_counted(&[("queue_timeouts", 1), ("queue_refusals", 0), ("queued_requests", 1)]);
    service.cluster.stop().await;
}

#[tokio::test]
async fn who_finds_the_queue_full_is_told_so_and_who_gives_up_leaves_it() {
    let (a, release) = holding().await;
    let labels = [ONE, ("WAYMARK_0_QUEUE", "1"), ("WAYMARK_0_TIMEOUT_QUEUE", "1h")];
    let service = Service::start(AppSpec::new("/a").instance(a.port), &labels).await;
    let mut first = service.send("/hold", "", "scur", 1).await;
    let gone = service.send("/", "", "qcur", 1).await;
    let refused = get(service.app.address(), "").await;
    assert_eq!((refused.status(), refused.header("waymark-reason")), (503, Some("queue-full")));
    // A reset: one that only ends its direction still waits.
    socket2::SockRef::from(&gone.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    service.until("qcur", 0).await;
    // Who gave up has left no trace: its place goes to nobody.
    release.cancel();
    assert_eq!(first.response().await.status(), 200);
    service.until("scur", 0).await;
    service.has_counted(&[("queue_timeouts", 0), ("queue_refusals", 1), ("queued_requests", 1)]);
    service.cluster.stop().await;
}

#[tokio::test]
async fn a_sticky_client_waits_for_its_instance_or_is_given_another() {
    for (when_full, expect_own) in [("wait", true), ("redispatch", false)] {
        let ((a, release_a), (b, _release_b)) = (holding().await, holding().await);
        let labels = [ONE, ("HAPROXY_0_STICKY", "true"), ("WAYMARK_0_STICKY_WHEN_FULL", when_full)];
        let service = Service::start(AppSpec::new("/a").instance(a.port).instance(b.port), &labels).await;
        let cookie = loop {
            let response = get(service.app.address(), "").await;
            if response.port() == a.port {
                let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
                break format!("Cookie: {cookie}\r\n");
            }
        };
        service.until("scur", 0).await;
        let mut first = service.send("/hold", &cookie, "scur", 1).await;
        let own = service.app.instances.iter().position(|(port, _)| *port == a.port).unwrap();
        if expect_own {
            let mut second = service.send("/", &cookie, "qcur", 1).await;
            assert_eq!(service.column(&service.server(own), "qcur"), "1", "in the server's own line");
            assert_eq!(get(service.app.address(), "").await.port(), b.port, "nobody else is kept waiting");
            release_a.cancel();
            let response = second.response().await;
            assert_eq!((response.port(), response.header("set-cookie")), (a.port, None));
        } else {
            let response = get(service.app.address(), &cookie).await;
            assert_eq!(response.port(), b.port);
            assert!(response.header("set-cookie").is_some(), "the session has moved");
            release_a.cancel();
        }
        assert_eq!(first.response().await.status(), 200);
        service.cluster.stop().await;
    }
}

#[tokio::test]
async fn those_who_wait_hear_of_new_instances_and_of_the_end_of_all() {
    let ((a, _release), (b, _)) = (holding().await, holding().await);
    let mut service = Service::start(AppSpec::new("/a").instance(a.port), &[ONE]).await;
    let _first = service.send("/hold", "", "scur", 1).await;
    let mut waits = service.send("/", "", "qcur", 1).await;
    service.app = service.app.instance(b.port);
    service.cluster.put(&service.app).await;
    assert_eq!(waits.response().await.port(), b.port);

    service.app.instances = vec![(a.port, InstanceState::Running)];
    service.cluster.put(&service.app).await;
    let mut waits = service.send("/", "", "qcur", 1).await;
    let unlimited = AppSpec { labels: vec![("HAPROXY_0_MODE", "http".to_owned())], ..service.app.clone() };
    service.cluster.put(&unlimited).await;
    assert_eq!(waits.response().await.port(), a.port, "there is no maximum any more");

    service.cluster.put(&service.app).await;
    let mut waits = service.send("/", "", "qcur", 1).await;
    service.cluster.remove("/a").await;
    let response = waits.response().await;
    assert_eq!((response.status(), response.header("waymark-reason")), (503, Some("no-endpoint")));
    service.cluster.stop().await;
}

/// Never more than the maximum at the instance itself, none lost, over both workers and with HAProxy's own words.
#[tokio::test]
async fn an_instance_never_sees_more_than_its_maximum() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counters = (Arc::clone(&now), Arc::clone(&most));
    let accepting = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (now, most) = counters.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    // A request that takes a while: others come meanwhile.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    now.fetch_sub(1, SeqCst);
                    if stream.write_all(&ok("x")).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let template = (
        "HAPROXY_0_BACKEND_SERVER_OPTIONS",
        "  server {serverName} {host_ipv4}:{port}{cookieOptions} maxconn 3\n",
    );
    let service = Service::start(AppSpec::new("/a").instance(port), &[template]).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let address = service.app.address();
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            let mut statuses = BTreeSet::new();
            for _ in 0..20 {
                statuses.insert(client.get("").await.status());
            }
            statuses
        });
    }
    while let Some(statuses) = clients.join_next().await {
        assert_eq!(statuses.unwrap(), [200].into());
    }
    assert_eq!(most.load(SeqCst), 3);
    let qmax: u32 = service.column("BACKEND", "qmax").parse().unwrap();
    assert!((1..=24).contains(&qmax), "{qmax}");
    service.until("scur", 0).await;
    accepting.abort();
    service.cluster.stop().await;
}

#[tokio::test]
async fn connections_in_mode_tcp_wait_for_room_as_requests_do() {
    let (a, b) = (Backend::named().await, Backend::named().await);
    let labels =
        [("HAPROXY_0_MODE", "tcp"), ONE, ("WAYMARK_0_QUEUE", "2"), ("WAYMARK_0_TIMEOUT_QUEUE", "2s")];
    let service = Service::start(AppSpec::new("/a").instance(a.port).instance(b.port), &labels).await;
    let mut first = service.send("/", "", "scur", 1).await;
    let mut second = service.send("/", "", "scur", 2).await;
    let ports = BTreeSet::from([first.response().await.port(), second.response().await.port()]);
    assert_eq!(ports, BTreeSet::from([a.port, b.port]), "what is over the maximum goes to the other one");
    assert_eq!(first.get("").await.status(), 200, "a connection keeps its place between requests");
    assert_eq!(service.column(&service.server(0), "slim"), "1");

    let mut third = service.send("/", "", "qcur", 1).await;
    let mut fourth = service.send("/", "", "qcur", 2).await;
    // The queue is full: a reset, which may come before the client has looked at its new connection.
    if let Ok(mut refused) = TcpStream::connect(service.app.address()).await {
        assert!(soon("reset", refused.read(&mut [0])).await.is_err());
    }
    drop(second);
    assert_eq!(third.response().await.status(), 200, "who came first is first");
    let gone = service.send("/", "", "qcur", 2).await;
    socket2::SockRef::from(&gone.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    service.until("qcur", 1).await;
    assert!(fourth.is_closed().await, "it waited for too long");
    drop((first, third));
    service.until("scur", 0).await;
    assert_eq!(
        ["qcur", "qmax", "econ", "stot"].map(|column| service.column("BACKEND", column)),
        ["0", "2", "1", "6"].map(String::from)
    );
    let mut metrics = String::new();
    service.cluster.plane.metrics(&mut metrics);
    for (name, n) in [("queue_timeouts", 1), ("queue_refusals", 1), ("queued_requests", 3)] {
        let line = format!("waymark_http_{name}_total{{proxy=\"a_{}\"}} {n}", service.app.port);
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    service.cluster.stop().await;
}
