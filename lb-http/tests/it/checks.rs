//! The balancer's own health checks: who leaves, who comes back, and who is used when nobody is well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use event_watcher::catalog::{Health, HealthCheckProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_util::sync::CancellationToken;

use crate::support::*;

const OPTIONS: &str = "HAPROXY_0_BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS";
const TCP_OPTIONS: &str = "HAPROXY_0_BACKEND_SERVER_TCP_HEALTHCHECK_OPTIONS";
const FAST: &str = " check inter 20ms fall 2 rise 2";

/// A backend that is as well as `status` says, and holds requests for `/held` until they are released.
struct Patient {
    backend: Backend,
    status: Arc<AtomicUsize>,
    n_probes: Arc<AtomicUsize>,
    release: CancellationToken,
}

impl Patient {
    async fn new() -> Self {
        let (status, n_probes) = (Arc::new(AtomicUsize::new(200)), Arc::new(AtomicUsize::new(0)));
        let release = CancellationToken::new();
        let (its_status, its_probes, its_release) = (status.clone(), n_probes.clone(), release.clone());
        let backend = Backend::with(move |port, request| {
            let target = request.head.split(' ').nth(1).unwrap().to_owned();
            match target.as_str() {
                "/health" => {
                    its_probes.fetch_add(1, Relaxed);
                    let status = its_status.load(Relaxed);
                    Reply::Last(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").into_bytes())
                }
                "/held" => Reply::Held(its_release.clone(), ok("released")),
                _ => Reply::Bytes(ok(&format!("{port}\n"))),
            }
        });
        Self { backend: backend.await, status, n_probes, release }
    }

    fn port(&self) -> u16 {
        self.backend.port
    }

    fn set(&self, status: usize) {
        self.status.store(status, Relaxed);
    }
}

fn app(id: &'static str) -> AppSpec {
    AppSpec::new(id).health_check(HealthCheckProtocol::Http).label(OPTIONS, FAST)
}

fn server_name(port: u16) -> String {
    format!("127_0_0_1_{port}")
}

/// Waits until a column of a server has this value.
async fn becomes(cluster: &Cluster, app: &AppSpec, port: u16, column: &str, value: &str) {
    let proxy = format!("{}_{}", &app.id[1..], app.port);
    let reached = async {
        while cluster.csv_row(&proxy, &server_name(port))[column] != value {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(&format!("{column} of {port} becomes {value}"), reached).await;
}

async fn who_answers(app: &AppSpec) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for _ in 0..8 {
        ports.insert(get(app.address(), "").await.port());
    }
    ports
}

#[tokio::test]
async fn a_failing_server_leaves_with_what_it_has_and_comes_back() {
    let mut cluster = Cluster::start().await;
    let (well, ill) = (Patient::new().await, Patient::new().await);
    let app = app("/a").instance(well.port()).instance(ill.port());
    cluster.put(&app).await;
    becomes(&cluster, &app, ill.port(), "check_status", "L7OK").await;
    becomes(&cluster, &app, ill.port(), "status", "UP").await;
    assert_eq!(who_answers(&app).await, BTreeSet::from([well.port(), ill.port()]));

    // One request in flight at each of the two.
    let mut held = [Client::connect(app.address()).await, Client::connect(app.address()).await];
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    }
    becomes(&cluster, &app, ill.port(), "scur", "1").await;
    ill.set(503);
    becomes(&cluster, &app, ill.port(), "status", "DOWN").await;
    let row = cluster.csv_row(&format!("a_{}", app.port), &server_name(ill.port()));
    assert_eq!((&*row["check_status"], &*row["check_code"], &*row["chkdown"]), ("L7STS", "503", "1"));
    assert!(row["chkfail"].parse::<u32>().unwrap() >= 2, "{row:?}");
    assert_eq!((&*row["last_chk"], &*row["scur"]), ("status 503", "1"));
    assert_eq!(who_answers(&app).await, BTreeSet::from([well.port()]));

    // A change of the app does not forget what is known.
    let changed = app.clone().label("HAPROXY_0_VHOST", "a.test");
    cluster.put(&changed).await;
    assert_eq!(who_answers(&changed).await, BTreeSet::from([well.port()]));
    ill.release.cancel();
    well.release.cancel();
    for client in &mut held {
        assert_eq!(client.response().await.body, "released");
    }

    ill.set(200);
    becomes(&cluster, &changed, ill.port(), "status", "UP").await;
    assert_eq!(who_answers(&changed).await, BTreeSet::from([well.port(), ill.port()]));
    cluster.stop().await;
}

#[tokio::test]
async fn when_nobody_is_well_all_are_used_unless_the_label_forbids_it() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (Patient::new().await, Patient::new().await);
    let app = app("/a").instance(a.port()).instance(b.port());
    cluster.put(&app).await;
    for patient in [&a, &b] {
        patient.set(500);
        becomes(&cluster, &app, patient.port(), "status", "DOWN").await;
    }
    assert_eq!(who_answers(&app).await, BTreeSet::from([a.port(), b.port()]));
    let strict = app.clone().label("WAYMARK_0_PANIC", "false");
    cluster.put(&strict).await;
    assert_eq!(get(strict.address(), "").await.status(), 503);
    b.set(302);
    becomes(&cluster, &strict, b.port(), "status", "UP").await;
    assert_eq!(who_answers(&strict).await, BTreeSet::from([b.port()]));
    cluster.stop().await;
}

