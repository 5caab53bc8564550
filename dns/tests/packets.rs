//! How packets are treated: malformed and odd ones, sizes and truncation, rotation, TCP in pieces and in bulk, limits,
//! and the end of service. Over real sockets, with bytes as given.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use dns::Config;
use event_watcher::catalog::Protocols;
use harness::{Server, app, framed, instances, port, query, receive, wire_name, with_edns};
use hickory_server::proto::op::Message;

const A: u16 = 1;
const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

fn server() -> Server {
    Server::with(vec![
        instances(port(app("/web"), None, Protocols::TCP, None), 1),
        instances(port(app("/big"), None, Protocols::TCP, None), 100),
    ])
}

fn web() -> Vec<u8> {
    query(0x1234, "web.marathon.mesos", A)
}

fn edited(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    packet[at] = byte;
    packet
}

fn header(rest: &[u8]) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], rest].concat()
}

#[test]
fn bad_packets_are_refused_or_dropped() {
    let server = server();
    let opt = |class: u16| with_edns(web(), class, 0, &[]);
    let class = web().len() - 1;
    let cases: Vec<(&str, Vec<u8>, Option<u8>)> = vec![
        ("empty", vec![], None),
        ("one byte", vec![1], None),
        ("eleven bytes", web()[..11].to_vec(), None),
        ("an answer", edited(web(), 2, 0x81), None),
        ("a malformed answer", edited(header(b""), 2, 0x80), None),
        ("status", edited(web(), 2, 0x10), Some(NOTIMP)),
        ("notify", edited(web(), 2, 0x20), Some(NOTIMP)),
        ("update", edited(web(), 2, 0x28), Some(NOTIMP)),
        ("no question", edited(web(), 5, 0), Some(FORMERR)),
        ("two questions", edited(web(), 5, 2), Some(FORMERR)),
        ("no question where one is announced", header(b""), Some(FORMERR)),
        ("class CHAOS", edited(web(), class, 3), Some(REFUSED)),
        ("class ANY", edited(web(), class, 255), Some(REFUSED)),
        ("name points to itself", header(b"\xc0\x0c\0\x01\0\x01"), Some(FORMERR)),
        ("reserved label type", header(b"\x40a\0\0\x01\0\x01"), Some(FORMERR)),
        ("label beyond the end", header(b"\x3fweb"), Some(FORMERR)),
        ("no root", header(b"\x03web"), Some(FORMERR)),
        ("no class", web()[..web().len() - 2].to_vec(), Some(FORMERR)),
        ("name of 256 bytes", header(&[&[63], &[b'a'; 63][..]].concat().repeat(4)), Some(FORMERR)),
        ("65,535 answers announced", edited(edited(web(), 6, 255), 7, 255), Some(FORMERR)),
        (
            "record beyond the end",
            edited([web(), b"\0\0\x10\0\x01\0\0\0\0\xff\xffx".to_vec()].concat(), 11, 1),
            Some(FORMERR),
        ),
        ("two OPT", with_edns(opt(1232), 1232, 0, &[]), Some(FORMERR)),
        (
            "OPT not at the root",
            edited([web(), b"\x01a\0\0\x29\x04\xd0\0\0\0\0\0\0".to_vec()].concat(), 11, 1),
            Some(FORMERR),
        ),
        ("EDNS option beyond the end", with_edns(web(), 1232, 0, &[0, 10, 0, 9, 1]), Some(FORMERR)),
        ("AXFR", query(0x1234, "mesos", 252), Some(REFUSED)),
        ("IXFR", query(0x1234, "mesos", 251), Some(REFUSED)),
        ("TKEY", query(0x1234, "mesos", 249), Some(NOTIMP)),
        ("type 0", query(0x1234, "mesos", 0), Some(FORMERR)),
        ("type OPT", query(0x1234, "mesos", 41), Some(FORMERR)),
        ("a label with a dot in it", header(b"\x0cweb.marathon\x05mesos\0\0\x01\0\x01"), Some(3)),
        ("a label with NUL in it", header(b"\x04web\0\x08marathon\x05mesos\0\0\x01\0\x01"), Some(3)),
        (
            "a name that its alias makes longer than a name can be",
            query(0x1234, &format!("{a}.{a}.{a}.{}.thisdcos.global", "a".repeat(45), a = "a".repeat(63)), A),
            Some(3),
        ),
        ("an apex inside a label", header(b"\x08ab\x05mesos\0\0\x01\0\x01"), Some(REFUSED)),
        ("a good one with garbage behind it", [web(), vec![0; 400]].concat(), Some(0)),
    ];
    for (what, packet, expect) in cases {
        let reply = server.udp(&packet);
        assert_eq!(reply.as_ref().map(|r| r[3] & 0x0f), expect, "{what}: {reply:x?}");
        if let Some(reply) = reply {
            assert_eq!(reply[..2], packet[..2], "{what}: the id");
            assert_eq!(reply[2] & 0xf8, 0x80 | packet[2] & 0x78, "{what}: QR and opcode");
            Message::from_vec(&reply).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    let dropped = server.plane.statistics().n_dropped;
    assert_eq!((dropped["short"], dropped["response"]), (3, 2));
}

#[test]
fn another_class_is_refused_with_question_and_edns() {
    let packet = edited(web(), web().len() - 1, 3);
    let reply = server().udp(&with_edns(packet.clone(), 1232, 0, &[])).unwrap();
    assert_eq!(reply[12..packet.len()], packet[12..]);
    let message = Message::from_vec(&reply).unwrap();
    assert!(message.answers.is_empty() && message.edns.is_some(), "{message}");
}

#[test]
fn the_question_comes_back_as_it_was_spelled() {
    let reply = server().udp(&query(7, "wEB.maRAthon.MeSoS", A)).unwrap();
    assert_eq!(reply[12..][..20], *wire_name("wEB.maRAthon.MeSoS"));
    assert_eq!(reply[2] & 0x04, 0x04, "authoritative");
}

#[test]
fn edns_is_answered_in_kind() {
    let server = server();
    let good = Message::from_vec(&server.udp(&with_edns(web(), 4096, 0, &[0, 3, 0, 0])).unwrap()).unwrap();
    assert_eq!((good.max_payload(), good.answers.len()), (1232, 1));
    let newer = Message::from_vec(&server.udp(&with_edns(web(), 4096, 1, &[])).unwrap()).unwrap();
    assert_eq!((u16::from(newer.metadata.response_code), newer.version()), (16, 0), "BADVERS");
    assert!(newer.answers.is_empty());
    let plain = Message::from_vec(&server.udp(&web()).unwrap()).unwrap();
    assert!(plain.edns.is_none());
}

#[test]
fn answers_that_do_not_fit_say_so_and_come_whole_over_tcp() {
    let server = server();
    let big = query(1, "big.marathon.mesos", A);
    for (what, packet, limit) in [
        ("no EDNS", big.clone(), 512),
        ("EDNS 0", with_edns(big.clone(), 0, 0, &[]), 512),
        ("EDNS 700", with_edns(big.clone(), 700, 0, &[]), 700),
        // 24 times the query, whatever the client offers.
        ("EDNS 65535", with_edns(big.clone(), 65535, 0, &[]), 24 * (big.len() + 11)),
        (
            "EDNS 65535 in a long query",
            with_edns(big.clone(), 65535, 0, &[&[0, 12, 0, 100][..], &[0; 100]].concat()),
            1232,
        ),
    ] {
        let reply = server.udp(&packet).unwrap();
        assert!(reply.len() <= limit && reply.len() + 16 > limit, "{what}: {} of {limit}", reply.len());
        let message = Message::from_vec(&reply).unwrap();
        assert!(message.metadata.truncation, "{what}");
    }
    let whole = Message::from_vec(&server.tcp(&big)).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    let srv = Message::from_vec(
        &server.udp(&with_edns(query(1, "_web._tcp.marathon.mesos", 33), 512, 0, &[])).unwrap(),
    );
    assert_eq!(srv.unwrap().additionals.len(), 1);
    assert_eq!(server.plane.statistics().n_truncated, 5);
}

#[test]
fn srv_targets_far_into_a_long_message_keep_what_addresses_fit() {
    let app = instances(port(app("/many"), None, Protocols::TCP, None), 600);
    let server = Server::with(vec![app]);
    let message = Message::from_vec(&server.tcp(&query(1, "_many._tcp.marathon.mesos", 33))).unwrap();
    assert_eq!(message.answers.len(), 600);
    assert!(!message.additionals.is_empty() && !message.metadata.truncation);
}

#[test]
fn each_query_begins_with_another_answer() {
    let server = server();
    let first = |_| {
        let reply = server.udp(&query(1, "big.marathon.mesos", A)).unwrap();
        Message::from_vec(&reply).unwrap().answers[0].data.to_string()
    };
    let firsts: BTreeSet<String> = (0..50).map(first).collect();
    assert!(firsts.len() > 10, "{firsts:?}");
}

#[test]
fn tcp_queries_arrive_in_any_pieces() {
    let server = server();
    let mut stream = server.connect();
    for byte in framed(&web()) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(Message::from_vec(&receive(&mut stream).unwrap()).unwrap().answers.len(), 1);

    let many: Vec<u8> = (0..1000).flat_map(|id| framed(&query(id, "web.marathon.mesos", A))).collect();
    let mut writer = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || writer.write_all(&many).unwrap());
    for id in 0..1000_u16 {
        assert_eq!(receive(&mut stream).unwrap()[..2], id.to_be_bytes());
    }
    writer.join().unwrap();

    stream.write_all(&framed(&web())).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(receive(&mut stream).is_some(), "a client that has closed its side is still answered");
    assert!(receive(&mut stream).is_none());
}

#[test]
fn tcp_clients_that_do_not_speak_dns_are_disconnected() {
    let server = server();
    for bytes in [
        &b"\0\0"[..],
        b"\0\x05\x12\x34\x01\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &framed(&[0x12, 0x34, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        assert!(receive(&mut stream).is_none(), "{bytes:?}");
    }
}

#[test]
fn idle_tcp_clients_are_disconnected_and_crowds_make_room() {
    let config = Config { upstreams: Some(vec![]), tcp_idle: Duration::from_millis(50), ..Config::default() };
    let mut server = Server::unsynced(config, None);
    server.apply(vec![]);
    let mut stream = server.connect();
    stream.write_all(&framed(&web())[..5]).unwrap();
    assert!(receive(&mut stream).is_none());

    let config = Config { upstreams: Some(vec![]), n_tcp_connections_per_client: 3, ..Config::default() };
    let mut server = Server::unsynced(config, None);
    server.apply(vec![]);
    let mut streams: Vec<_> = (0..4).map(|_| server.connect()).collect();
    assert!(receive(&mut streams[0]).is_none(), "the one that was idle longest makes room");
    for stream in &mut streams[1..] {
        stream.write_all(&framed(&web())).unwrap();
        assert!(receive(stream).is_some());
    }
    assert_eq!(server.plane.statistics().n_tcp_evicted, 1);
}

#[test]
fn a_server_that_was_told_to_stop_answers_what_it_has_and_ends() {
    // An address that no other test listens on, so that nobody else takes the port.
    let config = Config { listen: vec!["127.0.0.99:0".parse().unwrap()], ..Config::default() };
    let mut server = Server::listening(config, None);
    let mut stream = server.connect();
    stream.write_all(&framed(&web())).unwrap();
    assert!(receive(&mut stream).is_some());
    server.stop();
    assert!(receive(&mut stream).is_none());
    let again = UdpSocket::bind(server.address);
    assert!(again.is_ok() && TcpListener::bind(server.address).is_ok(), "the port is free again");
}

#[test]
fn a_taken_port_is_said_with_a_hint() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = |listen: SocketAddr| {
        let config = Config { listen: vec![listen], ..Config::default() };
        let (_publisher, subscriber) = event_watcher::publish::channel();
        runtime.block_on(dns::start(config, subscriber, None, 2, tokio_util::sync::CancellationToken::new()))
    };
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = start(taken.local_addr().unwrap()).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, format!("cannot serve DNS on {} (UDP)", taken.local_addr().unwrap()));
    assert!(error.hint().contains("--dns-listen"));
    // Another Waymark shares its port among its own workers only.
    let server = server();
    assert!(start(server.address).is_err());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(start(listener.local_addr().unwrap()).unwrap_err().to_string().ends_with("(TCP)"));
}

#[test]
fn a_server_on_all_addresses_answers_from_the_one_that_was_asked() {
    for (listen, asked) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
        let config = Config { listen: vec![listen.parse().unwrap()], ..Config::default() };
        let server = Server::listening(config, None);
        let asked = SocketAddr::new(asked.parse().unwrap(), server.address.port());
        let client = UdpSocket::bind((asked.ip(), 0)).unwrap();
        client.set_read_timeout(Some(harness::DEADLINE)).unwrap();
        client.send_to(&query(1, "localhost", A), asked).unwrap();
        assert_eq!(client.recv_from(&mut [0; 512]).unwrap().1, asked);
    }
}
