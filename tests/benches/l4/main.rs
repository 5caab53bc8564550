//! The userspace VIP plane against HAProxy `mode tcp` (one thread), in the same run.
//!
//! `cargo bench -p tests --bench l4`. Each proxy is a process of its own, pinned to one core; the load and the
//! endpoints are threads of this process on another core. Rounds are interleaved. What is reported is the CPU time of
//! the proxy's process, which is steady where throughput moves with the neighbours. Without HAProxy it says so and
//! reports Waymark alone. As root, it also holds 60,000 connections from one address open through one VIP.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{App, AppUpdate, Catalog, CatalogConfig, Protocol, VipKey, VipTarget};
use event_watcher::publish::channel;
use tokio_util::sync::CancellationToken;

mod many;
#[path = "../support/mod.rs"]
mod support;

use support::{LOAD_CORE, Pinned, app, is_not_installed, median, pin};

const N_ROUNDS: usize = 9;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED_FOR: Duration = Duration::from_secs(2);
const N_CONNECTIONS: usize = 64;
const MESSAGE_BYTES: usize = 128;
const STREAM_BYTES: u64 = 2 << 30;
const STREAM_PIECE_BYTES: usize = 128 * 1024;

/// The child's VIP: an address of the dev pool.
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 11, 200, 1));

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("forwarder") => return forwarder(each_its_vip(args[2].parse()?, args[3].parse()?)),
        Some("forwarder-of-one") => return forwarder(vec![all_one_vip(&args[2..])?]),
        _ => {}
    }
    if args.iter().any(|a| a == "many") {
        return many::run();
    }
    pin(LOAD_CORE)?;
    let echo = spawn_endpoint(echo)?;
    let sink = spawn_endpoint(sink)?;
    let waymark = Proxy::waymark(echo, sink)?;
    let haproxy = match Proxy::haproxy(echo, sink) {
        Ok(haproxy) => Some(haproxy),
        Err(error) if is_not_installed(&error) => {
            println!("haproxy is not installed: no comparison (Debian: apt-get install haproxy)");
            None
        }
        Err(error) => return Err(error),
    };
    // `-- stream` and the like measure only that.
    let wanted: Vec<Figure> = FIGURES.into_iter().filter(|f| args.iter().any(|a| a == f.name)).collect();
    let wanted_all = wanted.is_empty();
    let figures = if wanted_all { FIGURES.to_vec() } else { wanted };
    println!(
        "CPU time of the proxy, medians of {N_ROUNDS} rounds   waymark   haproxy   ratio   goal      waymark   haproxy"
    );
    for figure in figures {
        let mut mine = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..N_ROUNDS {
            mine.push(waymark.measure(figure)?);
            theirs.extend(haproxy.as_ref().map(|proxy| proxy.measure(figure)).transpose()?);
        }
        let cpu = |all: &[Measured]| median(all.iter().map(|m| m.cpu));
        let rate = |all: &[Measured]| median(all.iter().map(|m| m.rate));
        let ratio = median(mine.iter().zip(&theirs).map(|(mine, theirs)| mine.cpu / theirs.cpu));
        println!(
            "{:<46} {:>9.2} {:>9.2} {ratio:>7.2} {:>6.2} {:>12.0} {:>9.0} {}",
            figure.cost,
            cpu(&mine),
            cpu(&theirs),
            figure.goal,
            rate(&mine),
            rate(&theirs),
            figure.rate,
        );
    }
    if wanted_all { many::run() } else { Ok(()) }
}

#[derive(Clone, Copy)]
struct Figure {
    name: &'static str,
    cost: &'static str,
    rate: &'static str,
    /// The highest ratio to HAProxy.
    goal: f64,
    load: Load,
}