#[tokio::test]
async fn a_connect_is_enough_where_nothing_can_be_asked_and_the_label_switches_it_off() {
    let mut cluster = Cluster::start().await;
    let (stays, dies, unasked) = (Patient::new().await, Backend::named().await, Patient::new().await);
    let tcp = AppSpec::new("/tcp")
        .label("HAPROXY_0_MODE", "tcp")
        .label(TCP_OPTIONS, FAST)
        .health_check(HealthCheckProtocol::Tcp)
        .instance(stays.port())
        .instance(dies.port);
    let off = app("/off").label("WAYMARK_0_CHECK", "off").instance(unasked.port());
    cluster.put(&off).await;
    cluster.put(&tcp).await;
    becomes(&cluster, &tcp, dies.port, "check_status", "L4OK").await;
    let port = dies.port;
    dies.kill().await;
    becomes(&cluster, &tcp, port, "status", "DOWN").await;
    becomes(&cluster, &tcp, port, "check_status", "L4CON").await;
    becomes(&cluster, &tcp, stays.port(), "status", "UP").await;
    assert_eq!(unasked.n_probes.load(Relaxed), 0);
    becomes(&cluster, &off, unasked.port(), "status", "no check").await;
    cluster.stop().await;
}

#[tokio::test]
async fn https_is_asked_over_tls_whatever_the_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["nobody.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 12];
            if stream.read_exact(&mut request).await.is_ok() && request.starts_with(b"GET /health ") {
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
    });
    let plain = Patient::new().await;
    let mut cluster = Cluster::start().await;
    let app = AppSpec::new("/a")
        .health_check(HealthCheckProtocol::Https)
        .label("HAPROXY_0_BACKEND_HTTP_HEALTHCHECK_OPTIONS", " timeout check 500ms")
        .label(OPTIONS, FAST)
        .instance(port)
        .instance(plain.port());
    cluster.put(&app).await;
    becomes(&cluster, &app, port, "check_status", "L7OK").await;
    becomes(&cluster, &app, port, "check_code", "204").await;
    // It does not speak TLS: it waits for the rest of a request.
    becomes(&cluster, &app, plain.port(), "check_status", "L6TOUT").await;
    becomes(&cluster, &app, plain.port(), "status", "DOWN").await;
    becomes(&cluster, &app, port, "status", "UP").await;
    serving.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn who_has_just_been_started_has_its_grace() {
    let mut cluster = Cluster::start().await;
    let patient = Patient::new().await;
    patient.set(503);
    let mut starting = app("/a").label("WAYMARK_0_REQUIRE", "running").instance(patient.port());
    starting.health = Health::Unknown;
    starting.health_checks[0].grace_period_seconds = Some(60);
    cluster.put(&starting).await;
    // Far more than the two failures that take a server out of use.
    let failures = async {
        while patient.n_probes.load(Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("probes", failures).await;
    becomes(&cluster, &starting, patient.port(), "check_status", "L7STS").await;
    becomes(&cluster, &starting, patient.port(), "status", "UP").await;
    becomes(&cluster, &starting, patient.port(), "chkdown", "0").await;
    // The scheduler has spoken: it is no beginner any more.
    let mut started = starting.clone();
    started.health = Health::Healthy;
    cluster.put(&started).await;
    becomes(&cluster, &started, patient.port(), "status", "DOWN").await;
    patient.set(200);
    becomes(&cluster, &started, patient.port(), "status", "UP").await;
    // Without a grace it counts from the first one on.
    patient.set(503);
    let mut hurried = starting.clone();
    hurried.health_checks[0].grace_period_seconds = Some(0);
    cluster.put(&hurried).await;
    becomes(&cluster, &hurried, patient.port(), "status", "DOWN").await;
    cluster.stop().await;
}

#[tokio::test]
async fn the_port_that_is_asked_is_the_checks_own_or_that_of_another_index() {
    let mut cluster = Cluster::start().await;
    let (serves, judges) = (Patient::new().await, Patient::new().await);
    let mut borrowing = app("/borrowing").label("HAPROXY_0_BACKEND_HEALTHCHECK_PORT_INDEX", "1");
    borrowing = borrowing.instance(serves.port());
    borrowing.other_port = Some(judges.port());
    // A check with a port of its own counts for every port of the app.
    let mut fixed = app("/fixed").instance(serves.port());
    fixed.health_checks[0].port = Some(judges.port());
    fixed.health_checks[0].port_index = None;
    // An index that the app does not have: its own port is asked, and the label is told to be wrong.
    let mut missing = app("/missing").label("HAPROXY_0_BACKEND_HEALTHCHECK_PORT_INDEX", "7");
    missing = missing.instance(serves.port());
    for app in [&borrowing, &fixed, &missing] {
        cluster.put(app).await;
    }
    assert_eq!(cluster.plane.problems().len(), 1, "{:?}", cluster.plane.problems());
    becomes(&cluster, &borrowing, serves.port(), "check_status", "L7OK").await;
    judges.set(500);
    for app in [&borrowing, &fixed] {
        becomes(&cluster, app, serves.port(), "status", "DOWN").await;
    }
    becomes(&cluster, &missing, serves.port(), "status", "UP").await;
    judges.set(200);
    serves.set(500);
    for app in [&borrowing, &fixed] {
        becomes(&cluster, app, serves.port(), "status", "UP").await;
    }
    becomes(&cluster, &missing, serves.port(), "status", "DOWN").await;
    cluster.stop().await;
}
