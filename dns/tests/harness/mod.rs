//! Apps to make snapshots of, a server on a free port, and clients that send bytes as given.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dns::{Config, Plane};
use event_watcher::catalog::{
    App, AppId, AppUpdate, Catalog, CatalogConfig, Endpoint, Health, Instance, InstanceId, InstanceState,
    Leaders, Protocols, Readiness, Service, ServiceId, Snapshot, VipLabel,
};
use event_watcher::publish::{Applied, Publisher, channel};
use hickory_server::proto::op::Message;
use hickory_server::proto::rr::RData;
use tokio::runtime::LocalRuntime;
use tokio_util::sync::CancellationToken;

/// Everything a test waits for happens within this.
pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const ANY: u16 = 255;
pub const DEADLINE: Duration = Duration::from_secs(10);

pub fn app(id: &str) -> App {
    App {
        id: AppId::new(id),
        version: "v1".into(),
        labels: BTreeMap::new(),
        n_instances_wanted: 1,
        services: vec![],
        health_checks: vec![],
        instances: vec![],
        deployments: vec![],
    }
}

/// Adds a port with a VIP (or none) to an app.
pub fn port(mut app: App, name: Option<&str>, protocols: Protocols, vip: Option<&str>) -> App {
    use event_watcher::catalog::Protocol;
    let label = vip.map(|vip| VipLabel::parse(vip, "marathon").unwrap());
    app.services.push(Service {
        id: ServiceId { app: app.id.clone(), port_index: app.services.len() },
        name: name.map(Into::into),
        service_port: None,
        protocols,
        labels: BTreeMap::new(),
        vips: label.map(|label| label.for_protocol(Protocol::Tcp)).into_iter().collect(),
    });
    app
}

/// Adds an instance: its id, its agent, its own addresses, and the address of each port in order.
pub fn instance(mut app: App, id: &str, agent: &str, own: &[&str], endpoints: &[&str]) -> App {
    let endpoints = endpoints.iter().enumerate();
    app.instances.push(Arc::new(Instance {
        id: InstanceId::new(id),
        host: agent.into(),
        host_address: agent.parse().ok(),
        agent: Some("2620c9cb-87bc-S1".into()),
        version: "v1".into(),
        state: InstanceState::Running,
        health: Health::Unchecked,
        readiness: Readiness::Unchecked,
        started_at: None,
        addresses: own.iter().map(|ip| ip.parse().unwrap()).collect(),
        endpoints: endpoints
            .map(|(port_index, address)| Endpoint { port_index, address: address.parse().unwrap() })
            .collect(),
    }));
    app
}

/// `n` instances at 10.7.x.y, one TCP port each.
pub fn instances(mut app: App, n: u32) -> App {
    for i in 0..n {
        let ip = IpAddr::from((0x0a07_0001 + i).to_be_bytes()).to_string();
        app = instance(app, &format!("i{i}"), &ip, &[&ip], &[&format!("{ip}:31000")]);
    }
    app
}

pub fn with_state(mut app: App, instance: usize, state: InstanceState, health: Health) -> App {
    let instance = Arc::make_mut(&mut app.instances[instance]);
    (instance.state, instance.health) = (state, health);
    app
}

/// A server that answers on a free port of 127.0.0.1 until dropped, and the catalog that feeds it.
pub struct Server {
    pub plane: Plane,
    pub address: SocketAddr,
    catalog: Catalog,
    publisher: Publisher,
    cancel: CancellationToken,
    worker: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves without having heard from the scheduler.
    pub fn unsynced(config: Config, vips_applied: Option<Applied>) -> Self {
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        Self::listening(Config { listen, ..config }, vips_applied)
    }

    /// The same, where `config` says.
    pub fn listening(config: Config, vips_applied: Option<Applied>) -> Self {
        let cancel = CancellationToken::new();
        let (publisher, subscriber) = channel();
        let (started, is_started) = std::sync::mpsc::channel();
        let until = cancel.clone();
        let worker = std::thread::spawn(move || {
            LocalRuntime::new().unwrap().block_on(async {
                let (plane, workers) = dns::start(config, subscriber, vips_applied, 1, until).await.unwrap();
                started.send(plane).unwrap();
                for worker in workers {
                    worker.run().await;
                }
            });
        });
        let plane: Plane = is_started.recv().unwrap();
        let address = plane.addresses()[0];
        let config = CatalogConfig {
            framework: "marathon".into(),
            vip_pools: vec!["127.11.0.0/16".parse().unwrap(), "fd01:c::/64".parse().unwrap()],
        };
        let catalog = Catalog::new(config);
        Self { plane, address, catalog, publisher, cancel, worker: Some(worker) }
    }