const FIGURES: [Figure; 3] = [
    Figure {
        name: "exchange",
        cost: "µs per exchange of 128 bytes, 64 connections",
        rate: "exchanges/s",
        goal: 1.0,
        load: exchanges,
    },
    Figure {
        name: "connection",
        cost: "µs per connection (connect, exchange, close)",
        rate: "connections/s",
        goal: 1.0,
        load: connections,
    },
    Figure { name: "stream", cost: "ms per GB of one stream", rate: "MB/s", goal: 0.95, load: stream },
];

/// What one proxy did in one round.
struct Measured {
    /// In the figure's unit of cost.
    cpu: f64,
    rate: f64,
}

struct Proxy {
    process: Pinned,
    exchange: SocketAddr,
    stream: SocketAddr,
    /// HAProxy's configuration lives as long as the process.
    _files: Option<tempfile::TempDir>,
}

impl Proxy {
    /// This program again, as a process that runs only the plane.
    fn waymark(echo: SocketAddr, sink: SocketAddr) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("forwarder").args([echo.to_string(), sink.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = start_forwarder(&mut command)?;
        Ok(Self {
            process,
            exchange: SocketAddr::new(VIP, echo.port()),
            stream: SocketAddr::new(VIP, sink.port()),
            _files: None,
        })
    }

    fn haproxy(echo: SocketAddr, sink: SocketAddr) -> anyhow::Result<Self> {
        let [exchange, stream] = [free_address()?, free_address()?];
        let files = tempfile::tempdir()?;
        let file = files.path().join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "global\n nbthread 1\n maxconn 4000\n\
                 defaults\n mode tcp\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
                 listen exchange\n bind {exchange}\n server one {echo}\n\
                 listen stream\n bind {stream}\n server one {sink}\n"
            ),
        )?;
        let process = Pinned::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect(exchange).is_err() {
            anyhow::ensure!(Instant::now() < deadline, "haproxy does not listen");
            thread::yield_now();
        }
        Ok(Self { process, exchange, stream, _files: Some(files) })
    }

    fn measure(&self, figure: Figure) -> anyhow::Result<Measured> {
        let mut marks = Vec::new();
        (figure.load)(self, &mut |n| {
            marks.push((self.process.cpu_time()?, Instant::now(), n));
            Ok(())
        })?;
        let [(cpu_0, at_0, n_0), (cpu_1, at_1, n_1)] = marks[..] else {
            anyhow::bail!("a load marks its begin and its end");
        };
        let n = n_1 - n_0;
        Ok(Measured { cpu: (cpu_1 - cpu_0).as_secs_f64() * 1e6 / n, rate: n / (at_1 - at_0).as_secs_f64() })
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn start_forwarder(command: &mut Command) -> anyhow::Result<Pinned> {
    let mut process = Pinned::start(command)?;
    let mut said = String::new();
    let stdout = process.0.stdout.take().context("stdout is piped")?;
    BufReader::new(stdout).read_line(&mut said)?;
    anyhow::ensure!(said.trim() == "ready", "the forwarder did not start");
    Ok(process)
}

/// A VIP for each endpoint, at the port of it.
fn each_its_vip(echo: SocketAddr, sink: SocketAddr) -> Vec<App> {
    let with_vip = |(name, endpoint): (&str, SocketAddr)| {
        let mut app = app(name, endpoint);
        app.services[0].vips = vec![vip_at(endpoint.port())];
        app
    };
    [("/echo", echo), ("/sink", sink)].map(with_vip).into()
}

/// One VIP for all endpoints.
fn all_one_vip(endpoints: &[String]) -> anyhow::Result<App> {
    let apps: Vec<App> =
        endpoints.iter().map(|e| Ok(app(&format!("/{e}"), e.parse()?))).collect::<anyhow::Result<_>>()?;
    let mut all = apps.first().cloned().context("no endpoint is given")?;
    all.instances = apps.into_iter().flat_map(|app| app.instances).collect();
    all.services[0].vips = vec![vip_at(many::PORT)];
    Ok(all)
}

fn vip_at(port: u16) -> VipKey {
    VipKey { target: VipTarget::Ip(VIP), protocol: Protocol::Tcp, port }
}

/// The child: the plane with one worker, and a snapshot with these apps.
fn forwarder(apps: Vec<App>) -> anyhow::Result<()> {
    let (publisher, subscriber) = channel();
    let cancel = CancellationToken::new();
    let mut catalog = Catalog::new(CatalogConfig {
        framework: "marathon".into(),
        vip_pools: vec!["127.11.0.0/16".parse()?],
    });
    let updates = apps.into_iter().map(|app| AppUpdate { app, problems: vec![] }).collect();
    catalog.replace_all(updates, vec![]);
    publisher.publish(catalog.snapshot().context("the first snapshot is always taken")?);
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (plane, workers) =
        control.block_on(async { l4_vip::start(l4_vip::Config::default(), subscriber, 1, cancel.clone()) });
    support::serve(&control, workers, l4_vip::Worker::run, plane.applied(), || plane.problems())
}

fn spawn_endpoint(serve: fn(TcpListener) -> io::Result<()>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        if let Err(error) = serve(listener) {
            println!("an endpoint failed: {error}");
            std::process::exit(1);
        }
    });
    Ok(address)
}

