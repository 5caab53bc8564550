//! What the HTTP APIs of Mesos-DNS, dcos-net and DC/OS's networking say of apps on the host's, a bridge's and a
//! container's own network: whole documents, as their clients read them. Over real sockets.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use dns::Config;
use event_watcher::catalog::{App, Protocols};
use harness::{DEADLINE, Server, app, instance, port};
use serde_json::{Value, json};

const UDP: Protocols = Protocols { tcp: false, udp: true };
const BOTH: Protocols = Protocols { tcp: true, udp: true };

/// An app for each network mode, in groups and not, with ports that have names and that have none.
fn apps() -> Vec<App> {
    let host = port(app("/shop/web"), Some("http"), Protocols::TCP, Some("/shop/web:80"));
    let host = port(host, Some("Stats_Port"), UDP, None);
    let host = instance(host, "test", "10.0.0.1", &["10.0.0.1"], &["10.0.0.1:31001", "10.0.0.1:31002"]);
    let host = instance(host, "two", "10.0.0.2", &["10.0.0.2"], &["10.0.0.2:31003", "10.0.0.2:31004"]);
    let bridge = port(port(app("/br"), None, Protocols::TCP, Some("/br:80")), Some("dns"), BOTH, None);
    let bridge = instance(bridge, "test", "10.0.0.1", &["172.17.0.2"], &["10.0.0.1:31005", "10.0.0.1:31006"]);
    let container = port(app("/cn"), Some("api"), Protocols::TCP, Some("/cn:8080"));
    let own = &["192.168.9.2", "fd00::2"];
    let container = instance(container, "test", "10.0.0.2", own, &["192.168.9.2:8080"]);
    vec![host, bridge, container, port(app("/none"), None, Protocols::TCP, Some("/none:1"))]
}

fn server() -> (Server, SocketAddr) {
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        listen: vec![loopback],
        http_listen: Some(loopback),
        upstreams: Some(vec![]),
        ..Config::default()
    };
    let mut server = Server::listening(config, None);
    server.apply(apps());
    let api = server.plane.http_address().unwrap();
    (server, api)
}

/// Head and body of the answer.
fn get(api: SocketAddr, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(api).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    (String::from_utf8(answer[..at].to_vec()).unwrap(), answer.split_off(at + 4))
}

fn document(api: SocketAddr, path: &str) -> Value {
    let (head, body) = get(api, path, "");
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body:?}"))
}

#[test]
fn hosts_and_services_by_network_mode() {
    let (_server, api) = server();
    let host = |name: &str, ips: &[&str]| -> Value {
        ips.iter().map(|ip| json!({"host": format!("{name}.marathon.mesos."), "ip": ip})).collect()
    };
    let nobody = json!([{"host": "", "ip": ""}]);
    for (name, mesos, dcos) in [
        ("web-shop", &["10.0.0.1", "10.0.0.2"][..], &["10.0.0.1", "10.0.0.2"][..]),
        ("web.shop", &["10.0.0.1", "10.0.0.2"], &["10.0.0.1", "10.0.0.2"]),
        ("br", &["10.0.0.1"], &["10.0.0.1"]),
        ("br-iffe9-s1", &["10.0.0.1"], &["10.0.0.1"]),
        ("cn", &["192.168.9.2", "fd00::2"], &["192.168.9.2"]),
        ("none", &[], &[]),
        ("missing", &[], &[]),
    ] {
        let path = format!("/v1/hosts/{name}.marathon.mesos");
        let expect = if mesos.is_empty() { nobody.clone() } else { host(name, mesos) };
        assert_eq!(document(api, &path), expect, "{path}");
        assert_eq!(document(api, &format!("{path}.")), expect, "{path} with its dot");
        assert_eq!(document(api, &format!("/net{path}")), host(name, dcos), "/net{path}");
    }
    assert_eq!(document(api, "/v1/hosts/CN.*.Marathon.mesos"), host("cn", &["192.168.9.2", "fd00::2"]));

    for (name, expect) in [
        (
            "_web-shop._tcp",
            &[("web-shop-iffe9-s1", "10.0.0.1", 31001), ("web-shop-iihn7-s1", "10.0.0.2", 31003)][..],
        ),
        (
            "_http._web-shop._tcp",
            &[("web-shop-iffe9-s1", "10.0.0.1", 31001), ("web-shop-iihn7-s1", "10.0.0.2", 31003)],
        ),
        (
            "_stats-port._web-shop._udp",
            &[("web-shop-iffe9-s1", "10.0.0.1", 31002), ("web-shop-iihn7-s1", "10.0.0.2", 31004)],
        ),
        ("_br._tcp", &[("br-iffe9-s1", "10.0.0.1", 31005), ("br-iffe9-s1", "10.0.0.1", 31006)]),
        ("_br._udp", &[("br-iffe9-s1", "10.0.0.1", 31006)]),
        ("_dns._br._udp", &[("br-iffe9-s1", "10.0.0.1", 31006)]),
        ("_api._cn._tcp", &[("cn-iffe9-s1", "192.168.9.2", 8080)]),
        ("_none._tcp", &[]),
        ("_web-shop._sctp", &[]),
    ] {
        let path = format!("/v1/services/{name}.marathon.mesos");
        let records = |port: fn(u16) -> Value| -> Value {
            let record = |(target, ip, number): &(&str, &str, u16)| {
                json!({
                    "service": format!("{name}.marathon.mesos."),
                    "host": format!("{target}.marathon.mesos."),
                    "ip": ip,
                    "port": port(*number),
                })
            };
            expect.iter().map(record).collect()
        };
        let mesos = match expect.is_empty() {
            true => json!([{"service": "", "host": "", "ip": "", "port": ""}]),
            false => records(|port| port.to_string().into()),
        };
        assert_eq!(document(api, &path), mesos, "{path}");
        assert_eq!(document(api, &format!("/net{path}")), records(Value::from), "/net{path}");
    }
}

