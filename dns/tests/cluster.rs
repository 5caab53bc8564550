//! Names of the cluster as a whole: who leads it, this node, apexes, other spellings of zones, and Mesos-DNS's manners.
//! Over real sockets.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use dns::Config;
use event_watcher::catalog::{Health, InstanceState, Protocols};
use harness::{A, AAAA, ANY, NS, SOA, SRV, Server, app, check, instance, instances, port, query, with_state};
use hickory_server::proto::op::Message;

#[test]
fn apexes_the_cluster_and_other_zones() {
    let config = Config {
        upstreams: Some(vec![]),
        masters: vec!["10.0.0.8:8080".parse().unwrap(), "10.0.0.9:8080".parse().unwrap()],
        ..Config::default()
    };
    let mut server = Server::unsynced(config, None);
    server.apply(vec![]);
    let masters: &[&str] = &["10.0.0.8", "10.0.0.9"];
    check(
        &server,
        &[
            ("leader.mesos", A, masters),
            ("master.mesos", A, masters),
            ("marathon.mesos", A, masters),
            ("master1.mesos", A, &["10.0.0.9"]),
            ("leader.dcos.thisdcos.directory", A, masters),
            ("ready.spartan", A, &["127.0.0.1"]),
            ("localhost", A, &["127.0.0.1"]),
            ("localhost", AAAA, &["::1"]),
            ("mesos", NS, &["ns1.mesos."]),
            ("dcos.thisdcos.directory", NS, &["ns.spartan."]),
            ("ns1.mesos", A, &["127.0.0.1"]),
            ("mesos", A, &["NODATA"]),
            ("leader.mesos", SOA, &["NODATA"]),
            ("x.foo.thisdcos.directory", A, &["NXDomain"]),
            ("x.thisdcos.global", A, &["NXDomain"]),
            ("a.b.localhost", A, &["NXDomain"]),
            ("example.com", A, &["Refused"]),
            ("xmesos", A, &["Refused"]),
            (".", NS, &["Refused"]),
        ],
    );
}

#[test]
fn the_cluster_this_node_and_its_other_names() {
    let config = Config {
        upstreams: Some(vec![]),
        masters: vec!["10.0.0.8:8080".parse().unwrap(), "10.0.0.9:8081".parse().unwrap()],
        node_addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        public_addresses: vec!["203.0.113.1".parse().unwrap()],
        cluster_ids: vec!["yqnd8aj5fr8w9pz6".into()],
        ..Config::default()
    };
    let mut server = Server::unsynced(config, None);
    let web = port(app("/group/web"), None, Protocols::TCP, Some("/web:80"));
    server.apply(vec![instance(web, "test", "10.0.0.2", &["10.0.0.2"], &["10.0.0.2:31000"])]);
    let (_, vip, _) = server.ask("web.marathon.l4lb.thisdcos.directory", A);
    let vip: &[&str] = &[&vip[0]];
    check(
        &server,
        &[
            ("_leader._tcp.mesos", SRV, &["0 1 8080 leader.mesos.", "0 1 8081 leader.mesos."]),
            ("_leader._udp.mesos", SRV, &["0 1 8080 leader.mesos.", "0 1 8081 leader.mesos."]),
            (
                "_framework._tcp.marathon.mesos",
                SRV,
                &["0 1 8080 marathon.mesos.", "0 1 8081 marathon.mesos."],
            ),
            ("_slave._tcp.mesos", SRV, &["0 1 5051 slave.mesos."]),
            ("master0.mesos", A, &["10.0.0.8"]),
            ("leader.mesos.thisdcos.directory", A, &["10.0.0.8", "10.0.0.9"]),
            ("thisnode.thisdcos.directory", A, &["10.0.0.1"]),
            ("thisnode.thisdcos.directory", AAAA, &["fd00::1"]),
            ("public.thisnode.thisdcos.directory", A, &["203.0.113.1"]),
            ("zk-1.zk", A, &["10.0.0.8"]),
            ("zk-2.zk", A, &["10.0.0.9"]),
            ("zk-5.zk", A, &["10.0.0.8"]),
            ("zk-6.zk", A, &["NXDomain"]),
            ("web.group-iffe9-s1.marathon.mesos", A, &["10.0.0.2"]),
            ("web.group-iffe9-s1.marathon.slave.mesos", A, &["10.0.0.2"]),
            ("web-group.marathon.autoip.dcos.yqnd8aj5fr8w9pz6.dcos.directory", A, &["10.0.0.2"]),
            ("web-group.marathon.mesos.yqnd8aj5fr8w9pz6.dcos.directory", A, &["10.0.0.2"]),
            ("web.marathon.l4lb.yqnd8aj5fr8w9pz6.dcos.directory", A, vip),
            ("web.marathon.dclb.yqnd8aj5fr8w9pz6.dcos.directory", A, vip),
            ("web.marathon.l4lb.other.dcos.directory", A, &["Refused"]),
        ],
    );
}

