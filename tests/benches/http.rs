//! The HTTP balancer against HAProxy with the same cookie and one thread, in the same run.
//!
//! `cargo bench -p tests --bench http [SHAPE…]`. Session cookies and statistics on. Each proxy is a process of its own,
//! pinned to one core; the load and the endpoint are threads of this process on another core. Rounds are interleaved.
//! What is reported is the CPU time of the proxy's process, which is steady where throughput moves with the neighbours.
//! `latency` sends requests to both at the same pace, 70 % of HAProxy's peak, and compares the 99th percentiles; a request
//! that could not be sent when it was due has waited since then.
//! `held` opens 10,000 connections that are answered once and then idle, and tells what each costs in memory; then 5,000
//! that send half a request, and tells how much of a normal load beside them is served.
//! Without HAProxy it says so and reports Waymark alone. `balancer PORT ENDPOINT` is the child, and what callgrind is
//! pointed at (`benches/http_instructions.sh`).

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{AppUpdate, Catalog, CatalogConfig};
use event_watcher::publish::channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/held.rs"]
mod held;
mod support;

use endpoint::{free_address, spawn_endpoint};
use support::{LOAD_CORE, Pinned, app, is_not_installed, median, pin};

/// What `cli` uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Many short ones: what a neighbour does to the machine then meets both proxies alike.
const N_ROUNDS: usize = 31;
const WARM_UP: Duration = Duration::from_millis(50);
const MEASURED_FOR: Duration = Duration::from_millis(250);
const N_CONNECTIONS: usize = 64;
/// Of HAProxy.
const MAXCONN: u32 = 4000;

/// A kind of request.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    /// Of the response.
    body_bytes: usize,
    /// Of the request; 0: a GET.
    sent_bytes: usize,
    connections: Connections,
    /// The highest ratio to HAProxy.
    goal: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connections {
    Kept,
    /// One for each request.
    New,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "128B", body_bytes: 128, sent_bytes: 0, connections: Connections::Kept, goal: 0.80 },
    Shape { name: "10KiB", body_bytes: 10 << 10, sent_bytes: 0, connections: Connections::Kept, goal: 0.85 },
    Shape { name: "1MiB", body_bytes: 1 << 20, sent_bytes: 0, connections: Connections::Kept, goal: 0.30 },
    Shape { name: "new", body_bytes: 128, sent_bytes: 0, connections: Connections::New, goal: 0.90 },
    Shape {
        name: "post64KiB",
        body_bytes: 128,
        sent_bytes: 64 << 10,
        connections: Connections::Kept,
        goal: 0.90,
    },
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "balancer") {
        return balancer(args[2].parse()?, args[3].parse()?);
    }
    if args.iter().any(|a| a == "latency") {
        return latency();
    }
    if args.iter().any(|a| a == "held") {
        return hold();
    }
    if args.get(1).is_some_and(|a| a == "requests") {
        let shape = SHAPES.iter().find(|shape| args.get(3).is_some_and(|name| name == shape.name));
        return serve_so_many(args[2].parse()?, shape.unwrap_or(&SHAPES[0]));
    }
    let wanted = |shape: &&Shape| {
        let mut names = args.iter().skip(1).filter(|a| !a.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|name| name == shape.name)
    };
    pin(LOAD_CORE)?;
    let endpoint = spawn_endpoint()?;
    let waymark = Proxy::waymark(endpoint)?;
    let haproxy = match Proxy::haproxy(endpoint, MAXCONN) {
        Ok(haproxy) => Some(haproxy),
        Err(error) if is_not_installed(&error) => {
            println!("haproxy is not installed: no comparison (Debian: apt-get install haproxy)");
            None
        }
        Err(error) => return Err(error),
    };
    println!("CPU time of the proxy per request; medians of {N_ROUNDS} interleaved rounds");
    let host = support::congestion_control();
    println!(
        "TCP congestion control: {host}; of what comes by loopback to waymark: reno (see docs/operations.md)"
    );
    for shape in SHAPES.iter().filter(wanted) {
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            mine.push(waymark.measure(shape)?);
            theirs.extend(haproxy.as_ref().map(|proxy| proxy.measure(shape)).transpose()?);
        }
        for (name, all) in
            [("waymark", &mine), ("haproxy", &theirs)].iter().filter(|(_, all)| !all.is_empty())
        {
            println!(
                "{:>9} {name}: {:7.2} µs, {:6.0} requests/s on one core",
                shape.name,
                median(all.iter().map(|m| m.cpu_micros)),
                median(all.iter().map(|m| m.per_sec)),
            );
        }
        let ratio =
            median(mine.iter().zip(&theirs).map(|(mine, theirs)| mine.cpu_micros / theirs.cpu_micros));
        if !theirs.is_empty() {
            println!("{:>9} ratio: {ratio:.3} (goal: at most {:.2})", shape.name, shape.goal);
        }
    }
    Ok(())
}