/// Sends every message back, on any number of connections.
fn echo(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let poller = Poller::new()?;
    poller.watch(&listener, libc::EPOLLIN)?;
    let mut connections: BTreeMap<i32, TcpStream> = BTreeMap::new();
    let mut buffer = [0; 4096];
    let mut events = Poller::events();
    loop {
        for fd in poller.wait(&mut events, None)? {
            if fd == listener.as_raw_fd() {
                while let Ok((connection, _)) = listener.accept() {
                    connection.set_nonblocking(true)?;
                    connection.set_nodelay(true)?;
                    poller.watch(&connection, libc::EPOLLIN)?;
                    connections.insert(connection.as_raw_fd(), connection);
                }
            } else if let Some(connection) = connections.get_mut(&fd) {
                match connection.read(&mut buffer) {
                    Ok(n @ 1..) if connection.write_all(&buffer[..n]).is_ok() => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    _ => drop(connections.remove(&fd)),
                }
            }
        }
    }
}

/// Reads streams to their end, one after the other, and then ends its own direction.
fn sink(listener: TcpListener) -> io::Result<()> {
    let mut buffer = vec![0; STREAM_PIECE_BYTES];
    loop {
        let (mut connection, _) = listener.accept()?;
        while connection.read(&mut buffer)? > 0 {}
    }
}

/// Notes the moment, with the count of work done so far.
type Mark<'a> = &'a mut dyn FnMut(f64) -> anyhow::Result<()>;

/// Loads a proxy and marks twice: when it is warm, and at the end.
type Load = fn(&Proxy, Mark<'_>) -> anyhow::Result<()>;

struct Clock<'a> {
    warm_at: Instant,
    end: Option<Instant>,
    mark: Mark<'a>,
}

impl<'a> Clock<'a> {
    fn new(mark: Mark<'a>) -> Self {
        Self { warm_at: Instant::now() + WARM_UP, end: None, mark }
    }