#[test]
fn leaders_are_whom_the_scheduler_names() {
    let config = Config {
        upstreams: Some(vec![]),
        masters: vec!["10.0.0.8:8080".parse().unwrap(), "10.0.0.9:8080".parse().unwrap()],
        ..Config::default()
    };
    let mut server = Server::unsynced(config, None);
    let both = &["10.0.0.8", "10.0.0.9"][..];
    let all = &["10.0.0.5", "10.0.0.8", "10.0.0.9"][..];
    type Expect<'a> = &'a [&'a str];
    // Scheduler, Mesos master; leader.mesos, leader.dcos, marathon.mesos, master.mesos, _leader's and _framework's
    // ports.
    type Case<'a> = (Option<&'a str>, Option<&'a str>, [Expect<'a>; 4], [Expect<'a>; 2]);
    let cases: [Case<'_>; 5] = [
        (None, None, [both, both, both, both], [&["8080"], &["8080"]]),
        (
            Some("10.0.0.9:8080"),
            None,
            [&["10.0.0.9"], &["10.0.0.9"], &["10.0.0.9"], both],
            [&["8080"], &["8080"]],
        ),
        (
            Some("10.0.0.9:8080"),
            Some("10.0.0.5:5050"),
            [&["10.0.0.5"], &["10.0.0.9"], &["10.0.0.9"], all],
            [&["5050"], &["8080"]],
        ),
        (
            Some("10.0.0.5:8443"),
            None,
            [&["10.0.0.5"], &["10.0.0.5"], &["10.0.0.5"], all],
            [&["8443"], &["8443"]],
        ),
        // An address that stands for all leads nowhere.
        (Some("0.0.0.0:8080"), None, [both, both, both, both], [&["8080"], &["8080"]]),
    ];
    for (n, (scheduler, master, addresses, ports)) in (1..).zip(cases) {
        let ([leader, dcos, own, masters], [leader_ports, own_ports]) = (addresses, ports);
        server.led_by(scheduler, master);
        server.apply(vec![instances(app("/web"), n)]);
        check(
            &server,
            &[
                ("leader.mesos", A, leader),
                ("leader.dcos.thisdcos.directory", A, dcos),
                ("marathon.mesos", A, own),
                ("master.mesos", A, masters),
                ("master.dcos.thisdcos.directory", A, masters),
            ],
        );
        for (name, ports, target) in [
            ("_leader._tcp.mesos", leader_ports, "leader.mesos."),
            ("_framework._tcp.marathon.mesos", own_ports, "marathon.mesos."),
        ] {
            let expect: Vec<String> = ports.iter().map(|port| format!("0 1 {port} {target}")).collect();
            assert_eq!(server.ask(name, SRV).1, expect, "{name} of {scheduler:?} {master:?}");
        }
    }
}

#[test]
fn names_carry_the_scheduler_that_runs_the_app() {
    let mut server = Server::with(vec![]);
    let apps = || vec![instances(app("/web"), 1), instances(app("/job"), 2)];
    server.apply(apps());
    check(&server, &[("job.marathon.mesos", A, &["10.7.0.1", "10.7.0.2"])]);
    // Another scheduler takes the app over; nothing else of it changes.
    server.run_by("/job", Some("batch"));
    server.apply(apps());
    check(
        &server,
        &[
            ("web.marathon.mesos", A, &["10.7.0.1"]),
            ("job.batch.mesos", A, &["10.7.0.1", "10.7.0.2"]),
            ("job.batch.autoip.dcos.thisdcos.directory", A, &["10.7.0.1", "10.7.0.2"]),
            ("job.marathon.mesos", A, &["NXDomain"]),
        ],
    );
    server.run_by("/job", None);
    server.apply(apps());
    check(
        &server,
        &[("job.batch.mesos", A, &["NXDomain"]), ("job.marathon.mesos", A, &["10.7.0.1", "10.7.0.2"])],
    );
}

#[test]
fn mesos_dns_peculiarities_are_kept_when_asked_for() {
    let config =
        Config { upstreams: Some(vec![]), compat: dns::config::Compat::MesosDns, ..Config::default() };
    let mut server = Server::unsynced(config, None);
    let web = || instances(port(app("/web"), None, Protocols::TCP, Some("/web:80")), 2);
    server.apply(vec![with_state(web(), 0, InstanceState::Running, Health::Unhealthy), app("/idle")]);
    check(
        &server,
        &[
            // Health is not looked at.
            ("web.marathon.mesos", A, &["10.7.0.1", "10.7.0.2"]),
            ("_none._tcp.marathon.mesos", SRV, &["NODATA"]),
            ("none.marathon.mesos", NS, &["NODATA"]),
            ("none.marathon.mesos", A, &["NXDomain"]),
            ("idle.marathon.mesos", A, &["NXDomain"]),
            // Other zones are not Mesos-DNS's.
            ("marathon.l4lb.thisdcos.directory", A, &["NODATA"]),
        ],
    );
    let message =
        |name: &str, record_type| Message::from_vec(&server.tcp(&query(1, name, record_type))).unwrap();
    assert_eq!(message("web.marathon.mesos", A).answers[0].ttl, 60);
    let soa = message("web.marathon.mesos", SOA);
    assert!(soa.answers.is_empty());
    assert_eq!(soa.authorities[0].name.to_string(), "web.marathon.mesos.");
    let any = message("web.marathon.mesos", ANY);
    assert_eq!((any.answers.len(), any.authorities.len()), (2, 2));
    let mut standard = Server::with(vec![]);
    standard.apply(vec![web()]);
    check(&standard, &[("_none._tcp.marathon.mesos", SRV, &["NXDomain"])]);
}
