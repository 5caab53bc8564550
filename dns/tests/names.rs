//! Which names lead where: tables of questions and expected answers for host, bridge and container apps, VIPs, the
//! cluster, and what changes with health and scale. Over real sockets.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::time::{Duration, Instant};

use dns::Config;
use event_watcher::catalog::{Health, InstanceState, Protocols};
use event_watcher::publish::applied;
use harness::{
    A, AAAA, ANY, NS, PTR, SOA, SRV, Server, app, check, instance, instances, port, query, with_state,
};
use hickory_server::proto::op::Message;

const BOTH: Protocols = Protocols { tcp: true, udp: true };

#[test]
fn an_app_on_the_host_network() {
    let app = port(app("/dcos-101/app2"), Some("http"), Protocols::TCP, Some("/dcos-101/app2:10000"));
    let app = instance(app, "test", "10.0.0.1", &["10.0.0.1"], &["10.0.0.1:31001"]);
    let server = Server::with(vec![app]);
    check(
        &server,
        &[
            ("app2-dcos-101.marathon.mesos", A, &["10.0.0.1"]),
            ("APP2-dcos-101.Marathon.MESOS", A, &["10.0.0.1"]),
            ("app2-dcos-101.marathon.mesos", AAAA, &["NODATA"]),
            ("app2-dcos-101.marathon.mesos", ANY, &["10.0.0.1"]),
            ("app2-dcos-101.*.marathon.mesos", A, &["10.0.0.1"]),
            ("app2-dcos-101.marathon.slave.mesos", A, &["10.0.0.1"]),
            ("app2-dcos-101-iffe9-s1.marathon.mesos", A, &["10.0.0.1"]),
            ("app2-dcos-101-iffe9-s1.marathon.slave.mesos", A, &["10.0.0.1"]),
            ("app2.dcos-101.marathon.mesos", A, &["10.0.0.1"]),
            ("dcos-101.marathon.mesos", A, &["NODATA"]),
            (
                "_app2-dcos-101._tcp.marathon.mesos",
                SRV,
                &["0 1 31001 app2-dcos-101-iffe9-s1.marathon.mesos."],
            ),
            ("_app2-dcos-101._udp.marathon.mesos", SRV, &["NXDomain"]),
            (
                "_http._app2-dcos-101._tcp.marathon.mesos",
                SRV,
                &["0 1 31001 app2-dcos-101-iffe9-s1.marathon.mesos."],
            ),
            (
                "_app2-dcos-101._udp.marathon.slave.mesos",
                SRV,
                &["0 1 31001 app2-dcos-101-iffe9-s1.marathon.slave.mesos."],
            ),
            ("_app2-dcos-101._tcp.marathon.mesos", A, &["NODATA"]),
            (
                "_app2-dcos-101._tcp.marathon.mesos.thisdcos.directory",
                SRV,
                &["0 1 31001 app2-dcos-101-iffe9-s1.marathon.mesos.thisdcos.directory."],
            ),
            ("app2-dcos-101.marathon.agentip.dcos.thisdcos.directory", A, &["10.0.0.1"]),
            ("app2-dcos-101.marathon.containerip.dcos.thisdcos.directory", A, &["10.0.0.1"]),
            ("app2-dcos-101.marathon.autoip.dcos.thisdcos.directory", A, &["10.0.0.1"]),
            ("slave.mesos", A, &["10.0.0.1"]),
        ],
    );
}

