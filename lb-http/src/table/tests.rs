//! Compiling: names, conflicts, what survives a change.

use std::time::Instant;

use event_watcher::catalog::*;

use super::*;
use crate::labels::{Compat, Reading};
use crate::names;

mod incremental;

fn instance(id: &str, port: u16, state: InstanceState, health: Health) -> Arc<Instance> {
    Arc::new(Instance {
        id: InstanceId::new(id),
        host: "127.0.0.1".into(),
        host_address: None,
        agent: None,
        version: "v".into(),
        state,
        health,
        readiness: Readiness::Unchecked,
        started_at: None,
        addresses: vec![],
        endpoints: vec![Endpoint { port_index: 0, address: ([127, 0, 0, 1], port).into() }],
    })
}

fn running(id: &str, port: u16) -> Arc<Instance> {
    instance(id, port, InstanceState::Running, Health::Unchecked)
}

fn app(
    id: &str,
    version: &str,
    port: u16,
    labels: &[(&str, &str)],
    instances: Vec<Arc<Instance>>,
) -> Arc<App> {
    let id = AppId::new(id);
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: None,
        service_port: Some(port),
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vec![],
    };
    let labels = [("HAPROXY_0_MODE", "http")].iter().chain(labels);
    Arc::new(App {
        id,
        version: version.into(),
        labels: labels.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        n_instances_wanted: instances.len() as u32,
        services: vec![service],
        health_checks: vec![],
        instances,
        deployments: vec![],
    })
}

struct Compiled {
    compiler: Compiler,
    generation: u64,
}

impl Compiled {
    fn new() -> Self {
        Self { compiler: Compiler::new(Reading::default(), 1), generation: 0 }
    }

    fn table(&mut self, apps: &[Arc<App>]) -> Table {
        self.generation += 1;
        let snapshot = Snapshot {
            generation: Generation(self.generation),
            apps: apps.iter().map(|a| (a.id.clone(), Arc::clone(a))).collect(),
            ..Snapshot::default()
        };
        self.compiler.compile(&snapshot, Instant::now())
    }
}

fn host<'a>(table: &'a Table, host: &str, path: &str) -> Option<&'a str> {
    table.routes.of_host(host, path).map(|i| &*table.backends[i].name)
}

#[test]
fn an_app_becomes_a_backend_with_marathon_lbs_names() {
    let sticky = [("HAPROXY_0_STICKY", "true")];
    let table =
        Compiled::new().table(&[app("/dcos-101/app2", "v", 10000, &sticky, vec![running("i", 31000)])]);
    let backend = &table.backends[0];
    assert_eq!(&*backend.name, "dcos-101_app2_10000");
    assert_eq!(&*backend.servers[0].name, "127_0_0_1_31000");
    let cookie = backend.servers[0].cookie.as_ref().unwrap();
    assert_eq!(cookie.set.as_bytes(), b"mesosphere_server_id=02ff1d3766; path=/");
    assert_eq!(table.routes.of_port(10000), Some(0));
    assert_eq!(table.routes.of_app("/DCOS-101/app2"), Some(0));
    assert!(table.problems.is_empty());
}

#[test]
fn hosts_and_paths_lead_to_the_right_backend() {
    let table = Compiled::new().table(&[
        app("/site", "v", 1, &[("HAPROXY_0_VHOST", "a.test,b.test")], vec![]),
        app("/foo", "v", 2, &[("HAPROXY_0_VHOST", "a.test"), ("HAPROXY_0_PATH", "/foo")], vec![]),
        app("/bar", "v", 3, &[("HAPROXY_0_VHOST", "a.test"), ("HAPROXY_0_PATH", "/foo/bar")], vec![]),
        app(
            "/first",
            "v",
            4,
            &[
                ("HAPROXY_0_VHOST", "a.test"),
                ("HAPROXY_0_PATH", "/foo/bar/x"),
                ("HAPROXY_0_BACKEND_WEIGHT", "-1"),
            ],
            vec![],
        ),
    ]);
    for (name, path, expect) in [
        ("a.test", "/", Some("site_1")),
        ("A.TEST:9080", "/foo", Some("foo_2")),
        ("a.test", "/foobar", Some("foo_2")),
        ("a.test", "/foo/bar", Some("bar_3")),
        ("a.test", "/foo/bar/x", Some("bar_3")),
        ("b.test", "/foo", Some("site_1")),
        ("c.test", "/", None),
        ("", "/", None),
    ] {
        assert_eq!(host(&table, name, path), expect, "{name} {path}");
    }
    assert!(table.problems.is_empty());
}

