//! The stats server over real sockets, with planes that count what the tests say.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use event_watcher::catalog::{
    App, AppId, AppUpdate, Catalog, CatalogConfig, Endpoint, Generation, Health, Instance, InstanceId,
    InstanceState, Problem, Protocol, Protocols, Readiness, Service, ServiceId, VipLabel,
};
use event_watcher::publish::{AppliedMark, Freshness, Publisher, applied, channel};
use futures_util::StreamExt;
use lb_http::stats::{Series, Servers};
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::readiness;

const DEADLINE: Duration = Duration::from_secs(10);

struct Fake {
    applied: Applied,
    samples: Mutex<Vec<EndpointSample>>,
}

impl Plane for Fake {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn problems(&self) -> Arc<[Problem]> {
        [Problem { app: None, at: "x".into(), what: "<b>odd</b>".into(), hint: String::new() }].into()
    }

    fn endpoints(&self, _which: Which, each: &mut dyn FnMut(EndpointSample)) {
        self.samples.lock().unwrap().iter().cloned().for_each(each);
    }

    fn metrics(&self, text: &mut String) {
        text.push_str("waymark_fake 1\n");
    }

    fn totals(&self) -> Vec<(&'static str, u64)> {
        vec![("queries", 7)]
    }
}

struct Page(Arc<Series>);

impl Haproxy for Page {
    fn page(&self, _: Servers) -> String {
        "page".into()
    }
    fn csv(&self, servers: Servers) -> String {
        format!("# pxname,\n{servers:?}\n")
    }
    fn json(&self, _: Servers) -> String {
        "[]".into()
    }
    fn stats_series(&self) -> &Arc<Series> {
        &self.0
    }
    fn vhost_map(&self) -> String {
        String::new()
    }
    fn app_map(&self) -> String {
        String::new()
    }
    fn routes(&self) -> String {
        "{}".into()
    }

    fn explain(&self, url: &url::Url, _app: Option<&str>) -> String {
        url.to_string()
    }
}

struct Bench {
    url: String,
    catalog: Catalog,
    publisher: Publisher,
    mark: AppliedMark,
    plane: Arc<Fake>,
    stop: CancellationToken,
    closed: CancellationToken,
}

impl Bench {
    async fn start() -> Self {
        let (publisher, subscriber) = channel();
        let (mark, applied) = applied();
        let plane = Arc::new(Fake { applied: applied.clone(), samples: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let admin = Admin::start(Sources {
            subscriber,
            planes: vec![(PlaneName::Dns, Arc::clone(&plane) as Arc<dyn Plane>)],
            haproxy: Some(Arc::new(Page(Series::new(1)))),
            signals: super::Signals::default(),
            vips: None,
            applied: readiness::of_all(vec![applied]),
            addresses: Addresses { stats: listener.local_addr().ok(), ..Addresses::default() },
            config: "workers = 0\n".into(),
            watcher: None,
            stopping: stop.clone(),
            closing: closed.clone(),
        });
        tokio::spawn(serve(listener, admin));
        let pools = vec!["127.11.0.0/16".parse().unwrap()];
        let catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: pools });
        Self { url, catalog, publisher, mark, plane, stop, closed }
    }

    fn publish(&mut self, update: AppUpdate) -> Generation {
        self.catalog.replace(update);
        let snapshot = self.catalog.snapshot().unwrap();
        let generation = snapshot.generation;
        self.publisher.publish(snapshot);
        generation
    }

    fn get(&self, path: &str) -> impl Future<Output = reqwest::Response> + use<> {
        let request = client().get(format!("{}{path}", self.url)).timeout(DEADLINE).send();
        async { request.await.unwrap() }
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }
}

fn client() -> reqwest::Client {
    // Another test may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn update(id: &str, instances: &[&str]) -> AppUpdate {
    let id = AppId::new(id);
    let vip = VipLabel::parse("/web:80", "marathon").unwrap().for_protocol(Protocol::Tcp);
    let instance = |name: &&str| {
        Arc::new(Instance {
            id: InstanceId::new(name),
            host: "127.0.0.1".into(),
            host_address: None,
            agent: None,
            version: "v1".into(),
            state: InstanceState::Running,
            health: Health::Healthy,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![],
            endpoints: vec![Endpoint { port_index: 0, address: "127.0.0.1:31000".parse().unwrap() }],
        })
    };
    let app = App {
        id: id.clone(),
        version: "v1".into(),
        labels: BTreeMap::new(),
        n_instances_wanted: instances.len() as u32,
        services: vec![Service {
            id: ServiceId { app: id, port_index: 0 },
            name: None,
            service_port: Some(10000),
            protocols: Protocols::TCP,
            labels: BTreeMap::new(),
            vips: vec![vip],
        }],
        health_checks: vec![],
        instances: instances.iter().map(instance).collect(),
        deployments: vec![],
    };
    AppUpdate { app, problems: vec![] }
}

#[tokio::test]
async fn readiness_follows_the_planes_and_ends_with_the_process() {
    let mut bench = Bench::start().await;
    assert_eq!(bench.get("/livez").await.status(), 200);
    assert_eq!(bench.get("/readyz").await.status(), 503);
    let generation = bench.publish(update("/web", &["i1"]));
    assert_eq!(bench.get("/readyz").await.status(), 503, "published is not applied");
    let waiting = tokio::spawn(bench.get("/api/status?after=0&wait=10s"));
    bench.mark.set(generation);
    let status: Value = waiting.await.unwrap().json().await.unwrap();
    assert_eq!(status["applied"], 1);
    assert_eq!(status["ready"], true);
    assert_eq!(bench.get("/readyz").await.status(), 200);
    bench.stop.cancel();
    assert_eq!(bench.get("/readyz").await.status(), 503, "not ready while it drains");
    assert_eq!(bench.get("/livez").await.status(), 200);
    bench.closed.cancel();
    assert!(client().get(&bench.url).timeout(DEADLINE).send().await.is_err(), "nothing is accepted any more");
}