#[test]
fn apps_on_bridge_and_container_networks() {
    let bridge = port(port(app("/bridge"), None, BOTH, None), Some("admin"), Protocols::TCP, None);
    let bridge = instance(bridge, "test", "10.0.0.1", &["172.17.0.2"], &["10.0.0.1:31001", "10.0.0.1:31002"]);
    let container = port(app("/net/container"), None, Protocols::TCP, None);
    let container =
        instance(container, "test", "10.0.0.2", &["192.168.9.2", "fd00::2"], &["192.168.9.2:8080"]);
    let portless = instance(app("/portless"), "test", "10.0.0.3", &[], &[]);
    let several = port(app("/several"), Some("dns"), Protocols { tcp: false, udp: true }, None);
    let on_both = &["192.168.9.3", "192.168.8.3"];
    let several = instance(several, "test", "10.0.0.4", on_both, &["192.168.9.3:5353"]);
    let mixed = port(port(app("/mixed"), Some("own"), Protocols::TCP, None), None, Protocols::TCP, None);
    let mixed = instance(mixed, "test", "10.0.0.5", &["192.168.9.4"], &["192.168.9.4:80", "10.0.0.5:31003"]);
    let server = Server::with(vec![bridge, container, portless, several, mixed]);
    check(
        &server,
        &[
            ("bridge.marathon.mesos", A, &["10.0.0.1"]),
            ("bridge.marathon.agentip.dcos.thisdcos.directory", A, &["10.0.0.1"]),
            ("bridge.marathon.containerip.dcos.thisdcos.directory", A, &["172.17.0.2"]),
            ("bridge.marathon.autoip.dcos.thisdcos.directory", A, &["10.0.0.1"]),
            (
                "_bridge._tcp.marathon.mesos",
                SRV,
                &["0 1 31001 bridge-iffe9-s1.marathon.mesos.", "0 1 31002 bridge-iffe9-s1.marathon.mesos."],
            ),
            ("_bridge._udp.marathon.mesos", SRV, &["0 1 31001 bridge-iffe9-s1.marathon.mesos."]),
            ("_admin._bridge._tcp.marathon.mesos", SRV, &["0 1 31002 bridge-iffe9-s1.marathon.mesos."]),
            ("container-net.marathon.mesos", A, &["192.168.9.2"]),
            ("container-net.marathon.mesos", AAAA, &["fd00::2"]),
            ("container-net.marathon.slave.mesos", A, &["10.0.0.2"]),
            ("container-net.marathon.agentip.dcos.thisdcos.directory", A, &["10.0.0.2"]),
            ("container-net.marathon.containerip.dcos.thisdcos.directory", AAAA, &["fd00::2"]),
            ("container-net.marathon.autoip.dcos.thisdcos.directory", A, &["192.168.9.2"]),
            ("_container-net._tcp.marathon.mesos", SRV, &["0 1 8080 container-net-iffe9-s1.marathon.mesos."]),
            ("_container-net._tcp.marathon.slave.mesos", SRV, &["NXDomain"]),
            ("portless.marathon.mesos", A, &["10.0.0.3"]),
            ("several.marathon.mesos", A, &["192.168.8.3", "192.168.9.3"]),
            ("several.marathon.autoip.dcos.thisdcos.directory", A, &["192.168.8.3", "192.168.9.3"]),
            ("several.marathon.slave.mesos", A, &["10.0.0.4"]),
            ("_dns._several._udp.marathon.mesos", SRV, &["0 1 5353 several-iffe9-s1.marathon.mesos."]),
            ("_dns._several._tcp.marathon.mesos", SRV, &["NXDomain"]),
            ("mixed.marathon.mesos", A, &["10.0.0.5"]),
            (
                "_mixed._tcp.marathon.mesos",
                SRV,
                &[
                    "0 1 31003 mixed-iffe9-s1.marathon.mesos.",
                    "0 1 80 mixed-iffe9-s1.marathon.containerip.dcos.thisdcos.directory.",
                ],
            ),
            (
                "_own._mixed._tcp.marathon.mesos",
                SRV,
                &["0 1 80 mixed-iffe9-s1.marathon.containerip.dcos.thisdcos.directory."],
            ),
            ("slave.mesos", A, &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]),
        ],
    );
    let (_, _, additionals) = server.ask("_bridge._tcp.marathon.mesos", SRV);
    assert_eq!(additionals, ["10.0.0.1"], "the address of a target that two ports share comes once");
    let (_, _, additionals) = server.ask("_container-net._tcp.marathon.mesos", SRV);
    assert_eq!(additionals, ["192.168.9.2", "fd00::2"]);
    let (_, _, additionals) = server.ask("_own._mixed._tcp.marathon.mesos", SRV);
    assert_eq!(additionals, ["192.168.9.4"]);
}