#[test]
fn who_has_a_port_keeps_it_when_scaling_makes_its_version_the_younger_one() {
    let mut compiled = Compiled::new();
    let winner =
        |table: &Table| table.backends[table.routes.of_port(10000).unwrap()].service.app.as_str().to_owned();
    let (a, b) = (app("/a", "2024-01-01", 10000, &[], vec![]), app("/b", "2024-02-02", 10000, &[], vec![]));
    assert_eq!(winner(&compiled.table(&[Arc::clone(&a), Arc::clone(&b)])), "/a");
    let scaled = app("/a", "2024-03-03", 10000, &[], vec![]);
    assert_eq!(winner(&compiled.table(&[Arc::clone(&scaled), Arc::clone(&b)])), "/a");
    let other = app("/c", "2023-01-01", 10001, &[], vec![]);
    assert_eq!(winner(&compiled.table(&[scaled, Arc::clone(&b), Arc::clone(&other)])), "/a");
    assert_eq!(winner(&compiled.table(&[b, other])), "/b", "the port is free again");
}

#[test]
fn the_older_version_wins_a_port_and_a_host_and_the_other_is_told() {
    let labels = [("HAPROXY_0_VHOST", "a.test")];
    let table = Compiled::new().table(&[
        app("/a", "2024-02-02", 10000, &labels, vec![]),
        app("/b", "2024-01-01", 10000, &labels, vec![]),
        app("/c", "2024-01-01", 10000, &[("HAPROXY_0_VHOST", "c.test")], vec![]),
    ]);
    let winner = table.routes.of_port(10000).unwrap();
    assert_eq!(table.backends[winner].service.app.as_str(), "/b");
    assert_eq!(host(&table, "a.test", "/"), Some("b_10000"));
    assert_eq!(host(&table, "c.test", "/"), Some("c_10000"), "losing the port costs the port only");
    let problems: Vec<_> =
        table.problems.iter().map(|p| (p.app.as_ref().unwrap().as_str(), &*p.what)).collect();
    assert_eq!(
        problems,
        [
            ("/a", "service port 10000 is taken by /b"),
            ("/a", "virtual host a.test is taken by /b"),
            ("/c", "service port 10000 is taken by /b"),
        ]
    );
}

#[test]
fn what_did_not_change_is_kept() {
    let mut compiled = Compiled::new();
    let (a, b) = (app("/a", "v", 1, &[], vec![running("i", 31000)]), app("/b", "v", 2, &[], vec![]));
    let first = compiled.table(&[Arc::clone(&a), Arc::clone(&b)]);
    first.backends[0].series.of_worker(0).n_requests.add(7);
    first.backends[0].servers[0].series.of_worker(0).n_requests.add(7);

    let scaled = app("/a", "v", 1, &[], vec![running("i", 31000), running("j", 31001)]);
    let second = compiled.table(&[scaled, b]);
    assert!(Arc::ptr_eq(&first.backends[1], &second.backends[1]));
    assert!(Arc::ptr_eq(&first.routes, &second.routes));
    assert_eq!(second.backends[0].series.totals().n_requests, 7);
    assert!(Arc::ptr_eq(&first.backends[0].servers[0].series, &second.backends[0].servers[0].series));

    let third = compiled.table(&[]);
    assert!(third.backends.is_empty() && third.routes.of_port(1).is_none());
    assert!(!second.backends[0].servers[0].endpoint.is_usable(), "endpoints of a removed app are out");
}

#[test]
fn status_and_downtime_follow_the_scheduler() {
    let mut compiled = Compiled::new();
    for (state, health, status, is_up) in [
        (InstanceState::Running, Health::Healthy, ServerStatus::Up, true),
        (InstanceState::Running, Health::Unhealthy, ServerStatus::Unhealthy, false),
        (InstanceState::Running, Health::Healthy, ServerStatus::Up, true),
        (InstanceState::Killing, Health::Healthy, ServerStatus::Draining, false),
    ] {
        let table = compiled.table(&[app("/a", "v", 1, &[], vec![instance("i", 31000, state, health)])]);
        let backend = &table.backends[0];
        assert_eq!(backend.servers[0].status, status);
        assert_eq!((backend.standing.is_up, backend.servers[0].standing.is_up), (is_up, is_up));
    }
    let table = compiled.table(&[app("/a", "v", 1, &[], vec![])]);
    assert_eq!(table.backends[0].standing.n_downs, 2);
}

