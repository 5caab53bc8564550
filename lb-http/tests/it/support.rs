//! A running plane, backends whose every byte a test may choose, and a client that reads whole responses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use event_watcher::catalog::*;
use event_watcher::publish::{self, Publisher};
use lb_http::stats::Servers;
use lb_http::{Config, Plane};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(10);

/// Fails the test instead of hanging.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing after {DEADLINE:?}"),
    }
}

pub struct Cluster {
    pub plane: Plane,
    pub cancel: CancellationToken,
    publisher: Publisher,
    generation: u64,
    apps: BTreeMap<AppId, Arc<App>>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = Config { http_listen: any, appid_listen: any, ..Config::default() };
        config.drain_timeout = Duration::from_secs(5);
        change(&mut config);
        let (publisher, subscriber) = publish::channel();
        let cancel = CancellationToken::new();
        let (plane, workers) = lb_http::start(config, subscriber, 2, cancel.clone()).await.unwrap();
        let run = |worker: lb_http::Worker| {
            std::thread::spawn(move || {
                tokio::runtime::LocalRuntime::new().unwrap().block_on(worker.run());
            })
        };
        let workers = workers.into_iter().map(run).collect();
        Self { plane, cancel, publisher, generation: 0, apps: BTreeMap::new(), workers }
    }

    /// Publishes the app and returns when the plane has applied it.
    pub async fn put(&mut self, app: &AppSpec) {
        let app = app.build();
        self.apps.insert(app.id.clone(), Arc::new(app));
        self.publish().await;
    }

    pub async fn remove(&mut self, id: &str) {
        self.apps.remove(&AppId::new(id));
        self.publish().await;
    }

    async fn publish(&mut self) {
        self.generation += 1;
        let generation = Generation(self.generation);
        let apps = self.apps.clone().into_iter().collect();
        self.publisher.publish(Arc::new(Snapshot { generation, apps, ..Snapshot::default() }));
        soon("applied", self.plane.applied().reached(generation)).await.unwrap();
    }

    /// Ends as a process does: drains, then every worker is gone.
    pub async fn stop(self) {
        self.cancel.cancel();
        let join =
            tokio::task::spawn_blocking(move || self.workers.into_iter().for_each(|w| w.join().unwrap()));
        soon("workers end", join).await.unwrap();
    }

    pub fn csv_row(&self, proxy: &str, server: &str) -> BTreeMap<String, String> {
        let csv = self.plane.stats_csv(Servers::All);
        let mut lines = csv.lines();
        let names: Vec<&str> = lines.next().unwrap().trim_start_matches("# ").split(',').collect();
        let row = lines.find(|l| l.starts_with(&format!("{proxy},{server},")));
        let row = row.unwrap_or_else(|| panic!("no row {proxy} {server} in\n{csv}"));
        names.iter().zip(row.split(',')).map(|(n, v)| ((*n).to_owned(), v.to_owned())).collect()
    }
}

