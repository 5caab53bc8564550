//! The userspace plane from outside: real sockets on loopback addresses, snapshots as the watcher publishes them.
//!
//! It does not measure anything; that is the benchmark's.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use event_watcher::catalog::{
    App, AppId, AppUpdate, Catalog, CatalogConfig, Endpoint, Health, Instance, InstanceId, InstanceState,
    Protocol, Protocols, Readiness, Service, ServiceId, VipKey, VipName, VipTarget,
};
use event_watcher::publish::{Publisher, channel};
use l4_vip::{Config, Plane, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// A plane with its workers on threads of their own, fed by a catalog.
struct Rig {
    catalog: Catalog,
    publisher: Publisher,
    plane: Plane,
    cancel: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

impl Rig {
    fn start(n_workers: usize, config: Config) -> Self {
        let (publisher, subscriber) = channel();
        let cancel = CancellationToken::new();
        let pool = "127.11.0.0/16".parse().unwrap();
        let catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: vec![pool] });
        let config = Config { pools: vec![pool], ..config };
        let (plane, workers) = start(config, subscriber, n_workers, cancel.clone());
        let workers = workers
            .into_iter()
            .map(|worker| {
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    tokio::task::LocalSet::new().block_on(&runtime, worker.run());
                })
            })
            .collect();
        Self { catalog, publisher, plane, cancel, workers }
    }

    /// Publishes what `change` did and waits until the plane follows it.
    async fn apply(&mut self, change: impl FnOnce(&mut Catalog)) {
        change(&mut self.catalog);
        let snapshot = self.catalog.snapshot().expect("the test changes something");
        let generation = snapshot.generation;
        self.publisher.publish(snapshot);
        soon("apply", self.plane.applied().reached(generation)).await.unwrap();
    }

    /// An app with one VIP on a free port, served at `endpoints`; returns the VIP's address.
    async fn serve(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        let port = free_port().await;
        self.apply(|catalog| catalog.replace(app(name, &[(Protocol::Tcp, port)], endpoints))).await;
        self.address(name, port)
    }

    fn address(&self, name: &str, port: u16) -> SocketAddr {
        let vips = self.plane.vips();
        let vip = vips.iter().find(|v| v.vip == target(name) && v.port == port).unwrap();
        SocketAddr::new(vip.addresses[0], port)
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        let workers = std::mem::take(&mut self.workers);
        let all = tokio::task::spawn_blocking(|| workers.into_iter().for_each(|w| w.join().unwrap()));
        soon("workers end", all).await.unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Tests run beside each other and beside other runs: each VIP has a name of its own, so an address of its own.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn target(name: &str) -> VipTarget {
    VipTarget::Named(VipName::new(&unique(name), "marathon").unwrap())
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn app(name: &str, vips: &[(Protocol, u16)], endpoints: &[SocketAddr]) -> AppUpdate {
    let id = AppId::new(name);
    let service = Service {
        id: ServiceId { app: id.clone(), port_index: 0 },
        name: None,
        service_port: None,
        protocols: Protocols::TCP,
        labels: BTreeMap::new(),
        vips: vips
            .iter()
            .map(|(protocol, port)| VipKey { target: target(name), protocol: *protocol, port: *port })
            .collect(),
    };
    let instances = endpoints
        .iter()
        .map(|address| {
            Arc::new(Instance {
                id: InstanceId::new(&format!("{name}.{address}")),
                host: "localhost".into(),
                host_address: Some(address.ip()),
                agent: None,
                version: "v1".into(),
                state: InstanceState::Running,
                health: Health::Unchecked,
                readiness: Readiness::Unchecked,
                started_at: None,
                addresses: vec![address.ip()],
                endpoints: vec![Endpoint { port_index: 0, address: *address }],
            })
        })
        .collect();
    let app = App {
        id,
        version: "v1".into(),
        labels: BTreeMap::new(),
        n_instances_wanted: endpoints.len() as u32,
        services: vec![service],
        health_checks: vec![],
        instances,
        deployments: vec![],
    };
    AppUpdate { app, problems: vec![] }
}

/// An endpoint whose connections the test drives itself.
async fn endpoint() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An endpoint that answers every connection with its port, and ends it.
async fn naming_endpoint() -> SocketAddr {
    let (listener, address) = endpoint().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(address.port().to_string().as_bytes()).await;
        }
    });
    address
}

