//! The HTTP balancer against HAProxy with the same cookie and one thread, in the same run.
//!
//! `cargo bench -p tests --bench http`. Keep-alive on both sides, 64 connections, bodies of 128 bytes, session cookies
//! and statistics on. Each proxy is a process of its own, pinned to one core; the load and the endpoint are threads of
//! this process on another core. Rounds are interleaved. What is reported is the CPU time of the proxy's process, which
//! is steady where throughput moves with the neighbours. Without HAProxy it says so and reports Waymark alone.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{AppUpdate, Catalog, CatalogConfig};
use event_watcher::publish::channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

mod support;

use support::{LOAD_CORE, Pinned, app, is_not_installed, median, pin};

/// What `cli` uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Many short ones: what a neighbour does to the machine then meets both proxies alike.
const N_ROUNDS: usize = 61;
const WARM_UP: Duration = Duration::from_millis(50);
const MEASURED_FOR: Duration = Duration::from_millis(250);
const N_CONNECTIONS: usize = 64;
const BODY_BYTES: usize = 128;
/// The highest ratio to HAProxy.
const GOAL: f64 = 1.05;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "balancer") {
        return balancer(args[2].parse()?, args[3].parse()?);
    }
    pin(LOAD_CORE)?;
    let endpoint = spawn_endpoint()?;
    let waymark = Proxy::waymark(endpoint)?;
    let haproxy = match Proxy::haproxy(endpoint) {
        Ok(haproxy) => Some(haproxy),
        Err(error) if is_not_installed(&error) => {
            println!("haproxy is not installed: no comparison (Debian: apt-get install haproxy)");
            None
        }
        Err(error) => return Err(error),
    };
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..N_ROUNDS {
        mine.push(waymark.measure()?);
        theirs.extend(haproxy.as_ref().map(Proxy::measure).transpose()?);
    }
    let ratio = median(mine.iter().zip(&theirs).map(|(mine, theirs)| mine.cpu_micros / theirs.cpu_micros));
    println!(
        "HTTP request, {BODY_BYTES} bytes, {N_CONNECTIONS} connections, keep-alive; medians of {N_ROUNDS} rounds"
    );
    for (name, all) in [("waymark", &mine), ("haproxy", &theirs)] {
        if all.is_empty() {
            continue;
        }
        println!(
            "{name}: {:6.2} µs CPU per request, {:6.0} requests/s on one core",
            median(all.iter().map(|m| m.cpu_micros)),
            median(all.iter().map(|m| m.per_sec)),
        );
    }
    if !theirs.is_empty() {
        println!("ratio of CPU time: {ratio:.3} (goal: at most {GOAL})");
    }
    Ok(())
}

/// What one proxy did in one round.
struct Measured {
    cpu_micros: f64,
    per_sec: f64,
}

struct Proxy {
    process: Pinned,
    address: SocketAddr,
    /// HAProxy's configuration lives as long as the process.
    _files: Option<tempfile::TempDir>,
}

impl Proxy {
    /// This program again, as a process that runs only the balancer.
    fn waymark(endpoint: SocketAddr) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("balancer").args([address.port().to_string(), endpoint.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Pinned::start(&mut command)?;
        let mut said = String::new();
        let stdout = process.0.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        anyhow::ensure!(said.trim() == "ready", "the balancer did not start");
        Ok(Self { process, address, _files: None })
    }

    fn haproxy(endpoint: SocketAddr) -> anyhow::Result<Self> {
        let address = free_address()?;
        let files = tempfile::tempdir()?;
        let file = files.path().join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "global\n nbthread 1\n maxconn 4000\n\
                 defaults\n mode http\n option http-keep-alive\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
                 frontend in\n bind {address}\n default_backend out\n\
                 backend out\n balance roundrobin\n cookie mesosphere_server_id insert indirect nocache\n \
                 server one {endpoint} cookie 0123456789\n"
            ),
        )?;
        let process = Pinned::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(address).is_err() {
            anyhow::ensure!(Instant::now() < deadline, "haproxy does not listen");
            thread::yield_now();
        }
        Ok(Self { process, address, _files: Some(files) })
    }

    fn measure(&self) -> anyhow::Result<Measured> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let done = Rc::new(std::cell::Cell::new(0_u64));
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..N_CONNECTIONS {
                clients.spawn_local(client(self.address, Rc::clone(&done)));
            }
            let mut mark = async |after| {
                tokio::select! {
                    () = tokio::time::sleep(after) => {}
                    Some(ended) = clients.join_next() => anyhow::bail!("a client ended early: {ended:?}"),
                }
                anyhow::Ok((self.process.cpu_time()?, Instant::now(), done.get()))
            };
            let (cpu_0, at_0, n_0) = mark(WARM_UP).await?;
            let (cpu_1, at_1, n_1) = mark(MEASURED_FOR).await?;
            let n = (n_1 - n_0) as f64;
            Ok(Measured {
                cpu_micros: (cpu_1 - cpu_0).as_secs_f64() * 1e6 / n,
                per_sec: n / (at_1 - at_0).as_secs_f64(),
            })
        })
    }
}

fn free_address() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// The child: the balancer with one worker, and a snapshot with one app on `port`.
fn balancer(port: u16, endpoint: SocketAddr) -> anyhow::Result<()> {
    let (publisher, subscriber) = channel();
    let cancel = CancellationToken::new();
    let mut catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: vec![] });
    let mut app = app("/bench", endpoint);
    app.services[0].service_port = Some(port);
    let labels = [("HAPROXY_0_MODE", "http"), ("HAPROXY_0_STICKY", "true")];
    app.labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    catalog.replace_all(vec![AppUpdate { app, problems: vec![] }], vec![]);
    publisher.publish(catalog.snapshot().context("the first snapshot is always taken")?);
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = lb_http::Config { http_listen: None, appid_listen: None, ..lb_http::Config::default() };
    let (plane, workers) = control.block_on(lb_http::start(config, subscriber, 1, cancel))?;
    for worker in workers {
        thread::spawn(move || -> io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, worker.run());
            Ok(())
        });
    }
    control.block_on(async {
        plane.applied().changed().await?;
        let problems = plane.problems();
        anyhow::ensure!(problems.is_empty(), "{problems:?}");
        println!("ready");
        // Ends with its parent, which holds the other end.
        tokio::task::spawn_blocking(|| io::stdin().read(&mut [0])).await??;
        anyhow::Ok(())
    })
}

/// Answers every request with the same bytes, as fast as it can.
fn spawn_endpoint() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        let serve = async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(answer(stream));
            }
        };
        let ended: io::Result<()> = runtime.block_on(serve);
        println!("the endpoint failed: {ended:?}");
        std::process::exit(1);
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    let response = [head.into_bytes(), vec![b'x'; BODY_BYTES]].concat();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        buffer.clear();
        while !buffer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        stream.write_all(&response).await?;
    }
}

/// Sends one request after the other; counts those that were answered as they should be.
async fn client(address: SocketAddr, done: Rc<std::cell::Cell<u64>>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n").await?;
        buffer.clear();
        let length = loop {
            anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "the proxy closed a connection");
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4 + BODY_BYTES;
            }
        };
        while buffer.len() < length {
            anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "the proxy cut a response");
        }
        let is_right = buffer.starts_with(b"HTTP/1.1 200 ") && buffer.len() == length;
        anyhow::ensure!(is_right, "a wrong response: {}", String::from_utf8_lossy(&buffer));
        done.set(done.get() + 1);
    }
}