/// A VIP has an address of each family that its endpoints have.
fn dual_stack(app: event_watcher::catalog::App) -> event_watcher::catalog::App {
    let app = instance(app, "four", "10.0.0.1", &["10.0.0.1"], &["10.0.0.1:31000"]);
    instance(app, "six", "fd00::1", &["fd00::1"], &["[fd00::1]:31000"])
}

#[test]
fn vips_and_their_aliases() {
    let vip = |id, label| port(app(id), None, Protocols::TCP, Some(label));
    let server =
        Server::with(vec![dual_stack(vip("/a", "/web:80")), vip("/b", "web:443"), vip("/c", "api.v1:80")]);
    let (_, web, _) = server.ask("web.marathon.l4lb.thisdcos.directory", A);
    assert!(web[0].starts_with("127.11."), "{web:?}");
    let web: &[&str] = &[&web[0]];
    check(
        &server,
        &[
            ("web.marathon.dclb.thisdcos.directory", A, web),
            ("web.marathon.dclb.thisdcos.global", A, web),
            ("web.marathon.l4lb.thisdcos.global", A, web),
            (
                "_80._tcp.web.marathon.l4lb.thisdcos.directory",
                SRV,
                &["0 1 80 web.marathon.l4lb.thisdcos.directory."],
            ),
            (
                "_443._tcp.web.marathon.dclb.thisdcos.global",
                SRV,
                &["0 1 443 web.marathon.dclb.thisdcos.global."],
            ),
            ("_80._udp.web.marathon.l4lb.thisdcos.directory", SRV, &["NXDomain"]),
            ("_tcp.web.marathon.l4lb.thisdcos.directory", SRV, &["NODATA"]),
            ("v1.marathon.l4lb.thisdcos.directory", A, &["NODATA"]),
            ("marathon.l4lb.thisdcos.directory", A, &["NODATA"]),
            ("other.marathon.l4lb.thisdcos.directory", A, &["NXDomain"]),
        ],
    );
    assert!(server.ask("web.marathon.l4lb.thisdcos.directory", AAAA).1[0].starts_with("fd01:c::"));
    let (_, _, additionals) = server.ask("_80._tcp.web.marathon.l4lb.thisdcos.directory", SRV);
    assert_eq!(additionals.len(), 2, "{additionals:?}");
}

fn soa(server: &Server, name: &str, record_type: u16) -> (String, u32) {
    let message = Message::from_vec(&server.tcp(&query(1, name, record_type))).unwrap();
    let record = message.authorities.first().or(message.answers.first()).expect("a record");
    let hickory_server::proto::rr::RData::SOA(soa) = &record.data else { panic!("{record:?}") };
    (record.name.to_string(), soa.serial)
}

#[test]
fn negative_answers_name_the_zone_as_it_was_asked_for_and_serials_rise() {
    let mut server = Server::with(vec![app("/a")]);
    for (name, expect) in [
        ("nothing.marathon.mesos", "mesos."),
        ("nothing.marathon.mesos.thisdcos.directory", "mesos.thisdcos.directory."),
        ("nothing.l4lb.thisdcos.directory", "l4lb.thisdcos.directory."),
        ("nothing.dclb.thisdcos.global", "dclb.thisdcos.global."),
        ("nothing.thisdcos.global", "thisdcos.global."),
    ] {
        assert_eq!(soa(&server, name, A).0, expect, "{name}");
    }
    let (_, first) = soa(&server, "mesos", SOA);
    server.apply(vec![]);
    let (_, second) = soa(&server, "mesos", SOA);
    assert!(second > first, "{second} after {first}");
}