#[tokio::test]
async fn listings_join_the_snapshot_and_the_counters() {
    let mut bench = Bench::start().await;
    let sample = |vip| EndpointSample {
        instance: InstanceId::new("i1"),
        address: "127.0.0.1:31000".parse().unwrap(),
        vip,
        n_in_flight: 2,
        n_total: 40,
        n_failures: 1,
        bytes_in: 0,
        bytes_out: 0,
        latency: Some(Duration::from_micros(1500)),
        ejected: false,
    };
    let vip = VipLabel::parse("/web:80", "marathon").unwrap().for_protocol(Protocol::Tcp);
    *bench.plane.samples.lock().unwrap() = vec![sample(None), sample(Some(vip))];
    bench.publish(update("/web", &["i1"]));
    bench.publish(update("/other", &[]));

    let apps = bench.json("/api/apps?id=web").await;
    assert_eq!(apps["generation"], 2);
    assert_eq!(apps["apps"].as_array().unwrap().len(), 1);
    let endpoint = &apps["apps"][0]["instances"][0]["endpoints"][0];
    assert_eq!(endpoint["http"]["n_total"], 40);
    assert_eq!(endpoint["http"]["latency_ms"], 1.5);
    assert_eq!(endpoint["vip"]["n_in_flight"], 2);
    assert_eq!(bench.json("/api/apps").await["apps"].as_array().unwrap().len(), 2);

    let vips = bench.json("/api/vips").await;
    assert_eq!(vips["vips"][0]["dns"], "web.marathon.l4lb.thisdcos.directory");
    assert_eq!(vips["vips"][0]["backends"][0]["n_connections"], 40);
    assert_eq!(vips["vips"][0]["apps"], serde_json::json!(["/other", "/web"]));
}

#[tokio::test]
async fn the_page_is_whole_without_scripts_and_escapes_everything() {
    let mut bench = Bench::start().await;
    bench.publish(update("/<script>alert(1)</script>", &["<img src=x>"]));
    let response = bench.get("/").await;
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let html = response.text().await.unwrap();
    for hostile in ["<script>alert", "<img src=x", "<b>odd"] {
        assert!(!html.contains(hostile), "{hostile} is in the page");
    }
    for there in ["127.0.0.1:31000", "web.marathon.l4lb.thisdcos.directory", "queries", "odd"] {
        assert!(html.contains(there), "{there} is not in the page");
    }
    for path in ["/page.js", "/page.css", "/favicon.svg"] {
        assert_eq!(bench.get(path).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn every_path_answers_what_it_should() {
    let bench = Bench::start().await;
    for (path, status, body) in [
        ("/haproxy?stats", 200, "page"),
        ("/haproxy?stats;csv", 200, "# pxname,\nAll"),
        ("/haproxy?stats;up;csv", 200, "# pxname,\nUp"),
        ("/haproxy?stats;json", 200, "[]"),
        ("/haproxy?stats;norefresh", 200, "page"),
        ("/haproxy", 404, "no such page"),
        ("/_haproxy_health_check", 200, "Service ready."),
        ("/_haproxy_getpids", 200, ""),
        ("/_haproxy_getconfig", 200, "workers = 0"),
        ("/_mlb_signal/hup", 405, "use POST"),
        ("/api/routes/explain?url=http://a.test/", 200, "http://a.test/"),
        ("/api/routes/explain?url=nowhere", 400, "no URL"),
        ("/api/routes", 200, "{}"),
        ("/api/status?after=x", 400, "generation"),
        ("/api/status?after=0&wait=soon", 400, "duration"),
        ("/api/status?after=0", 200, "unsynced"),
        ("/metrics", 200, "waymark_fake 1"),
        ("/../etc/passwd", 404, ""),
        ("/nothing", 404, "no such page"),
    ] {
        let response = bench.get(path).await;
        assert_eq!(response.status(), status, "{path}");
        assert!(response.text().await.unwrap().contains(body), "{path}");
    }
    let request = |method, host: &str| {
        client().request(method, &bench.url).header("host", host).timeout(DEADLINE).send()
    };
    let posted = request(reqwest::Method::POST, "localhost").await.unwrap();
    assert_eq!((posted.status().as_u16(), &posted.headers()["allow"]), (405, &"GET, HEAD".parse().unwrap()));
    assert_eq!(request(reqwest::Method::GET, "evil.example").await.unwrap().status(), 421);
    let head = request(reqwest::Method::HEAD, "localhost").await.unwrap();
    assert!(head.status() == 200 && head.text().await.unwrap().is_empty());
}

#[tokio::test]
async fn changes_and_sections_are_streamed() {
    let mut bench = Bench::start().await;
    bench.publisher.set_freshness(Freshness::Live);
    let mut stream = bench.get("/api/events?page").await.bytes_stream();
    let mut seen = String::new();
    let mut published = false;
    let all = [
        "event: page",
        "/web is new",
        "i1 at 127.0.0.1:31000 is running, healthy: in rotation",
        "VIP web.marathon:80",
    ];
    while !all.iter().all(|part| seen.contains(part)) {
        let chunk = tokio::time::timeout(DEADLINE, stream.next()).await.expect("an event").unwrap().unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk));
        if !published && seen.contains("event: page") {
            bench.publish(update("/web", &["i1"]));
            published = true;
        }
    }
    bench.closed.cancel();
    while let Some(chunk) = tokio::time::timeout(DEADLINE, stream.next()).await.expect("the end") {
        assert!(chunk.is_ok(), "the stream ends in order");
    }
}
