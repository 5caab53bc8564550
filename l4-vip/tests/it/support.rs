//! A plane on threads of its own, fed by a catalog; endpoints and clients for it.
//!
//! It checks nothing; that is the tests'.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
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
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(10);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// A plane with its workers on threads of their own, fed by a catalog.
pub struct Rig {
    pub catalog: Catalog,
    pub publisher: Publisher,
    pub plane: Plane,
    pub cancel: CancellationToken,
    pub workers: Vec<JoinHandle<()>>,
}

impl Rig {
    pub fn start(n_workers: usize, config: Config) -> Self {
        let (publisher, subscriber) = channel();
        let cancel = CancellationToken::new();
        // The second has the one loopback address of IPv6.
        let pools = ["127.11.0.0/16", "::/125"].map(|pool| pool.parse().unwrap());
        let catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: pools.to_vec() });
        let config = Config { pools: pools.to_vec(), ..config };
        let (plane, workers) = start(config, subscriber, n_workers, cancel.clone());
        let workers = workers
            .into_iter()
            .map(|worker| {
                std::thread::spawn(move || {
                    tokio::runtime::LocalRuntime::new().unwrap().block_on(worker.run());
                })
            })
            .collect();
        Self { catalog, publisher, plane, cancel, workers }
    }

    /// Publishes what `change` did and waits until the plane follows it.
    pub async fn apply(&mut self, change: impl FnOnce(&mut Catalog)) {
        change(&mut self.catalog);
        let snapshot = self.catalog.snapshot().expect("the test changes something");
        let generation = snapshot.generation;
        self.publisher.publish(snapshot);
        soon("apply", self.plane.applied().reached(generation)).await.unwrap();
    }

    /// An app with one VIP on a free port, served at `endpoints`; returns the VIP's address.
    pub async fn serve(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        let port = free_port().await;
        self.apply(|catalog| catalog.replace(app(name, &[(Protocol::Tcp, port)], endpoints))).await;
        self.address(name, port)
    }

    pub fn address(&self, name: &str, port: u16) -> SocketAddr {
        let vips = self.plane.vips();
        let vip = vips.iter().find(|v| v.vip == target(name) && v.port == port).unwrap();
        SocketAddr::new(vip.addresses[0], port)
    }

    /// The same over UDP.
    pub async fn serve_udp(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        let port = free_udp_port().await;
        self.apply(|catalog| catalog.replace(app(name, &[(Protocol::Udp, port)], endpoints))).await;
        self.address(name, port)
    }

    pub async fn stop(mut self) {
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
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

pub fn target(name: &str) -> VipTarget {
    VipTarget::Named(VipName::new(&unique(name), "marathon").unwrap())
}

pub async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

pub async fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// The update with labels on its app.
pub fn labelled(mut update: AppUpdate, labels: &[(&str, &str)]) -> AppUpdate {
    update.app.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    update
}

pub fn app(name: &str, vips: &[(Protocol, u16)], endpoints: &[SocketAddr]) -> AppUpdate {
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
pub async fn endpoint() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An endpoint that answers every connection with its port, and ends it.
pub async fn naming_endpoint() -> SocketAddr {
    let (listener, address) = endpoint().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(address.port().to_string().as_bytes()).await;
        }
    });
    address
}

/// An endpoint that says its port, two bytes, and then keeps the connection until the client ends it.
pub async fn greeting_endpoint() -> SocketAddr {
    let (listener, address) = endpoint().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_u16(address.port()).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    address
}

/// An address that refuses: bound, so that nobody else takes it, but not listening.
pub fn refusing_endpoint() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

pub async fn answer(vip: SocketAddr) -> String {
    let mut text = String::new();
    soon("answer", async { TcpStream::connect(vip).await?.read_to_string(&mut text).await }).await.unwrap();
    text
}

/// Waits until nobody listens any more: workers close a moment after the plane told them to. One connection at a time,
/// because a flood would take the descriptors that the tests beside this one need.
pub async fn until_refused(vip: SocketAddr) {
    soon("refused", async {
        while let Ok(mut accepted) = TcpStream::connect(vip).await {
            let _ = tokio::time::timeout(Duration::from_millis(20), accepted.read(&mut [0])).await;
        }
    })
    .await;
}

/// A client and the endpoint's side of the same connection, through the VIP.
pub async fn through(vip: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = soon("connect", TcpStream::connect(vip)).await.unwrap();
    let (server, _) = soon("accept", listener.accept()).await.unwrap();
    (client, server)
}

pub async fn read_some(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    soon("read", stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

pub async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read_some(server, 4).await, b"ping");
    server.write_all(b"pong").await.unwrap();
    assert_eq!(read_some(client, 4).await, b"pong");
}

pub async fn read_to_error(stream: &mut TcpStream) -> ErrorKind {
    let mut rest = Vec::new();
    match soon("end", stream.read_to_end(&mut rest)).await {
        Ok(_) => panic!("a clean end after {} bytes", rest.len()),
        Err(e) => e.kind(),
    }
}