/// What connections cost that are held open and say little.
fn hold() -> anyhow::Result<()> {
    held::allow_descriptors()?;
    pin(LOAD_CORE)?;
    let endpoint = spawn_endpoint()?;
    let waymark = Proxy::waymark(endpoint)?;
    // It wants two descriptors for each of its connections, which not every machine allows.
    let haproxy = Proxy::haproxy(endpoint, 12_000).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (name, proxy) in [("waymark", Some(&waymark)), ("haproxy", haproxy.as_ref())] {
        let Some(proxy) = proxy else { continue };
        let each = runtime.block_on(held::idle(proxy.address, proxy.process.0.id()))?;
        println!("{name}: {each:.2} KiB for each of 10,000 idle connections (goal: at most 2)");
        let load = held::slow(proxy.address);
        let (n_sent, n_served) = tokio::task::LocalSet::new().block_on(&runtime, load)?;
        println!("{name}: {n_served} of {n_sent} requests served beside 5,000 slow senders (goal: all)");
    }
    Ok(())
}

/// Lets the balancer serve `n` requests of a shape and end, under callgrind if a file for its output is named.
fn serve_so_many(n: u64, shape: &Shape) -> anyhow::Result<()> {
    let endpoint = spawn_endpoint()?;
    let mut waymark = Proxy::waymark(endpoint)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let done = Rc::new(std::cell::Cell::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            clients.spawn_local(client(waymark.address, *shape, Rc::clone(&done)));
        }
        while done.get() < n {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
                Some(ended) = clients.join_next() => anyhow::bail!("a client ended early: {ended:?}"),
            }
        }
        anyhow::Ok(())
    })?;
    // Its input ends, and so does it.
    drop(waymark.process.0.stdin.take());
    waymark.process.0.wait()?;
    Ok(())
}

const N_LATENCY_ROUNDS: usize = 9;
const PACED_FOR: Duration = Duration::from_secs(2);
/// Of HAProxy's peak.
const PACE: f64 = 0.70;