/// The records of an instance of `task` (and `raw`, where it is another name), on `agent` and at `own`.
fn records(task: &str, raw: Option<&str>, agent: &str, own: &[&str], services: &[(&str, &str)]) -> Value {
    let mut all: Vec<(String, String, &str)> = Vec::new();
    for name in [Some(task), raw].into_iter().flatten() {
        for name in [name.to_owned(), format!("{name}-iffe9-s1")] {
            all.push((format!("{name}.marathon.slave.mesos."), agent.into(), "A"));
            for ip in own {
                let rtype = if ip.contains(':') { "AAAA" } else { "A" };
                all.push((format!("{name}.marathon.mesos."), (*ip).into(), rtype));
            }
        }
    }
    for (name, target) in services {
        all.push((format!("{name}.mesos."), format!("{task}-iffe9-s1.{target}"), "SRV"));
    }
    all.sort();
    all.into_iter().map(|(name, host, rtype)| json!({"name": name, "host": host, "rtype": rtype})).collect()
}

#[test]
fn enumeration_and_transfer_by_network_mode() {
    let (server, api) = server();
    let document_of_all = document(api, "/v1/enumerate");
    assert_eq!(document_of_all["frameworks"].as_array().map(Vec::len), Some(1));
    assert_eq!(document_of_all["frameworks"][0]["name"], "marathon");
    let tasks = document_of_all["frameworks"][0]["tasks"].as_array().unwrap();
    let task = |name: &str| {
        let of_name = |task: &&Value| task["name"] == name && task["id"] == "test";
        tasks.iter().find(of_name).unwrap_or_else(|| panic!("{name} is not in {document_of_all}"))
    };
    assert_eq!(
        task("web.shop")["records"],
        records(
            "web-shop",
            Some("web.shop"),
            "10.0.0.1",
            &["10.0.0.1"],
            &[
                ("_web-shop._tcp.marathon", "marathon.mesos.:31001"),
                ("_http._web-shop._tcp.marathon", "marathon.mesos.:31001"),
                ("_web-shop._udp.marathon", "marathon.mesos.:31002"),
                ("_stats-port._web-shop._udp.marathon", "marathon.mesos.:31002"),
                ("_web-shop._tcp.marathon.slave", "marathon.slave.mesos.:31001"),
                ("_web-shop._tcp.marathon.slave", "marathon.slave.mesos.:31002"),
                ("_web-shop._udp.marathon.slave", "marathon.slave.mesos.:31001"),
                ("_web-shop._udp.marathon.slave", "marathon.slave.mesos.:31002"),
            ],
        )
    );
    assert_eq!(
        task("br")["records"],
        records(
            "br",
            None,
            "10.0.0.1",
            &["10.0.0.1"],
            &[
                ("_br._tcp.marathon", "marathon.mesos.:31005"),
                ("_br._tcp.marathon", "marathon.mesos.:31006"),
                ("_br._udp.marathon", "marathon.mesos.:31006"),
                ("_dns._br._tcp.marathon", "marathon.mesos.:31006"),
                ("_dns._br._udp.marathon", "marathon.mesos.:31006"),
                ("_br._tcp.marathon.slave", "marathon.slave.mesos.:31005"),
                ("_br._tcp.marathon.slave", "marathon.slave.mesos.:31006"),
                ("_br._udp.marathon.slave", "marathon.slave.mesos.:31005"),
                ("_br._udp.marathon.slave", "marathon.slave.mesos.:31006"),
            ],
        )
    );
    assert_eq!(
        task("cn")["records"],
        records(
            "cn",
            None,
            "10.0.0.2",
            &["192.168.9.2", "fd00::2"],
            &[
                ("_cn._tcp.marathon", "marathon.mesos.:8080"),
                ("_api._cn._tcp.marathon", "marathon.mesos.:8080"),
            ],
        )
    );

    let transfer = document(api, "/v1/axfr");
    let keys: Vec<&String> = transfer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["Domain", "Mname", "Records", "RefreshSeconds", "Rname", "Serial", "TTL"]);
    assert_eq!(transfer["Domain"], "mesos");
    assert_eq!(transfer["Serial"], server.plane.statistics().serial);
    let of_all = &transfer["Records"];
    assert_eq!(of_all["As"]["web-shop.marathon.mesos."], json!(["10.0.0.1", "10.0.0.2"]));
    assert_eq!(of_all["As"]["cn.marathon.mesos."], json!(["192.168.9.2"]));
    assert_eq!(of_all["As"]["cn.marathon.slave.mesos."], json!(["10.0.0.2"]));
    assert_eq!(of_all["AAAAs"]["cn.marathon.mesos."], json!(["fd00::2"]));
    assert_eq!(of_all["SRVs"]["_dns._br._udp.marathon.mesos."], json!(["br-iffe9-s1.marathon.mesos.:31006"]));
    assert_eq!(of_all["As"].get("none.marathon.mesos."), None);

    let everything = document(api, "/net/v1/records");
    let has = |name: &str, host: &str, rtype: &str| {
        let record = json!({"name": name, "host": host, "rtype": rtype});
        assert!(everything.as_array().unwrap().contains(&record), "{record}");
    };
    has("br.marathon.containerip.dcos.thisdcos.directory.", "172.17.0.2", "A");
    has("cn.marathon.autoip.dcos.thisdcos.directory.", "fd00::2", "AAAA");
    has(
        "_8080._tcp.cn.marathon.l4lb.thisdcos.directory.",
        "cn.marathon.l4lb.thisdcos.directory.:8080",
        "SRV",
    );
}