    pub fn with(apps: Vec<App>) -> Self {
        let config = Config { upstreams: Some(vec![]), ..Config::default() };
        let mut server = Self::unsynced(config, None);
        server.apply(apps);
        server
    }

    /// Says which scheduler runs an app, from the next snapshot on; `None`: the first one.
    pub fn run_by(&mut self, app: &str, framework: Option<&str>) {
        let framework = framework.map(Arc::from);
        self.catalog.set_framework_of(&AppId::new(app), framework.as_ref());
    }

    /// Says who leads, from the next snapshot on.
    pub fn led_by(&mut self, scheduler: Option<&str>, master: Option<&str>) {
        let address = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        self.catalog.set_leaders(Leaders { scheduler: address(scheduler), master: address(master) });
    }

    /// Publishes these apps and no others.
    pub fn publish(&mut self, apps: Vec<App>) -> Arc<Snapshot> {
        let updates = apps.into_iter().map(|app| AppUpdate { app, problems: vec![] });
        self.catalog.replace_all(updates.collect(), vec![]);
        let snapshot = self.catalog.snapshot().expect("a test publishes only what differs");
        self.publisher.publish(Arc::clone(&snapshot));
        snapshot
    }

    /// The same, and waits until they are answered.
    pub fn apply(&mut self, apps: Vec<App>) -> Arc<Snapshot> {
        let snapshot = self.publish(apps);
        self.wait_until_applied(&snapshot);
        snapshot
    }

    pub fn wait_until_applied(&self, snapshot: &Snapshot) {
        let mut applied = self.plane.applied();
        let reached = async { tokio::time::timeout(DEADLINE, applied.reached(snapshot.generation)).await };
        runtime().block_on(reached).expect("the generation is applied in time").unwrap();
    }

    pub fn stop(&mut self) {
        self.cancel.cancel();
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }

    /// Sends bytes over UDP; `None`: no answer, shown by the answer to a second, good query coming first.
    pub fn udp(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(packet).unwrap();
        socket.send(&query(0xfeed, "localhost", 1)).unwrap();
        let mut buffer = vec![0; 65_535];
        let n = socket.recv(&mut buffer).expect("the server answers in time");
        buffer.truncate(n);
        (buffer[..2] != [0xfe, 0xed]).then_some(buffer)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub fn tcp(&self, packet: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(&framed(packet)).unwrap();
        receive(&mut stream).expect("an answer")
    }

    /// Asks over TCP, so that nothing is cut, and gives code, answers and additionals as text, sorted.
    pub fn ask(&self, name: &str, record_type: u16) -> (String, Vec<String>, Vec<String>) {
        let message = Message::from_vec(&self.tcp(&query(1, name, record_type))).unwrap();
        let text = |records: &[hickory_server::proto::rr::Record]| {
            let mut text: Vec<String> = records.iter().map(|r| data_text(&r.data)).collect();
            text.sort();
            text
        };
        let code = format!("{:?}", message.metadata.response_code);
        (code, text(&message.answers), text(&message.additionals))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn data_text(data: &RData) -> String {
    match data {
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        other => other.to_string(),
    }
}

pub fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

pub fn query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(&wire_name(name));
    packet.extend_from_slice(&record_type.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// Adds an OPT record with this payload size, version and options.
pub fn with_edns(mut packet: Vec<u8>, payload_bytes: u16, version: u8, options: &[u8]) -> Vec<u8> {
    packet[11] += 1;
    packet.extend_from_slice(&[0, 0, 41]);
    packet.extend_from_slice(&payload_bytes.to_be_bytes());
    packet.extend_from_slice(&[0, version, 0, 0]);
    packet.extend_from_slice(&(options.len() as u16).to_be_bytes());
    packet.extend_from_slice(options);
    packet
}

pub fn framed(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes(), packet].concat()
}

/// The next message of a connection; `None` when it was closed.
pub fn receive(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// Asks and compares answers (sorted) or, when there are none, the code: `NODATA`, `NXDomain`, `Refused` …
pub fn check(server: &Server, table: &[(&str, u16, &[&str])]) {
    for (name, record_type, expect) in table {
        let (code, answers, _) = server.ask(name, *record_type);
        let got = match (code.as_str(), answers.is_empty()) {
            ("NoError", true) => vec!["NODATA".to_owned()],
            ("NoError", false) => answers,
            _ => vec![code],
        };
        assert_eq!(got, *expect, "{name} {record_type}");
    }
}