/// The 99th percentile of both at the same pace.
fn latency() -> anyhow::Result<()> {
    pin(LOAD_CORE)?;
    let endpoint = spawn_endpoint()?;
    let (waymark, haproxy) = (Proxy::waymark(endpoint)?, Proxy::haproxy(endpoint, MAXCONN)?);
    let peaks = (0..N_ROUNDS).map(|_| haproxy.measure(&SHAPES[0]).map(|m| m.per_sec));
    let peak = median(peaks.collect::<anyhow::Result<Vec<f64>>>()?);
    let per_sec = peak * PACE;
    println!("HAProxy's peak is {peak:.0} requests/s; paced at {per_sec:.0}");
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..N_LATENCY_ROUNDS {
        mine.push(waymark.paced(per_sec)?);
        theirs.push(haproxy.paced(per_sec)?);
    }
    let mut p99s = [0.0; 2];
    for (p99, (name, rounds)) in p99s.iter_mut().zip([("waymark", &mine), ("haproxy", &theirs)]) {
        let of = |part: usize| median(rounds.iter().map(|quantiles: &[f64; 3]| quantiles[part]));
        *p99 = of(1);
        println!("{name}: p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs", of(0), of(1), of(2));
    }
    println!("p99 ratio: {:.3} (goal: at most 1.00)", p99s[0] / p99s[1]);
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
        let mut command = match std::env::var_os("WAYMARK_BENCH_CALLGRIND") {
            None => Command::new(std::env::current_exe()?),
            Some(file) => {
                let mut valgrind = Command::new("valgrind");
                valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
                valgrind.arg(std::env::current_exe()?);
                valgrind
            }
        };
        command.arg("balancer").args([address.port().to_string(), endpoint.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Pinned::start(&mut command)?;
        let mut said = String::new();
        let stdout = process.0.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        anyhow::ensure!(said.trim() == "ready", "the balancer did not start");
        Ok(Self { process, address, _files: None })
    }

    fn haproxy(endpoint: SocketAddr, maxconn: u32) -> anyhow::Result<Self> {
        let address = free_address()?;
        let files = tempfile::tempdir()?;
        let file = files.path().join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "global\n nbthread 1\n maxconn {maxconn}\n\
                 defaults\n mode http\n option http-keep-alive\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
                 frontend in\n bind {address}\n default_backend out\n\
                 backend out\n balance roundrobin\n http-reuse always\n cookie mesosphere_server_id insert indirect nocache\n \
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

    fn measure(&self, shape: &Shape) -> anyhow::Result<Measured> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let done = Rc::new(std::cell::Cell::new(0_u64));
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..N_CONNECTIONS {
                clients.spawn_local(client(self.address, *shape, Rc::clone(&done)));
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

impl Proxy {
    /// Microseconds from when a request was due to its whole response: 50, 99 and 99.9 % are below.
    fn paced(&self, per_sec: f64) -> anyhow::Result<[f64; 3]> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut clients = tokio::task::JoinSet::new();
            let begin = Instant::now() + WARM_UP;
            for index in 0..N_CONNECTIONS {
                clients.spawn_local(paced_client(self.address, begin, index, per_sec));
            }
            let mut micros = Vec::new();
            while let Some(done) = clients.join_next().await {
                micros.extend(done??);
            }
            micros.sort_by(f64::total_cmp);
            let quantile =
                |q: f64| micros.get((micros.len() as f64 * q) as usize).copied().unwrap_or(f64::NAN);
            Ok([quantile(0.5), quantile(0.99), quantile(0.999)])
        })
    }
}

/// Every so-manyth request of all is this client's, whether the one before has been answered in time or not.
async fn paced_client(
    address: SocketAddr,
    begin: Instant,
    index: usize,
    per_sec: f64,
) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    let mut micros = Vec::new();
    for n in 0.. {
        let due = begin + Duration::from_secs_f64((n * N_CONNECTIONS + index) as f64 / per_sec);
        if due > begin + PACED_FOR {
            break;
        }
        // The runtime's timers are good for a millisecond; the rest is yielded away.
        let early = Duration::from_millis(2);
        if let Some(time) = due.checked_duration_since(Instant::now()).filter(|t| *t > early) {
            tokio::time::sleep(time - early).await;
        }
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        stream.write_all(b"GET /128 HTTP/1.1\r\nHost: bench.test\r\n\r\n").await?;
        buffer.clear();
        loop {
            anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "the proxy closed a connection");
            let end = buffer.windows(4).position(|w| w == b"\r\n\r\n");
            if end.is_some_and(|end| buffer.len() >= end + 4 + 128) {
                break;
            }
        }
        anyhow::ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer));
        micros.push(due.elapsed().as_secs_f64() * 1e6);
    }
    Ok(micros)
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
    support::serve(&control, workers, lb_http::Worker::run, plane.applied(), || plane.problems())
}

/// Sends one request after the other; counts those that were answered as they should be.
async fn client(address: SocketAddr, shape: Shape, done: Rc<std::cell::Cell<u64>>) -> anyhow::Result<()> {
    let close = if shape.connections == Connections::New { "Connection: close\r\n" } else { "" };
    let n = shape.body_bytes;
    let mut request = match shape.sent_bytes {
        0 => format!("GET /{n} HTTP/1.1\r\nHost: bench.test\r\n{close}\r\n").into_bytes(),
        sent => format!("POST /{n} HTTP/1.1\r\nHost: bench.test\r\n{close}Content-Length: {sent}\r\n\r\n")
            .into_bytes(),
    };
    request.resize(request.len() + shape.sent_bytes, b'y');
    let mut kept: Option<TcpStream> = None;
    let mut buffer = Vec::with_capacity(256 << 10);
    loop {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(&request).await?;
        buffer.clear();
        let mut left = loop {
            anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "the proxy closed a connection");
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break (end + 4 + n).checked_sub(buffer.len()).context("a response that is too long")?;
            }
        };
        anyhow::ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer));
        while left > 0 {
            buffer.clear();
            let n = stream.read_buf(&mut buffer).await?;
            anyhow::ensure!(n > 0 && n <= left, "the proxy cut a response");
            left -= n;
        }
        done.set(done.get() + 1);
        if shape.connections == Connections::Kept {
            kept = Some(stream);
        }
    }
}