#[test]
fn a_cookie_names_only_a_usable_server() {
    let draining = instance("d", 31001, InstanceState::Killing, Health::Unchecked);
    let sticky = [("HAPROXY_0_STICKY", "true")];
    let table = Compiled::new().table(&[app("/a", "v", 1, &sticky, vec![running("i", 31000), draining])]);
    let backend = &table.backends[0];
    let cookie = |port: u16| names::cookie_value(&format!("127_0_0_1_{port}"));
    assert_eq!(backend.server_of_cookie(cookie(31000).as_bytes()), Some(0));
    assert_eq!(backend.server_of_cookie(cookie(31001).as_bytes()), None);
    assert_eq!(backend.server_of_cookie(b"0000000000"), None);
}

#[test]
fn a_service_that_is_switched_off_and_on_counts_on() {
    let mut compiled = Compiled::new();
    let on = || app("/a", "v", 1, &[], vec![running("i", 31000)]);
    compiled.table(&[on()]).backends[0].series.of_worker(0).n_requests.add(7);
    let off =
        compiled.table(&[app("/a", "v", 1, &[("HAPROXY_0_ENABLED", "false")], vec![running("i", 31000)])]);
    assert!(off.backends.is_empty());
    assert_eq!(compiled.table(&[on()]).backends[0].series.totals().n_requests, 7);
}

#[test]
fn wildcards_ports_and_paths_without_hosts_are_found_in_order() {
    let path = |path: &'static str| ("HAPROXY_0_PATH", path);
    let vhost = |host: &'static str| ("HAPROXY_0_VHOST", host);
    let apps = [
        app("/exact", "v", 1, &[vhost("a.x.test")], vec![]),
        app("/wild", "v", 2, &[vhost("*.x.test")], vec![]),
        app("/wilder", "v", 3, &[vhost("*.test")], vec![]),
        app("/port", "v", 4, &[vhost("a.x.test:8080")], vec![]),
        app("/acme", "v", 5, &[path("/.well-known"), ("HAPROXY_0_BACKEND_WEIGHT", "9")], vec![]),
        app("/rest", "v", 6, &[path("/")], vec![]),
        app(
            "/expression",
            "v",
            7,
            &[
                vhost("e.example"),
                (
                    "HAPROXY_0_HTTP_FRONTEND_ACL",
                    "acl h hdr_reg(host) ^e[0-9]+\\.example$\nuse_backend {backend} if h",
                ),
            ],
            vec![],
        ),
        app("/below", "v", 8, &[vhost("*.x.test"), path("/deep")], vec![]),
    ];
    let table = Compiled::new().table(&apps);
    assert!(table.problems.is_empty(), "{:?}", table.problems);
    for (name, target, expect) in [
        ("a.x.test", "/", "exact_1"),
        ("A.X.test.", "/", "exact_1"),
        ("a.x.test:80", "/", "exact_1"),
        ("a.x.test:8080", "/", "port_4"),
        ("b.x.test", "/", "wild_2"),
        ("c.b.x.test:80", "/", "wild_2"),
        ("b.x.test", "/deep/er", "below_8"),
        ("a.x.test", "/deep", "below_8"),
        ("x.test", "/", "wilder_3"),
        ("a.x.test", "/.well-known/x", "acme_5"),
        ("other", "/.well-known/x", "acme_5"),
        ("other", "/", "rest_6"),
        ("e12.example", "/", "expression_7"),
        ("e.example", "/", "rest_6"),
    ] {
        assert_eq!(host(&table, name, target), Some(expect), "{name} {target}");
    }
}