/// An address that refuses: bound, so that nobody else takes it, but not listening.
fn refusing_endpoint() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

async fn answer(vip: SocketAddr) -> String {
    let mut text = String::new();
    soon("answer", async { TcpStream::connect(vip).await?.read_to_string(&mut text).await }).await.unwrap();
    text
}

/// A client and the endpoint's side of the same connection, through the VIP.
async fn through(vip: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = soon("connect", TcpStream::connect(vip)).await.unwrap();
    let (server, _) = soon("accept", listener.accept()).await.unwrap();
    (client, server)
}

async fn read_some(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    soon("read", stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read_some(server, 4).await, b"ping");
    server.write_all(b"pong").await.unwrap();
    assert_eq!(read_some(client, 4).await, b"pong");
}

async fn read_to_error(stream: &mut TcpStream) -> ErrorKind {
    let mut rest = Vec::new();
    match soon("end", stream.read_to_end(&mut rest)).await {
        Ok(_) => panic!("a clean end after {} bytes", rest.len()),
        Err(e) => e.kind(),
    }
}

#[tokio::test]
async fn connections_take_turns_over_the_endpoints() {
    let mut rig = Rig::start(1, Config::default());
    let endpoints = [naming_endpoint().await, naming_endpoint().await, naming_endpoint().await];
    let vip = rig.serve("turns", &endpoints).await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(answer(vip).await).or_default() += 1;
    }
    assert_eq!(counts, endpoints.iter().map(|e| (e.port().to_string(), 10)).collect());
    let view = &rig.plane.vips()[0];
    assert_eq!((view.counters.n_connections, view.counters.n_resets), (30, 0));
    assert!(view.counters.bytes_out >= 30 * 4);
    rig.stop().await;
}

