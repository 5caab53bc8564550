//! UDP through the userspace plane: who gets a client's datagrams, for how long, and what happens when nobody takes
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use event_watcher::catalog::{AppId, InstanceId, InstanceState, Protocol};
use l4_vip::Config;
use tokio::net::{TcpListener, UdpSocket};

use super::support::*;

/// An endpoint that answers every datagram with its port and what it got.
async fn naming_udp_endpoint() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, client)) = socket.recv_from(&mut buffer).await {
            let said = [format!("{} ", address.port()).as_bytes(), &buffer[..n]].concat();
            let _ = socket.send_to(&said, client).await;
        }
    });
    address
}

/// An address where nobody takes datagrams, until this is dropped: a TCP port says nothing about UDP.
async fn refusing_udp_endpoint() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap()
}

/// A client that takes answers only from the address it asks.
async fn client(vip: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(vip).await.unwrap();
    socket
}

async fn ask(client: &UdpSocket) -> std::io::Result<u16> {
    client.send(b"ping").await?;
    let mut buffer = [0; 64];
    let n = soon("answer", client.recv(&mut buffer)).await?;
    let (port, rest) = std::str::from_utf8(&buffer[..n]).unwrap().split_once(' ').unwrap();
    assert_eq!(rest, "ping");
    Ok(port.parse().unwrap())
}

#[tokio::test]
async fn each_client_keeps_an_endpoint_and_clients_take_turns() {
    let mut rig = Rig::start(2, Config::default());
    let endpoints = [naming_udp_endpoint().await, naming_udp_endpoint().await];
    let vip = rig.serve_udp("turns-udp", &endpoints).await;
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = client(vip).await;
        let first = ask(&client).await.unwrap();
        *counts.entry(first).or_default() += 1;
        for _ in 0..5 {
            assert_eq!(ask(&client).await.unwrap(), first);
        }
        clients.push(client);
    }
    assert_eq!(counts, endpoints.iter().map(|e| (e.port(), 10)).collect());
    let view = &rig.plane.vips()[0];
    assert_eq!((view.counters.n_connections, view.n_in_flight), (20, 20));
    assert_eq!(view.counters.bytes_in, 20 * 6 * 4);
    rig.stop().await;
}

#[tokio::test]
async fn the_longest_datagram_passes_in_both_directions() {
    let mut rig = Rig::start(1, Config::default());
    let vip = rig.serve_udp("longest", &[naming_udp_endpoint().await]).await;
    let client = client(vip).await;
    let sent = vec![7; 65_000];
    client.send(&sent).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let n = soon("answer", client.recv(&mut buffer)).await.unwrap();
    assert!(buffer[..n].ends_with(&sent));
    client.send(b"").await.unwrap();
    let n = soon("answer to nothing", client.recv(&mut buffer)).await.unwrap();
    assert!(buffer[..n].ends_with(b" "), "an empty datagram is one, too");
    rig.stop().await;
}

