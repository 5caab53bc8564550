//! What a client may have: how many answers a second, how large, and what a cookie is worth. Over real sockets.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod harness;

use std::net::UdpSocket;

use dns::Config;
use event_watcher::catalog::Protocols;
use harness::{Server, app, instances, port, query, with_edns};

const A: u16 = 1;

/// A server to which 127.0.0.1 is a stranger.
fn server(config: Config) -> Server {
    let config =
        Config { upstreams: Some(vec![]), local_networks: vec!["192.0.2.0/24".parse().unwrap()], ..config };
    let mut server = Server::unsynced(config, None);
    server.apply(vec![
        instances(port(app("/web"), None, Protocols::TCP, None), 1),
        instances(port(app("/big"), None, Protocols::TCP, None), 100),
    ]);
    server
}

/// A client at another address than the server's own, which is local always.
fn stranger(server: &Server) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.9:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(harness::DEADLINE)).unwrap();
    socket
}

/// Sends packets and counts answers: whole ones, and empty ones with TC. `last` is a name that has not been asked for
/// yet, and so is not limited: its answer comes behind everything else.
fn flood(server: &Server, packets: impl IntoIterator<Item = Vec<u8>>, last: &str) -> (usize, usize) {
    let socket = stranger(server);
    for packet in packets {
        socket.send(&packet).unwrap();
    }
    socket.send(&query(0xfeed, last, A)).unwrap();
    let (mut whole, mut slipped) = (0, 0);
    let mut buffer = [0; 2048];
    loop {
        socket.recv(&mut buffer).unwrap();
        match (buffer[..2] == [0xfe, 0xed], buffer[2] & 0x02) {
            (true, _) => return (whole, slipped),
            (false, 0) => whole += 1,
            (false, _) => slipped += 1,
        }
    }
}

fn times(n: usize, packet: Vec<u8>) -> impl Iterator<Item = Vec<u8>> {
    std::iter::repeat_n(packet, n)
}

#[test]
fn strangers_get_so_many_equal_answers_a_second() {
    let server = server(Config { rate_limit_per_sec: 10, rate_limit_slip: 2, ..Config::default() });
    let (whole, slipped) = flood(&server, times(100, query(1, "web.marathon.mesos", A)), "leader.mesos");
    // The second may end in between.
    assert!((10..=20).contains(&whole), "{whole}");
    assert!((40..=45).contains(&slipped), "{slipped}");
    let statistics = server.plane.statistics();
    assert_eq!(statistics.n_slipped as usize, slipped);
    assert_eq!(statistics.n_dropped["rate_limited"] as usize, 100 - whole - slipped);
    // Random names of one zone are one thing.
    let random = (0..60).map(|i| query(1, &format!("r{i}.mesos"), A));
    let (whole, _) = flood(&server, random, "master.mesos");
    assert!((10..=20).contains(&whole), "{whole}");
}

#[test]
fn local_networks_tcp_and_cookies_are_not_limited() {
    let local = Config { local_networks: dns::Network::private(), ..Config::default() };
    let limited = Config { rate_limit_per_sec: 1, rate_limit_slip: 0, ..local };
    let mut of_cluster = Server::unsynced(Config { upstreams: Some(vec![]), ..limited.clone() }, None);
    of_cluster.apply(vec![instances(app("/web"), 1)]);
    assert_eq!(flood(&of_cluster, times(50, query(1, "web.marathon.mesos", A)), "leader.mesos"), (50, 0));

    let server = server(limited);
    for _ in 0..20 {
        assert_eq!(server.tcp(&query(1, "web.marathon.mesos", A))[7], 1);
    }
    let client_cookie = b"\0\x0a\0\x08abcdefgh";
    let socket = stranger(&server);
    let mut first = [0; 2048];
    socket.send(&with_edns(query(1, "web.marathon.mesos", A), 1232, 0, client_cookie)).unwrap();
    socket.recv(&mut first).unwrap();
    let at = first.windows(8).position(|w| w == b"abcdefgh").unwrap();
    let both = [&b"\0\x0a\0\x18"[..], &first[at..at + 24]].concat();
    let with = |cookie: &[u8]| times(50, with_edns(query(1, "web.marathon.mesos", A), 1232, 0, cookie));
    assert_eq!(flood(&server, with(&both), "leader.mesos"), (50, 0));
    // Whoever is where it says it is may have as large an answer as it likes.
    let big = with_edns(query(1, "big.marathon.mesos", A), 1232, 0, &both);
    socket.send(&big).unwrap();
    assert!(socket.recv(&mut [0; 2048]).unwrap() > 1100);
    let mut forged = both.clone();
    *forged.last_mut().unwrap() ^= 1;
    let (whole, _) = flood(&server, with(&forged), "master.mesos");
    assert!(whole <= 2, "{whole}");
}