#[tokio::test]
async fn every_worker_serves_its_share() {
    let mut rig = Rig::start(3, Config::default());
    let expected = naming_endpoint().await;
    let vip = rig.serve("share", &[expected]).await;
    for _ in 0..60 {
        assert_eq!(answer(vip).await, expected.port().to_string());
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_connect_goes_to_another_endpoint() {
    let mut rig = Rig::start(1, Config::default());
    let good = naming_endpoint().await;
    let (_held, bad) = refusing_endpoint();
    let vip = rig.serve("refused", &[good, bad]).await;
    for _ in 0..20 {
        assert_eq!(answer(vip).await, good.port().to_string());
    }
    let view = &rig.plane.vips()[0];
    assert!(view.counters.n_connect_failures > 0);
    assert_eq!(view.counters.n_unreachable, 0);
    let failed: u64 = view.endpoints.iter().filter(|e| e.address == bad).map(|e| e.n_connect_failures).sum();
    assert_eq!(failed, view.counters.n_connect_failures);
    rig.stop().await;
}

#[tokio::test]
async fn without_an_endpoint_the_client_is_reset() {
    let mut rig = Rig::start(1, Config::default());
    let (_held, bad) = refusing_endpoint();
    for (name, endpoints) in [("none", vec![]), ("dead", vec![bad])] {
        let vip = rig.serve(name, &endpoints).await;
        // The reset may come before the client has looked at its connection for the first time.
        let kind = match soon("connect", TcpStream::connect(vip)).await {
            Ok(mut client) => read_to_error(&mut client).await,
            Err(e) => e.kind(),
        };
        assert_eq!(kind, ErrorKind::ConnectionReset, "{name}");
    }
    let counts: Vec<(u64, u64)> =
        rig.plane.vips().iter().map(|v| (v.counters.n_no_endpoint, v.counters.n_unreachable)).collect();
    assert_eq!(BTreeSet::from_iter(counts), [(0, 1), (1, 0)].into());
    rig.stop().await;
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("half", &[address]).await;
    for client_first in [true, false] {
        let (mut client, mut server) = through(vip, &listener).await;
        exchange(&mut client, &mut server).await;
        let (first, second) =
            if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        first.write_all(b"last").await.unwrap();
        first.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon("end of one direction", second.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"last");
        for piece in [b"more", b"and!"] {
            second.write_all(piece).await.unwrap();
            assert_eq!(read_some(first, 4).await, piece);
        }
        second.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon("end of the other", first.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
    }
    assert_eq!(rig.plane.vips()[0].counters.n_resets, 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("reset", &[address]).await;
    let mut n_resets = 0;
    for half_closed in [false, true] {
        for from_client in [true, false] {
            let (mut client, mut server) = through(vip, &listener).await;
            exchange(&mut client, &mut server).await;
            let (mut from, mut to) = if from_client { (client, server) } else { (server, client) };
            if half_closed {
                // Its FIN has arrived; nothing is read from it any more when the RST comes.
                from.shutdown().await.unwrap();
                let mut nothing = [0; 1];
                assert_eq!(soon("fin", to.read(&mut nothing)).await.unwrap(), 0);
            }
            from.set_zero_linger().unwrap();
            drop(from);
            let kind = if half_closed {
                // After the FIN a reset shows on the next write: the first may still be taken.
                soon("error", async {
                    to.ready(tokio::io::Interest::ERROR).await.unwrap();
                    to.take_error().unwrap().unwrap().kind()
                })
                .await
            } else {
                read_to_error(&mut to).await
            };
            assert!(
                matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "half_closed {half_closed}, from_client {from_client}: {kind:?}"
            );
            n_resets += 1;
        }
    }
    assert_eq!(rig.plane.vips()[0].counters.n_resets, n_resets);
    rig.stop().await;
}

/// Bytes that do not repeat at any buffer's or page's length.
fn stream_of(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[tokio::test]
async fn long_streams_arrive_whole_in_both_directions_at_once() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("long", &[address]).await;
    let (client, server) = through(vip, &listener).await;
    let sent = Arc::new(stream_of(32 * 1024 * 1024));
    let pump = |stream: TcpStream| {
        let sent = Arc::clone(&sent);
        let (mut reader, mut writer) = stream.into_split();
        let write = tokio::spawn(async move {
            // Pieces of changing size, some of them short: copying and splicing take turns.
            let mut rest = &sent[..];
            for size in [1, 700, 60_000, 1_000_000, 3_000_000, 9].iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*size));
                writer.write_all(piece).await.unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            writer.shutdown().await.unwrap();
        });
        async move {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            write.await.unwrap();
            got
        }
    };
    let (at_client, at_server) = soon("streams", async { tokio::join!(pump(client), pump(server)) }).await;
    assert!(at_client == *sent, "{} bytes of {} from the endpoint", at_client.len(), sent.len());
    assert!(at_server == *sent, "{} bytes of {} from the client", at_server.len(), sent.len());
    let counters = rig.plane.vips()[0].counters;
    assert_eq!((counters.bytes_in, counters.bytes_out), (sent.len() as u64, sent.len() as u64));
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("slow", &[address]).await;
    let (client, mut server) = through(vip, &listener).await;
    let sent = stream_of(64 * 1024);
    let mut n_taken = 0;
    // Nobody reads: at some point nothing more is taken, however long one waits.
    while let Ok(ready) = tokio::time::timeout(Duration::from_millis(300), client.writable()).await {
        ready.unwrap();
        match client.try_write(&sent) {
            Ok(n) => n_taken += n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        assert!(n_taken < 256 * 1024 * 1024, "the forwarder buffers without bound");
    }
    drop(client);
    let mut n_got = 0;
    let mut buffer = vec![0; 65_536];
    loop {
        match soon("read", server.read(&mut buffer)).await.unwrap() {
            0 => break,
            n => n_got += n,
        }
    }
    assert_eq!(n_got, n_taken);
    drop(server);
    rig.stop().await;
}

#[tokio::test]
async fn established_connections_outlive_their_endpoint_and_their_vip() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, old) = endpoint().await;
    let new = naming_endpoint().await;
    let vip = rig.serve("drain", &[old]).await;
    let key = [(Protocol::Tcp, vip.port())];
    let (mut client, mut server) = through(vip, &listener).await;
    exchange(&mut client, &mut server).await;

    rig.apply(|catalog| catalog.replace(app("drain", &key, &[old, new]))).await;
    rig.apply(|catalog| {
        catalog.retire(
            &AppId::new("drain"),
            &InstanceId::new(&format!("drain.{old}")),
            InstanceState::Killing,
        );
    })
    .await;
    for _ in 0..4 {
        assert_eq!(answer(vip).await, new.port().to_string(), "draining: nothing new");
    }
    exchange(&mut client, &mut server).await;

    rig.apply(|catalog| catalog.replace(app("drain", &key, &[new]))).await;
    exchange(&mut client, &mut server).await;
    let view = &rig.plane.vips()[0];
    let leaving: Vec<u32> =
        view.endpoints.iter().filter(|e| e.address == old).map(|e| e.n_in_flight).collect();
    assert_eq!(leaving, [1], "shown until its last connection ends");
    assert_eq!(view.counters.n_connections, 5, "counters survive changes");

    rig.apply(|catalog| catalog.remove(&AppId::new("drain"))).await;
    exchange(&mut client, &mut server).await;
    client.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    soon("end", server.read_to_end(&mut nothing)).await.unwrap();
    drop((client, server));
    rig.stop().await;
}

#[tokio::test]
async fn the_listener_goes_with_its_vip_and_stays_without_endpoints() {
    let mut rig = Rig::start(2, Config::default());
    let vip = rig.serve("goes", &[naming_endpoint().await]).await;
    answer(vip).await;
    rig.apply(|catalog| catalog.replace(app("goes", &[(Protocol::Tcp, vip.port())], &[]))).await;
    assert_eq!(rig.plane.listening(), [vip]);
    rig.apply(|catalog| catalog.remove(&AppId::new("goes"))).await;
    assert!(rig.plane.listening().is_empty());
    soon("refused", async {
        // Workers close a moment after the plane told them to.
        while TcpStream::connect(vip).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_a_problem_of_its_own() {
    let mut rig = Rig::start(1, Config::default());
    let good = naming_endpoint().await;
    let first = rig.serve("taken", &[good]).await;
    let ip: IpAddr = first.ip();
    let squatter = TcpListener::bind((ip, 0)).await.unwrap();
    let taken = squatter.local_addr().unwrap();
    let ports = [(Protocol::Tcp, first.port()), (Protocol::Tcp, taken.port()), (Protocol::Udp, 53)];
    rig.apply(|catalog| catalog.replace(app("taken", &ports, &[good]))).await;
    let problems = rig.plane.problems();
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(
        said.iter().any(|p| p.contains(&taken.to_string()) && p.contains("another program")),
        "{said:#?}"
    );
    assert!(said.iter().any(|p| p.contains("UDP")), "{said:#?}");
    assert_eq!(problems[0].app, Some(AppId::new("taken")));
    assert_eq!(rig.plane.listening(), [first]);
    assert_eq!(answer(first).await, good.port().to_string());

    drop(squatter);
    rig.apply(|catalog| catalog.replace(app("another", &[], &[]))).await;
    assert_eq!(rig.plane.problems().len(), 1);
    assert_eq!(answer(taken).await, good.port().to_string());
    rig.stop().await;
}

#[tokio::test]
async fn a_stopping_plane_finishes_what_it_has_and_cuts_what_does_not_end() {
    for (drain_timeout, cut) in [(DEADLINE, false), (Duration::ZERO, true)] {
        let mut rig = Rig::start(1, Config { drain_timeout, ..Config::default() });
        let (listener, address) = endpoint().await;
        let vip = rig.serve("stop", &[address]).await;
        let (mut client, mut server) = through(vip, &listener).await;
        exchange(&mut client, &mut server).await;
        rig.cancel.cancel();
        if cut {
            assert_eq!(read_to_error(&mut client).await, ErrorKind::ConnectionReset);
            assert_eq!(read_to_error(&mut server).await, ErrorKind::ConnectionReset);
        } else {
            soon("refused", async {
                while TcpStream::connect(vip).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            exchange(&mut client, &mut server).await;
            drop((client, server));
        }
        // Connections that came in the last moment wait here for somebody to accept them.
        drop(listener);
        rig.stop().await;
    }
}