/// A port of 127.0.0.1 that nobody listens on. It is below those that the kernel gives to whoever asks for any, so that
/// no other test gets it in the meantime.
pub fn free_port() -> u16 {
    const PORTS: Range<u32> = 10_000..32_000;
    static N_TRIED: AtomicU32 = AtomicU32::new(0);
    // Other processes begin elsewhere.
    let first = std::process::id().wrapping_mul(500);
    (0..PORTS.len())
        .map(|_| first.wrapping_add(N_TRIED.fetch_add(1, Relaxed)) % PORTS.len() as u32)
        .map(|n| (PORTS.start + n) as u16)
        .find(|port| StdListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}

#[derive(Clone)]
pub struct AppSpec {
    pub id: &'static str,
    pub port: u16,
    pub labels: Vec<(&'static str, String)>,
    pub instances: Vec<(u16, InstanceState)>,
    pub health_checks: Vec<HealthCheck>,
    /// What the scheduler says of every instance.
    pub health: Health,
    /// The second port of every instance.
    pub other_port: Option<u16>,
}

impl AppSpec {
    pub fn new(id: &'static str) -> Self {
        Self {
            id,
            port: free_port(),
            labels: vec![("HAPROXY_0_MODE", "http".to_owned())],
            instances: vec![],
            health_checks: vec![],
            health: Health::Unchecked,
            other_port: None,
        }
    }

    pub fn label(mut self, name: &'static str, value: &str) -> Self {
        self.labels.push((name, value.to_owned()));
        self
    }

    /// Of the kind that the scheduler runs, with the path `/health`.
    pub fn health_check(mut self, protocol: HealthCheckProtocol) -> Self {
        self.health_checks.push(HealthCheck {
            grace_period_seconds: None,
            protocol,
            path: Some("/health".into()),
            port_index: Some(0),
            port: None,
            interval_seconds: Some(1),
            timeout_seconds: Some(5),
            max_consecutive_failures: Some(1),
        });
        self
    }

    pub fn instance(mut self, port: u16) -> Self {
        self.instances.push((port, InstanceState::Running));
        self
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn build(&self) -> App {
        let id = AppId::new(self.id);
        let instance = |(port, state): &(u16, InstanceState)| {
            Arc::new(Instance {
                id: InstanceId::new(&format!("i{port}")),
                host: "127.0.0.1".into(),
                host_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                agent: None,
                version: "v1".into(),
                state: *state,
                health: self.health,
                readiness: Readiness::Unchecked,
                started_at: None,
                addresses: vec![],
                endpoints: (0..)
                    .zip([*port].into_iter().chain(self.other_port))
                    .map(|(port_index, port)| Endpoint { port_index, address: ([127, 0, 0, 1], port).into() })
                    .collect(),
            })
        };
        let service = |port_index, service_port| Service {
            id: ServiceId { app: id.clone(), port_index },
            name: None,
            service_port,
            protocols: Protocols::TCP,
            labels: BTreeMap::new(),
            vips: vec![],
        };
        App {
            id: id.clone(),
            version: "v1".into(),
            labels: self.labels.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            n_instances_wanted: self.instances.len() as u32,
            // The second port is for checks only.
            services: [service(0, Some(self.port))]
                .into_iter()
                .chain(self.other_port.map(|_| service(1, None)))
                .collect(),
            health_checks: self.health_checks.clone(),
            instances: self.instances.iter().map(instance).collect(),
            deployments: vec![],
        }
    }
}

/// What a backend got, as its answer says it.
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
    /// How many this connection has served before.
    pub n_before: usize,
}

/// What a backend does with a request.
pub enum Reply {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, then the connection is closed.
    Last(Vec<u8>),
    /// Closed without a byte.
    Nothing,
    /// These bytes, then everything that comes is sent back.
    Echo(Vec<u8>),
    /// Held until the token is cancelled, then these bytes.
    Held(CancellationToken, Vec<u8>),
}

pub struct Backend {
    pub port: u16,
    n_connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Backend {
    /// Answers each request with its own port, after the head that it was sent.
    pub async fn named() -> Self {
        Self::with(|port, request| Reply::Bytes(ok(&format!("{port}\n{}", request.head)))).await
    }

    pub async fn with(reply: impl Fn(u16, Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::behind(async |stream| Ok(stream), reply).await
    }

    /// Behind TLS, with a certificate for these names; it comes as PEM.
    pub async fn over_tls(
        names: &[&str],
        reply: impl Fn(u16, Request) -> Reply + Send + Sync + 'static,
    ) -> (Self, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Self::behind(move |stream| acceptor.accept(stream), reply).await, made.cert.pem())
    }

    /// `greet` is what comes before the first request.
    async fn behind<S, G>(
        greet: impl Fn(TcpStream) -> G + Send + Sync + 'static,
        reply: impl Fn(u16, Request) -> Reply + Send + Sync + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
        G: Future<Output = std::io::Result<S>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reply = Arc::new(reply);
        let n_connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&n_connections);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Relaxed);
                let reply = Arc::clone(&reply);
                let greeted = greet(stream);
                connections.spawn(async move {
                    if let Ok(stream) = greeted.await {
                        let _ = converse(stream, port, &*reply).await;
                    }
                });
            }
        });
        Self { port, n_connections, accepting }
    }

    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Relaxed)
    }

    /// Closes the listener and all connections, as the end of a process does.
    pub async fn kill(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    port: u16,
    reply: &(dyn Fn(u16, Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for n_before in 0.. {
        let Some(head) = read_head(&mut stream, &mut buffer).await? else { break };
        if head.to_ascii_lowercase().contains("\r\nexpect: 100-continue\r\n") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = read_body(&mut stream, &mut buffer, &head, Side::Request).await?;
        match reply(port, Request { head, body, n_before }) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::Last(bytes) => {
                stream.write_all(&bytes).await?;
                break;
            }
            Reply::Nothing => break,
            Reply::Echo(bytes) => {
                stream.write_all(&bytes).await?;
                stream.write_all(&buffer).await?;
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer).await?;
                break;
            }
            Reply::Held(release, bytes) => {
                release.cancelled().await;
                stream.write_all(&bytes).await?;
            }
        }
    }
    Ok(())
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[derive(PartialEq)]
enum Side {
    Request,
    Response,
}

async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = String::from_utf8_lossy(&std::mem::replace(buffer, rest)).into_owned();
            return Ok(Some(head));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    head: &str,
    side: Side,
) -> std::io::Result<Vec<u8>> {
    let field = |name: &str| {
        head.lines().skip(1).find_map(|l| {
            let (n, v) = l.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
        })
    };
    if let Some(length) = field("content-length") {
        let length: usize = length.parse().unwrap();
        while buffer.len() < length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = buffer.split_off(length);
        return Ok(std::mem::replace(buffer, rest));
    }
    let mut body = Vec::new();
    if field("transfer-encoding").is_some() {
        loop {
            while !buffer.windows(2).any(|w| w == b"\r\n") {
                if stream.read_buf(buffer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let end = buffer.windows(2).position(|w| w == b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&buffer[..end]).unwrap(), 16).unwrap();
            if size == 0 {
                // A trailer, or none: up to an empty line.
                while !buffer[end..].windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(buffer).await? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                let last = end + buffer[end..].windows(4).position(|w| w == b"\r\n\r\n").unwrap();
                buffer.drain(..last + 4);
                return Ok(body);
            }
            while buffer.len() < end + 2 + size + 2 {
                if stream.read_buf(buffer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            body.extend_from_slice(&buffer[end + 2..end + 2 + size]);
            buffer.drain(..end + 2 + size + 2);
        }
    }
    if side == Side::Response && field("connection").as_deref() == Some("close") {
        while stream.read_buf(buffer).await? > 0 {}
        body = std::mem::take(buffer);
    }
    Ok(body)
}

/// A client's connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|l| {
            let (n, v) = l.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    /// The port that [`Backend::named`] answered with.
    pub fn port(&self) -> u16 {
        let first = self.body.lines().next().unwrap_or_default();
        first.parse().unwrap_or_else(|_| panic!("not answered by an instance: {self:?}"))
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connect", TcpStream::connect(address)).await.unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        soon("send", self.stream.write_all(bytes)).await.unwrap();
    }

    pub async fn response(&mut self) -> Response {
        self.try_response().await.expect("a response")
    }

    /// `None`: the connection was closed, or the body cut.
    pub async fn try_response(&mut self) -> Option<Response> {
        let read = async {
            let head = read_head(&mut self.stream, &mut self.buffer).await.ok()??;
            let bodiless = head.starts_with("HTTP/1.1 101");
            let body = match bodiless {
                true => Vec::new(),
                false => read_body(&mut self.stream, &mut self.buffer, &head, Side::Response).await.ok()?,
            };
            Some(Response { head, body: String::from_utf8_lossy(&body).into_owned() })
        };
        soon("response", read).await
    }

    pub async fn get(&mut self, headers: &str) -> Response {
        self.send(&format!("GET / HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n")).await;
        self.response().await
    }

    /// Waits for the first bytes of a response, for a while.
    pub async fn is_answered(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(500), self.stream.readable()).await.is_ok()
    }

    /// The head only; what follows stays to be read.
    pub async fn head(&mut self) -> String {
        soon("head", read_head(&mut self.stream, &mut self.buffer)).await.unwrap().expect("a head")
    }

    pub async fn read_exactly(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert_ne!(
                soon("bytes", self.stream.read_buf(&mut self.buffer)).await.unwrap(),
                0,
                "closed early"
            );
        }
        let rest = self.buffer.split_off(n);
        std::mem::replace(&mut self.buffer, rest)
    }

    pub async fn is_closed(&mut self) -> bool {
        soon("close", self.stream.read_buf(&mut self.buffer)).await.map_or(true, |n| n == 0)
    }
}

/// One request on a connection of its own.
pub async fn get(address: SocketAddr, headers: &str) -> Response {
    Client::connect(address).await.get(headers).await
}