#[test]
fn only_good_instances_are_answered_and_failing_ones_only_when_there_are_no_others() {
    use Health::{Healthy, Unchecked, Unhealthy};
    use InstanceState::{Killing, Running, Staging, Unreachable};
    let base = || instances(port(app("/web"), None, Protocols::TCP, Some("/web:80")), 2);
    let mut server = Server::with(vec![base()]);
    let (first, second) = ("10.7.0.1", "10.7.0.2");
    for (state, health, expect) in [
        (Running, Healthy, &[first, second][..]),
        (Running, Unhealthy, &[second]),
        (Running, Health::Unknown, &[second]),
        (Killing, Healthy, &[second]),
        (Staging, Unchecked, &[second]),
        (Unreachable, Unchecked, &[first, second]),
    ] {
        server.apply(vec![with_state(base(), 0, state, health)]);
        check(&server, &[("web.marathon.mesos", A, expect)]);
    }
    let both = |state, health| vec![with_state(with_state(base(), 0, state, health), 1, state, health)];
    server.apply(both(Running, Unhealthy));
    check(&server, &[("web.marathon.mesos", A, &[first, second])]);
    assert_eq!(server.ask("_web._tcp.marathon.mesos", SRV).1.len(), 2);
    server.apply(both(Killing, Healthy));
    check(&server, &[("web.marathon.mesos", A, &["NODATA"]), ("_web._tcp.marathon.mesos", SRV, &["NODATA"])]);
}

#[test]
fn names_follow_apps_and_leave_nothing_behind() {
    let web = |n| instances(port(app("/group/web"), None, Protocols::TCP, Some("/web:80")), n);
    let mut server = Server::with(vec![]);
    let empty = server.plane.statistics().n_names;
    server.apply(vec![web(2), instances(app("/group-web"), 1)]);
    check(&server, &[("web-group.marathon.mesos", A, &["10.7.0.1", "10.7.0.2"])]);
    server.apply(vec![web(0)]);
    check(
        &server,
        &[
            ("web-group.marathon.mesos", A, &["NODATA"]),
            ("web.group.marathon.mesos", A, &["NODATA"]),
            ("_web-group._tcp.marathon.mesos", SRV, &["NODATA"]),
            ("group-web.marathon.mesos", A, &["NXDomain"]),
            ("slave.mesos", A, &["NODATA"]),
        ],
    );
    server.apply(vec![]);
    check(
        &server,
        &[
            ("web-group.marathon.mesos", A, &["NXDomain"]),
            ("group.marathon.mesos", A, &["NXDomain"]),
            ("web.marathon.l4lb.thisdcos.directory", A, &["NXDomain"]),
        ],
    );
    assert_eq!(server.plane.statistics().n_names, empty);
}

#[test]
fn two_apps_of_one_name_are_answered_together() {
    let with = |id, ip: &str| instance(app(id), ip, ip, &[], &[]);
    let mut server = Server::with(vec![with("/a/b", "10.0.0.1"), with("/b-a", "10.0.0.2")]);
    check(&server, &[("b-a.marathon.mesos", A, &["10.0.0.1", "10.0.0.2"])]);
    server.apply(vec![with("/b-a", "10.0.0.2")]);
    check(&server, &[("b-a.marathon.mesos", A, &["10.0.0.2"])]);
}

#[test]
fn before_the_first_sync_nothing_is_denied() {
    let mut server = Server::unsynced(Config { upstreams: Some(vec![]), ..Config::default() }, None);
    for name in
        ["web.marathon.mesos", "mesos", "x.l4lb.thisdcos.directory", "x.thisdcos.global", "ready.spartan"]
    {
        check(&server, &[(name, A, &["ServFail"])]);
    }
    check(&server, &[("localhost", A, &["127.0.0.1"])]);
    server.apply(vec![]);
    check(&server, &[("web.marathon.mesos", A, &["NXDomain"])]);
}