#[test]
fn vips_by_network_mode() {
    let (_server, api) = server();
    let vip = |name: &str, backends: &[(&str, u16)]| {
        let backend: Vec<Value> = backends.iter().map(|(ip, port)| json!({"ip": ip, "port": port})).collect();
        let vip = name.replace(':', ".marathon.l4lb.thisdcos.directory:");
        json!({"vip": vip, "protocol": "tcp", "backend": backend})
    };
    let expect = json!([
        vip("br:80", &[("10.0.0.1", 31005)]),
        vip("cn:8080", &[("192.168.9.2", 8080)]),
        vip("none:1", &[]),
        vip("shopweb:80", &[("10.0.0.1", 31001), ("10.0.0.2", 31003)]),
    ]);
    assert_eq!(document(api, "/net/v1/vips"), expect);
    let (head, _) = get(api, "/net/v1/vips", "");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (head, body) = get(api, "/net/v1/vips", &format!("If-None-Match: {tag}\r\n"));
    assert!(head.starts_with("HTTP/1.1 304") && body.is_empty(), "{head}");

    let listed = document(api, "/networking/api/v1/vips");
    let named: Vec<_> =
        listed["array"].as_array().unwrap().iter().map(|v| (&v["name"], &v["port"])).collect();
    let text = |name: &str, port: &str| (json!(name), json!(port));
    let expect = [
        text("br.marathon", "80"),
        text("cn.marathon", "8080"),
        text("none.marathon", "1"),
        text("shopweb.marathon", "80"),
    ];
    assert_eq!(named, expect.iter().map(|(name, port)| (name, port)).collect::<Vec<_>>());
}