#[tokio::test]
async fn tcp_and_udp_share_an_address_and_a_port() {
    let mut rig = Rig::start(1, Config::default());
    // Somebody else may have the TCP port of the same number.
    let (udp, listener) = loop {
        let udp = naming_udp_endpoint().await;
        if let Ok(listener) = TcpListener::bind(udp).await {
            break (udp, listener);
        }
    };
    let port = free_udp_port().await;
    rig.apply(|c| c.replace(app("both", &[(Protocol::Tcp, port), (Protocol::Udp, port)], &[udp]))).await;
    let vip = rig.address("both", port);
    assert_eq!(ask(&client(vip).await).await.unwrap(), udp.port());
    let (mut client, mut server) = through(vip, &listener).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(rig.plane.listening().len(), 2);
    drop((client, server));
    rig.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_left_for_the_next() {
    let mut rig = Rig::start(1, Config::default());
    let good = naming_udp_endpoint().await;
    let vip = rig.serve_udp("refused-udp", &[good, refusing_udp_endpoint().await]).await;
    for _ in 0..10 {
        assert_eq!(ask(&client(vip).await).await.unwrap(), good.port());
    }
    assert!(rig.plane.vips()[0].counters.n_connect_failures > 0);
    rig.stop().await;
}

/// Telling takes a raw socket. Without the right to one nothing comes, and nothing else can be seen here.
#[tokio::test]
async fn a_client_is_told_that_nobody_takes_its_datagrams() {
    let raw = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::from(libc::SOCK_RAW),
        Some(socket2::Protocol::ICMPV4),
    );
    if raw.is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI runs this with CAP_NET_RAW");
        eprintln!("SKIPPED: no right to raw sockets");
        return;
    }
    let mut rig = Rig::start(1, Config::default());
    for (name, endpoints) in [("none-udp", vec![]), ("dead-udp", vec![refusing_udp_endpoint().await])] {
        let vip = rig.serve_udp(name, &endpoints).await;
        let client = client(vip).await;
        let error = ask(&client).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{name}");
    }
    // A client may be told a moment before that is counted.
    soon("counted", async {
        while rig.plane.totals().n_datagrams_refused != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // An endpoint that goes away while its client is silent: told when the client speaks next, then the other serves.
    let held = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let vip = rig.serve_udp("dies-udp", &[held.local_addr().unwrap()]).await;
    let client = client(vip).await;
    client.send(b"ping").await.unwrap();
    let mut buffer = [0; 16];
    soon("datagram", held.recv(&mut buffer)).await.unwrap();
    drop(held);
    assert_eq!(ask(&client).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    rig.stop().await;
}

#[tokio::test]
async fn flows_leave_an_endpoint_that_is_gone_and_one_that_drains_when_they_are_silent() {
    let mut rig = Rig::start(1, Config::default());
    let [old, new] = [naming_udp_endpoint().await, naming_udp_endpoint().await];
    let vip = rig.serve_udp("leave", &[old]).await;
    let key = [(Protocol::Udp, vip.port())];
    let [busy, silent] = [client(vip).await, client(vip).await];
    for client in [&busy, &silent] {
        assert_eq!(ask(client).await.unwrap(), old.port());
    }
    rig.apply(|catalog| catalog.replace(app("leave", &key, &[old, new]))).await;
    let instance = InstanceId::new(&format!("leave.{old}"));
    rig.apply(|catalog| catalog.retire(&AppId::new("leave"), &instance, InstanceState::Killing)).await;
    // For longer than a silent flow may stay: who keeps talking stays.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1600) {
        assert_eq!(ask(&busy).await.unwrap(), old.port());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&silent).await.unwrap(), new.port());
    assert_eq!(ask(&busy).await.unwrap(), old.port());

    rig.apply(|catalog| catalog.replace(app("leave", &key, &[new]))).await;
    assert_eq!(ask(&busy).await.unwrap(), new.port(), "at once");
    soon("the flow ends", async {
        while rig.plane.vips()[0].endpoints.len() != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn w38_no_datagram_reaches_a_port_that_another_app_got() {
    let mut rig = Rig::start(1, Config::default());
    let [reused, other] = [naming_udp_endpoint().await, naming_udp_endpoint().await];
    let vip = rig.serve_udp("ended", &[reused]).await;
    let client = client(vip).await;
    assert_eq!(ask(&client).await.unwrap(), reused.port());
    let (next_port, key) = (free_udp_port().await, [(Protocol::Udp, vip.port())]);
    rig.apply(|catalog| {
        catalog.replace(app("ended", &key, &[other]));
        catalog.replace(app("next", &[(Protocol::Udp, next_port)], &[reused]));
    })
    .await;
    for _ in 0..4 {
        assert_eq!(ask(&client).await.unwrap(), other.port(), "the same socket, at once");
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_table_of_flows_is_bounded_and_silent_ones_end() {
    let config = Config { max_udp_flows: 8, udp_idle: Duration::from_millis(300), ..Config::default() };
    let mut rig = Rig::start(1, config);
    let endpoint = naming_udp_endpoint().await;
    let vip = rig.serve_udp("bounded", &[endpoint]).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = client(vip).await;
        ask(&client).await.unwrap();
        clients.push(client);
        assert!(rig.plane.totals().n_in_flight <= 8);
    }
    assert!(rig.plane.totals().n_flows_evicted >= 1);
    for client in &clients {
        assert_eq!(ask(client).await.unwrap(), endpoint.port(), "a flow that made room is made anew");
    }
    soon("silent flows end", async {
        while rig.plane.totals().n_in_flight > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_vip_that_goes_takes_its_flows_along_and_comes_back() {
    let mut rig = Rig::start(2, Config::default());
    let endpoint = naming_udp_endpoint().await;
    let vip = rig.serve_udp("back", &[endpoint]).await;
    let client = client(vip).await;
    ask(&client).await.unwrap();
    rig.apply(|catalog| catalog.remove(&AppId::new("back"))).await;
    assert!(rig.plane.listening().is_empty());
    let ports: BTreeSet<u16> = [vip.port()].into();
    rig.apply(|catalog| {
        catalog.replace(app(
            "back",
            &ports.iter().map(|p| (Protocol::Udp, *p)).collect::<Vec<_>>(),
            &[endpoint],
        ));
    })
    .await;
    soon("served again", async {
        // What meets the closing socket is lost, as datagrams may be.
        loop {
            let _ = client.send(b"ping").await;
            let mut buffer = [0; 64];
            let answer = tokio::time::timeout(Duration::from_millis(50), client.recv(&mut buffer)).await;
            if matches!(answer, Ok(Ok(_))) {
                break;
            }
        }
    })
    .await;
    rig.stop().await;
}