#[test]
fn a_vip_name_waits_for_the_vip_and_nothing_else_does() {
    let vip = |id: &str| port(app(id), None, Protocols::TCP, Some(&format!("{id}:80")));
    let (mark, vips_applied) = applied();
    let config = Config { upstreams: Some(vec![]), vip_wait: Duration::from_secs(3600), ..Config::default() };
    let mut server = Server::unsynced(config, Some(vips_applied));
    let first = server.publish(vec![vip("/a")]);
    check(&server, &[("a.marathon.l4lb.thisdcos.directory", A, &["ServFail"])]);
    mark.set(first.generation);
    server.wait_until_applied(&first);
    assert_eq!(server.ask("a.marathon.l4lb.thisdcos.directory", A).1.len(), 1);

    let second = server.publish(vec![vip("/b"), instances(app("/c"), 1)]);
    // What does not depend on the VIP plane is there while it has applied nothing yet.
    let deadline = Instant::now() + harness::DEADLINE;
    while server.ask("c.marathon.mesos", A).1 != ["10.7.0.1"] {
        assert!(Instant::now() < deadline, "the app's name did not come");
    }
    check(
        &server,
        &[
            ("a.marathon.l4lb.thisdcos.directory", A, &["NXDomain"]),
            ("b.marathon.l4lb.thisdcos.directory", A, &["NXDomain"]),
        ],
    );
    mark.set(second.generation);
    server.wait_until_applied(&second);
    assert_eq!(server.ask("b.marathon.l4lb.thisdcos.directory", A).1.len(), 1);
    assert_eq!(server.plane.statistics().n_vip_waits_expired, 0);
}

#[test]
fn a_vip_plane_that_is_stuck_does_not_hold_names_for_ever() {
    let (_mark, vips_applied) = applied();
    let config = Config { upstreams: Some(vec![]), vip_wait: Duration::from_millis(1), ..Config::default() };
    let mut server = Server::unsynced(config, Some(vips_applied));
    server.apply(vec![port(app("/a"), None, Protocols::TCP, Some("/a:80"))]);
    assert_eq!(server.ask("a.marathon.l4lb.thisdcos.directory", A).1.len(), 1);
    assert_eq!(server.plane.statistics().n_vip_waits_expired, 1);
}

#[test]
fn vips_have_names_for_their_addresses() {
    let config = Config {
        upstreams: Some(vec![]),
        vip_pools: vec!["127.11.0.0/16".parse().unwrap(), "fd01:c::/64".parse().unwrap()],
        ..Config::default()
    };
    let mut server = Server::unsynced(config, None);
    server.apply(vec![dual_stack(port(app("/a"), None, Protocols::TCP, Some("/web:80")))]);
    for (record_type, zone) in [(A, "in-addr.arpa"), (AAAA, "ip6.arpa")] {
        let (_, addresses, _) = server.ask("web.marathon.l4lb.thisdcos.directory", record_type);
        let labels: Vec<String> = match addresses[0].parse().unwrap() {
            std::net::IpAddr::V4(ip) => ip.octets().iter().rev().map(ToString::to_string).collect(),
            std::net::IpAddr::V6(ip) => {
                let nibbles = ip.octets().into_iter().rev().flat_map(|octet| [octet & 0xf, octet >> 4]);
                nibbles.map(|nibble| format!("{nibble:x}")).collect()
            }
        };
        let reverse = format!("{}.{zone}", labels.join("."));
        check(
            &server,
            &[(&reverse, PTR, &["web.marathon.l4lb.thisdcos.directory."]), (&reverse, A, &["NODATA"])],
        );
    }
    check(
        &server,
        &[
            ("11.127.in-addr.arpa", NS, &["ns.spartan."]),
            ("250.250.11.127.in-addr.arpa", PTR, &["NXDomain"]),
            ("1.1.12.127.in-addr.arpa", PTR, &["Refused"]),
        ],
    );
    server.apply(vec![app("/a")]);
    check(&server, &[("11.127.in-addr.arpa", PTR, &["NODATA"])]);
    let (_, gone, _) = server.ask("web.marathon.l4lb.thisdcos.directory", A);
    assert!(gone.is_empty());
}
