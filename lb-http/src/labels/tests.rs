//! Labels in, service out: what is derived, what wins, what a wrong value costs.

use std::collections::BTreeMap;

use event_watcher::catalog::{AppId, HealthCheck, Protocols, ServiceId};

use super::*;
use crate::access::Scheme;

pub(super) fn app(labels: &[(&str, &str)], checks: Vec<HealthCheck>) -> App {
    let id = AppId::new("/a");
    let service = |port_index| Service {
        id: ServiceId { app: id.clone(), port_index },
        name: None,
        service_port: Some(10000 + port_index as u16),
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vec![],
    };
    App {
        services: vec![service(0), service(1)],
        id,
        version: "v".into(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        n_instances_wanted: 0,
        health_checks: checks,
        instances: vec![],
        deployments: vec![],
    }
}

fn check(protocol: HealthCheckProtocol, port_index: usize) -> HealthCheck {
    HealthCheck {
        protocol,
        path: None,
        port_index: Some(port_index),
        port: None,
        grace_period_seconds: None,
        interval_seconds: None,
        timeout_seconds: None,
        max_consecutive_failures: None,
    }
}

fn read_with(
    labels: &[(&str, &str)],
    checks: Vec<HealthCheck>,
    reading: &Reading,
) -> (Option<ServiceLabels>, Vec<String>) {
    let app = app(labels, checks);
    let mut problems = Vec::new();
    let read = read(&app, &app.services[0], reading, &mut problems);
    (read, problems.into_iter().map(|p| p.at).collect())
}

pub(super) fn read_all(labels: &[(&str, &str)]) -> (ServiceLabels, Vec<String>) {
    let (read, problems) = read_with(labels, vec![], &Reading::default());
    (read.unwrap(), problems)
}

fn compat() -> Reading {
    Reading { compat: Compat::MarathonLb, ..Reading::default() }
}

#[test]
fn mode_is_derived_as_marathon_lb_does() {
    use HealthCheckProtocol::{Http, Https, MesosHttp, Tcp};
    const BORROW: (&str, &str) = ("HAPROXY_0_BACKEND_HEALTHCHECK_PORT_INDEX", "1");
    for (labels, checks, expect) in [
        (&[][..], vec![], Mode::Tcp),
        (&[], vec![check(Http, 0)], Mode::Http),
        (&[], vec![check(Http, 1)], Mode::Tcp),
        (&[], vec![check(MesosHttp, 0)], Mode::Tcp),
        (&[], vec![check(Https, 0)], Mode::Tcp),
        (&[], vec![check(Tcp, 0)], Mode::Tcp),
        (&[BORROW], vec![check(MesosHttp, 1)], Mode::Http),
        (&[BORROW], vec![check(Tcp, 0), check(Http, 1)], Mode::Tcp),
        (&[("HAPROXY_0_VHOST", "a.test")], vec![], Mode::Http),
        (&[("HAPROXY_0_MODE", "tcp")], vec![check(Http, 0)], Mode::Tcp),
        (&[("HAPROXY_0_MODE", "HTTP")], vec![], Mode::Http),
        (&[("HAPROXY_0_MODE", "tcp"), ("WAYMARK_MODE", "http")], vec![], Mode::Http),
        (&[("HAPROXY_MODE", "http"), ("HAPROXY_0_MODE", "tcp")], vec![], Mode::Tcp),
        (&[("HAPROXY_1_MODE", "http")], vec![], Mode::Tcp),
    ] {
        let (read, problems) = read_with(labels, checks.clone(), &Reading::default());
        assert_eq!(read.unwrap().mode, expect, "{labels:?} {checks:?}");
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn the_order_of_spellings() {
    let all =
        [("WAYMARK_0_PORT", "1"), ("WAYMARK_PORT", "2"), ("HAPROXY_0_PORT", "3"), ("HAPROXY_PORT", "4")];
    for first in 0..all.len() {
        let (read, problems) = read_all(&all[first..]);
        assert_eq!(read.port, first as u16 + 1);
        assert!(problems.is_empty());
    }
    assert_eq!(read_all(&[]).0.port, 10000);
    assert_eq!(read_with(&[("HAPROXY_PORT", "4")], vec![], &compat()).0.unwrap().port, 10000);
}

#[test]
fn groups_strict_mode_and_enabled_decide_who_is_served() {
    for (labels, groups, unlabelled, compat, expect) in [
        (&[][..], &["*"][..], Unlabelled::Served, Compat::None, true),
        (&[], &["external"], Unlabelled::Served, Compat::None, false),
        (&[], &["*"], Unlabelled::Ignored, Compat::None, false),
        (&[("HAPROXY_0_ENABLED", "true")], &["*"], Unlabelled::Ignored, Compat::None, true),
        (&[("HAPROXY_GROUP", "internal, external")], &["external"], Unlabelled::Served, Compat::None, true),
        (
            &[("HAPROXY_GROUP", "internal, external")],
            &["external"],
            Unlabelled::Served,
            Compat::MarathonLb,
            false,
        ),
        (&[("HAPROXY_GROUP", "a")], &["b", "a"], Unlabelled::Served, Compat::MarathonLb, true),
        (
            &[("HAPROXY_GROUP", "external"), ("HAPROXY_0_GROUP", "internal")],
            &["external"],
            Unlabelled::Served,
            Compat::None,
            false,
        ),
        (&[("HAPROXY_0_ENABLED", "no")], &["*"], Unlabelled::Served, Compat::None, false),
        (&[("HAPROXY_0_ENABLED", "T")], &["*"], Unlabelled::Served, Compat::None, true),
        (&[("HAPROXY_0_ENABLED", "1")], &["*"], Unlabelled::Ignored, Compat::None, true),
        (&[("HAPROXY_0_ENABLED", "1")], &["*"], Unlabelled::Served, Compat::MarathonLb, false),
        (&[("WAYMARK_0_ENABLED", "on")], &["*"], Unlabelled::Ignored, Compat::MarathonLb, true),
    ] {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        let reading = Reading { groups, unlabelled, compat, ..Reading::default() };
        let is_served = read_with(labels, vec![], &reading).0.is_some();
        assert_eq!(is_served, expect, "{labels:?} {reading:?}");
    }
}

#[test]
fn a_wrong_value_is_a_problem_and_the_default_applies() {
    for (key, value) in [
        ("HAPROXY_0_PORT", "http"),
        ("HAPROXY_0_PORT", "0"),
        ("HAPROXY_0_ENABLED", "maybe"),
        ("HAPROXY_0_BALANCE", "fastest"),
        ("HAPROXY_0_MODE", "udp"),
        ("HAPROXY_0_STICKY", "cookie"),
        ("HAPROXY_0_BACKEND_WEIGHT", "heavy"),
        ("HAPROXY_0_VHOST", "<script>"),
        ("HAPROXY_0_PATH", "admin"),
        ("HAPROXY_0_BIND_ADDR", "eth0"),
        ("HAPROXY_0_BACKEND_HEALTHCHECK_PORT_INDEX", "9"),
        ("HAPROXY_0_HTTP_BACKEND_REDIR", "/x"),
        ("HAPROXY_0_HTTP_BACKEND_PROXYPASS_PATH", "/x"),
        ("HAPROXY_0_AUTH", "r:u:h"),
        ("WAYMARK_0_DENY", "everybody"),
        ("WAYMARK_0_REQUIRE", "perfect"),
        ("WAYMARK_0_TIMEOUT_SERVER", "soon"),
        ("WAYMARK_0_SEND_PROXY", "v3"),
    ] {
        let (read, problems) = read_all(&[(key, value)]);
        assert_eq!(read, read_all(&[]).0, "{key}={value}");
        assert_eq!(problems, [format!("labels.{key}")], "{key}={value}");
    }
}

#[test]
fn what_was_to_keep_somebody_out_never_fails_open() {
    const HTTP: (&str, &str) = ("HAPROXY_0_MODE", "http");
    for (key, value) in [
        ("HAPROXY_0_AUTH", "realm:user"),
        ("HAPROXY_0_AUTH", "realm:user:rEK1ecacw.7.c"),
        ("HAPROXY_0_BACKEND_NETWORK_ALLOWED_ACL", "office"),
    ] {
        let (read, problems) = read_all(&[HTTP, (key, value)]);
        assert!(!read.admission.is_open(), "{key}={value}");
        assert!(!problems.is_empty(), "{key}={value}");
    }
}

#[test]
fn hosts_paths_and_weights() {
    for (labels, hosts, paths, weight, n_problems) in [
        (
            &[("HAPROXY_0_VHOST", "A.test, b.test:8080,a.test,[FD00::1]"), ("HAPROXY_0_PATH", "/x -i /Y")][..],
            &["a.test", "b.test:8080", "[fd00::1]"][..],
            &["/x", "-i /Y"][..],
            1,
            0,
        ),
        (&[("HAPROXY_0_VHOST", "a.test")], &["a.test"], &[], 0, 0),
        (&[("HAPROXY_0_VHOST", "*.a.test")], &["*.a.test"], &[], 0, 0),
        (&[("HAPROXY_0_PATH", "/x")], &["*"], &["/x"], -1, 0),
        (&[("HAPROXY_0_PATH", "/x"), ("HAPROXY_0_BACKEND_WEIGHT", "7")], &["*"], &["/x"], 7, 0),
        (&[("HAPROXY_0_VHOST", "<"), ("HAPROXY_0_PATH", "/x")], &[], &["/x"], 1, 2),
    ] {
        let (read, problems) = read_all(labels);
        assert_eq!(read.vhosts.iter().map(ToString::to_string).collect::<Vec<_>>(), hosts, "{labels:?}");
        let spelled = |p: &PathPrefix| match p.case {
            Case::Heeded => p.prefix.to_string(),
            Case::Ignored => format!("-i {}", p.prefix),
        };
        assert_eq!(read.paths.iter().map(spelled).collect::<Vec<_>>(), paths, "{labels:?}");
        assert_eq!((read.weight, problems.len()), (weight, n_problems), "{labels:?} {problems:?}");
    }
    let (read, problems) =
        read_with(&[("HAPROXY_0_VHOST", "*.a.test"), ("HAPROXY_0_PATH", "/x")], vec![], &compat());
    assert!(read.unwrap().vhosts.is_empty());
    assert_eq!(problems, ["labels.HAPROXY_0_VHOST", "labels.HAPROXY_0_PATH"]);
}

#[test]
fn checks_are_those_that_marathon_lb_would_have_haproxy_run() {
    use HealthCheckProtocol::{Command, Http, Https, MesosTcp};
    let http = HealthCheck {
        path: Some("/health".into()),
        interval_seconds: Some(5),
        timeout_seconds: Some(2),
        max_consecutive_failures: Some(1),
        ..check(Http, 0)
    };
    let fixed = HealthCheck { port: Some(8080), port_index: None, ..http.clone() };
    let asked = |scheme| CheckKind::Http { scheme, method: "GET".into(), path: "/health".into(), host: None };
    let (asked, asked_over_tls) = (asked(Scheme::Http), asked(Scheme::Https));
    let https = HealthCheck { protocol: Https, ..http.clone() };
    for (checks, labels, expect) in [
        (vec![], &[][..], None),
        (vec![check(Command, 0)], &[], None),
        (vec![http.clone()], &[], Some((asked.clone(), CheckPort::Own, 5, 2, 2))),
        (vec![http.clone()], &[("WAYMARK_0_CHECK", "off")], None),
        (vec![https], &[], Some((asked_over_tls, CheckPort::Own, 5, 2, 2))),
        (vec![fixed], &[], Some((asked.clone(), CheckPort::Fixed(8080), 5, 2, 2))),
        (vec![http.clone()], &[("HAPROXY_0_MODE", "tcp")], Some((CheckKind::Tcp, CheckPort::Own, 5, 2, 2))),
        (vec![check(MesosTcp, 0)], &[], Some((CheckKind::Tcp, CheckPort::Own, 60, 20, 4))),
        (
            vec![HealthCheck { port_index: Some(1), ..http }],
            &[("HAPROXY_0_BACKEND_HEALTHCHECK_PORT_INDEX", "1")],
            Some((asked, CheckPort::Service(1), 5, 2, 2)),
        ),
    ] {
        let (read, problems) = read_with(labels, checks.clone(), &Reading::default());
        let spec =
            read.unwrap().check.map(|c| (c.kind, c.port, c.interval.as_secs(), c.timeout.as_secs(), c.fall));
        assert_eq!(spec, expect, "{checks:?} {labels:?}");
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn what_an_instance_must_be() {
    use Health::{Healthy, Unhealthy, Unknown};
    use InstanceState::{Killing, Running};
    use Readiness::{NotReady, Ready};
    use Rotation::{Draining, In, Out};
    for (state, health, readiness, running, healthy, ready) in [
        (Running, Healthy, Ready, In, In, In),
        (Running, Healthy, NotReady, In, In, Out),
        (Running, Unhealthy, Ready, In, Draining, Draining),
        (Running, Unknown, Ready, In, Out, Out),
        (Running, Unknown, NotReady, In, Out, Out),
        (Killing, Healthy, Ready, Draining, Draining, Draining),
    ] {
        let instance = Instance {
            id: event_watcher::catalog::InstanceId::new("i"),
            host: "h".into(),
            host_address: None,
            agent: None,
            version: "v".into(),
            state,
            health,
            readiness,
            started_at: None,
            addresses: vec![],
            endpoints: vec![],
        };
        let of = |require: Require| require.rotation(&instance);
        assert_eq!(
            [of(Require::Running), of(Require::Healthy), of(Require::Ready)],
            [running, healthy, ready],
            "{state:?} {health:?} {readiness:?}"
        );
    }
}

#[test]
fn names_that_say_nothing_are_told() {
    let labels = [
        ("HAPROXY_0_VHOTS", "a.test"),
        ("HAPROXY_7_VHOST", "a.test"),
        ("HAPROXY_0_DEPLOYMENT_GROUP", "g"),
        ("HAPROXY_DEPLOYMENT_GROUP", "g"),
        ("HAPROXY_GROUP", "external"),
        ("OTHER", "x"),
    ];
    let app = app(&labels, vec![]);
    let mut problems = Vec::new();
    vocabulary::check_names(&app, &Reading::default(), &mut problems);
    let told: Vec<_> = problems.iter().map(|p| (p.at.as_str(), p.hint.as_str())).collect();
    assert_eq!(
        told,
        [
            ("labels.HAPROXY_0_DEPLOYMENT_GROUP", "it has no effect"),
            ("labels.HAPROXY_0_VHOTS", "did you mean VHOST? It has no effect"),
            ("labels.HAPROXY_7_VHOST", "it has no effect"),
        ]
    );
    let explained = vocabulary::explain(&app, &Reading::default());
    assert_eq!(explained.len(), 5, "OTHER is nobody's");
    assert_eq!(explained.iter().filter(|e| e.heeded == vocabulary::Heeded::Yes).count(), 2);
}

#[test]
fn a_maximum_comes_from_labels_and_for_requests_or_else_from_the_start() {
    let started_with = Capacity { per_endpoint: NonZeroU32::new(7), queue: 9, ..Capacity::default() };
    let reading = Reading { capacity: started_with, ..Reading::default() };
    let http = ("HAPROXY_0_MODE", "http");
    for (labels, expect, n_problems) in [
        (vec![http], started_with, 0),
        (
            vec![http, ("WAYMARK_MAXCONN_INSTANCE", "2"), ("WAYMARK_0_QUEUE", "0")],
            Capacity { per_endpoint: NonZeroU32::new(2), queue: 0, ..started_with },
            0,
        ),
        (vec![http, ("HAPROXY_0_MAXCONN_INSTANCE", "0")], Capacity { per_endpoint: None, ..started_with }, 0),
        (
            vec![http, ("WAYMARK_0_STICKY_WHEN_FULL", "redispatch"), ("WAYMARK_0_TIMEOUT_QUEUE", "2")],
            Capacity {
                when_full: WhenFull::Redispatch,
                queue_timeout: Duration::from_secs(2),
                ..started_with
            },
            0,
        ),
        (vec![http, ("WAYMARK_0_MAXCONN_INSTANCE", "many")], started_with, 1),
        (
            vec![("WAYMARK_0_MAXCONN_INSTANCE", "3")],
            Capacity { per_endpoint: NonZeroU32::new(3), ..started_with },
            0,
        ),
        (vec![("HAPROXY_0_MODE", "tcp")], Capacity { per_endpoint: None, ..started_with }, 0),
    ] {
        let (read, problems) = read_with(&labels, vec![], &reading);
        assert_eq!((read.unwrap().capacity, problems.len()), (expect, n_problems), "{labels:?}");
    }
}