    fn is_over(&mut self, n: u64) -> anyhow::Result<bool> {
        let now = Instant::now();
        match self.end {
            None if now >= self.warm_at => {
                (self.mark)(n as f64)?;
                self.end = Some(now + MEASURED_FOR);
            }
            Some(end) if now >= end => {
                (self.mark)(n as f64)?;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}

fn exchanges(proxy: &Proxy, mark: Mark<'_>) -> anyhow::Result<()> {
    let poller = Poller::new()?;
    let message = [b'x'; MESSAGE_BYTES];
    let mut connections = BTreeMap::new();
    for _ in 0..N_CONNECTIONS {
        let mut connection = TcpStream::connect(proxy.exchange)?;
        connection.set_nodelay(true)?;
        connection.set_nonblocking(true)?;
        poller.watch(&connection, libc::EPOLLIN)?;
        connection.write_all(&message)?;
        connections.insert(connection.as_raw_fd(), connection);
    }
    let mut buffer = [0; MESSAGE_BYTES];
    let mut clock = Clock::new(mark);
    let mut events = Poller::events();
    let mut n = 0;
    while !clock.is_over(n)? {
        for fd in poller.wait(&mut events, Some(Duration::from_secs(5)))? {
            let connection = connections.get_mut(&fd).context("an event of no connection")?;
            match connection.read(&mut buffer) {
                Ok(MESSAGE_BYTES) => connection.write_all(&message)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                other => anyhow::bail!("an exchange ended with {other:?}"),
            }
            n += 1;
        }
    }
    Ok(())
}

fn connections(proxy: &Proxy, mark: Mark<'_>) -> anyhow::Result<()> {
    let poller = Poller::new()?;
    let message = [b'x'; MESSAGE_BYTES];
    let mut connections: BTreeMap<i32, TcpStream> = BTreeMap::new();
    let connect = |connections: &mut BTreeMap<i32, TcpStream>| -> io::Result<()> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None)?;
        match socket.connect(&proxy.exchange.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        poller.watch(&socket, libc::EPOLLOUT)?;
        connections.insert(socket.as_raw_fd(), socket.into());
        Ok(())
    };
    for _ in 0..N_CONNECTIONS {
        connect(&mut connections)?;
    }
    let mut buffer = [0; MESSAGE_BYTES];
    let mut clock = Clock::new(mark);
    let mut events = Poller::events();
    let mut n = 0;
    while !clock.is_over(n)? {
        for fd in poller.wait(&mut events, Some(Duration::from_secs(5)))? {
            let connection = connections.get_mut(&fd).context("an event of no connection")?;
            match connection.read(&mut buffer) {
                Ok(MESSAGE_BYTES) => {
                    drop(connections.remove(&fd));
                    n += 1;
                    connect(&mut connections)?;
                }
                // It has just connected.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    connection.write_all(&message)?;
                    poller.change(connection, libc::EPOLLIN)?;
                }
                other => anyhow::bail!("a connection ended with {other:?}"),
            }
        }
    }
    Ok(())
}

/// Sends `STREAM_BYTES` and waits until the other end has read them all.
fn stream(proxy: &Proxy, mark: Mark<'_>) -> anyhow::Result<()> {
    let piece = vec![b'x'; STREAM_PIECE_BYTES];
    let mut connection = TcpStream::connect(proxy.stream)?;
    mark(0.0)?;
    for _ in 0..STREAM_BYTES / STREAM_PIECE_BYTES as u64 {
        connection.write_all(&piece)?;
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    anyhow::ensure!(connection.read(&mut [0])? == 0, "the sink says nothing");
    // In thousandths of a GB, so that µs per unit are ms per GB and units per second are MB/s.
    mark(STREAM_BYTES as f64 / 1e6)
}

/// epoll(7), level-triggered, a descriptor being its own token.
struct Poller(OwnedFd);

impl Poller {
    fn new() -> io::Result<Self> {
        // SAFETY: a plain call; its result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn events() -> Vec<libc::epoll_event> {
        vec![libc::epoll_event { events: 0, u64: 0 }; 2 * N_CONNECTIONS]
    }

    fn watch(&self, source: &impl AsRawFd, interest: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source.as_raw_fd(), interest)
    }

    fn change(&self, source: &impl AsRawFd, interest: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, source.as_raw_fd(), interest)
    }

    fn control(&self, operation: i32, fd: i32, interest: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: fd as u64 };
        // SAFETY: `event` lives for the call.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = i32>> {
        let timeout = timeout.map_or(-1, |t| t.as_millis() as i32);
        // SAFETY: the kernel writes at most `events.len()` events.
        let n = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, timeout)
        };
        if n == 0 {
            return Err(io::Error::new(ErrorKind::TimedOut, "nothing moves any more"));
        }
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok(events[..n].iter().map(|event| event.u64 as i32))
    }
}