#[test]
fn in_marathon_lbs_order_paths_of_one_weight_are_tried_by_app() {
    let labels = |path: &'static str| [("HAPROXY_0_VHOST", "a.test"), ("HAPROXY_0_PATH", path)];
    let apps = [app("/a", "v", 1, &labels("/foo"), vec![]), app("/b", "v", 2, &labels("/foo/bar"), vec![])];
    for (compat, expect) in [(Compat::None, "b_2"), (Compat::MarathonLb, "a_1")] {
        let mut compiled = Compiled::new();
        compiled.compiler = Compiler::new(Reading { compat, ..Reading::default() }, 1);
        assert_eq!(host(&compiled.table(&apps), "a.test", "/foo/bar"), Some(expect), "{compat:?}");
    }
}

#[test]
fn a_deployment_group_is_one_backend_and_its_old_instances_go_out_of_use() {
    let group = ("HAPROXY_DEPLOYMENT_GROUP", "shop");
    let healthy = |id: &str, port| instance(id, port, InstanceState::Running, Health::Healthy);
    let blue =
        app("/shop-blue", "1", 10000, &[group], vec![healthy("blue1", 31000), healthy("blue2", 31001)]);
    let mut compiled = Compiled::new();
    let before = compiled.table(&[Arc::clone(&blue)]);
    assert_eq!(&*before.backends[0].name, "shop_10000");
    before.backends[0].series.of_worker(0).n_requests.add(7);

    let started = ("HAPROXY_DEPLOYMENT_STARTED_AT", "2026-01-01");
    let port = ("HAPROXY_0_PORT", "10000");
    let green = app("/shop-green", "2", 10001, &[group, started, port], vec![healthy("green1", 31002)]);
    let both = compiled.table(&[Arc::clone(&blue), Arc::clone(&green)]);
    let backend = &both.backends[0];
    assert_eq!((both.backends.len(), backend.series.totals().n_requests), (1, 7));
    let statuses: Vec<_> = backend.servers.iter().map(|s| s.status).collect();
    // The new instance can stand in for one of the two.
    assert_eq!(statuses, [ServerStatus::Disabled, ServerStatus::Up, ServerStatus::Up]);
    let after = compiled.table(&[green]);
    assert_eq!((after.backends.len(), after.backends[0].servers.len()), (1, 1));
    assert_eq!(after.backends[0].series.totals().n_requests, 7);
}

#[test]
fn when_nothing_is_healthy_what_runs_is_used() {
    use Health::{Healthy, Unhealthy, Unknown};
    use InstanceState::{Killing, Running};
    for (instances, labels, usable) in [
        (&[(Running, Healthy), (Running, Unhealthy)][..], &[][..], &[true, false][..]),
        (&[(Running, Unhealthy), (Running, Unhealthy)], &[], &[true, true]),
        (&[(Running, Unknown), (Running, Unhealthy)], &[], &[true, false]),
        (&[(Killing, Healthy), (Running, Unhealthy)], &[], &[false, true]),
        (&[(Running, Unhealthy)], &[("WAYMARK_0_PANIC", "false")], &[false]),
        (&[(Running, Unhealthy), (Running, Healthy)], &[("WAYMARK_0_REQUIRE", "running")], &[true, true]),
    ] {
        let instances: Vec<_> = (31000..)
            .zip(instances)
            .map(|(port, (state, health))| instance(&port.to_string(), port, *state, *health))
            .collect();
        let table = Compiled::new().table(&[app("/a", "v", 1, labels, instances.clone())]);
        let of_pool: Vec<_> = table.backends[0].servers.iter().map(|s| s.endpoint.is_usable()).collect();
        assert_eq!(of_pool, usable, "{instances:?} {labels:?}");
    }
}

#[test]
fn instances_with_addresses_of_their_own_need_no_service_port_of_the_schedulers() {
    let with_host = |host: &str| {
        let mut made = running("i", 5432);
        Arc::make_mut(&mut made).host_address = host.parse().ok();
        let mut app = app("/db", "v", 1, &[], vec![made]);
        Arc::make_mut(&mut app).services[0].service_port = None;
        app
    };
    let mut compiled = Compiled::new();
    let table = compiled.table(&[with_host("10.0.0.1")]);
    assert_eq!(&*table.backends[0].name, "db_10099", "Marathon-LB's choice");
    assert_eq!(table.routes.of_port(10099), Some(0));
    // On the host's own address there is a port that the scheduler has chosen for this instance alone.
    assert!(compiled.table(&[with_host("127.0.0.1")]).backends.is_empty());
}
