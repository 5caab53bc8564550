//! TLS and HTTP/2 towards clients against HAProxy and nginx with one thread each, in the same run.
//!
//! `cargo bench -p tests --bench tls [SHAPE…]`. h2load is the client of all; certificates are of P-256, and every new
//! connection is a full handshake. What is reported is the CPU time of the proxy's process for each request, medians of
//! interleaved rounds, and the time that 99 % of the requests stayed below. A peer that is not installed is left out.
//! `balancer TLS PLAIN ENDPOINT CERTIFICATE` is the child.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{AppUpdate, Catalog, CatalogConfig};
use event_watcher::publish::channel;
use tokio_util::sync::CancellationToken;

#[path = "support/endpoint.rs"]
mod endpoint;
mod support;

use endpoint::{free_address, spawn_endpoint};
use support::{LOAD_CORE, Pinned, app, is_not_installed, median, pin, pinned};

/// What `cli` uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const N_ROUNDS: usize = 9;
/// The highest ratio to a peer.
const GOAL: f64 = 1.10;

struct Shape {
    name: &'static str,
    scheme: &'static str,
    body_bytes: usize,
    n_requests: usize,
    /// h2load's.
    args: &'static [&'static str],
}

const SHAPES: [Shape; 5] = [
    Shape { name: "tls", scheme: "https", body_bytes: 128, n_requests: 6000, args: &["--h1", "-c", "32"] },
    Shape {
        name: "tls-64KiB",
        scheme: "https",
        body_bytes: 64 << 10,
        n_requests: 1000,
        args: &["--h1", "-c", "16"],
    },
    // One request for each connection.
    Shape { name: "new", scheme: "https", body_bytes: 128, n_requests: 300, args: &["--h1", "-c", "300"] },
    Shape { name: "h2", scheme: "https", body_bytes: 128, n_requests: 6000, args: &["-c", "8", "-m", "8"] },
    Shape { name: "h2c", scheme: "http", body_bytes: 128, n_requests: 6000, args: &["-c", "8", "-m", "8"] },
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "balancer") {
        return balancer(args[2].parse()?, args[3].parse()?, args[4].parse()?, &args[5]);
    }
    let wanted = |shape: &&Shape| {
        let mut names = args.iter().skip(1).filter(|a| !a.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|name| name == shape.name)
    };
    pin(LOAD_CORE)?;
    let files = tempfile::tempdir()?;
    let endpoint = spawn_endpoint()?;
    let certificate = files.path().join("certificate.pem");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(&certificate, made.cert.pem() + &made.signing_key.serialize_pem())?;
    let mut proxies = vec![Proxy::waymark(endpoint, &certificate)?];
    for (name, start) in [("haproxy", Proxy::haproxy as Start), ("nginx", Proxy::nginx)] {
        match start(endpoint, &certificate, files.path()) {
            Ok(proxy) => proxies.push(proxy),
            Err(error) if is_not_installed(&error) => println!("{name} is not installed: left out"),
            Err(error) => return Err(error),
        }
    }
    println!("CPU time of the proxy per request; medians of {N_ROUNDS} interleaved rounds");
    let log = files.path().join("requests");
    for shape in SHAPES.iter().filter(wanted) {
        let mut figures = vec![Vec::new(); proxies.len()];
        for _ in 0..N_ROUNDS {
            for (proxy, figures) in proxies.iter().zip(&mut figures) {
                figures.push(proxy.measure(shape, &log)?);
            }
        }
        for (proxy, all) in proxies.iter().zip(&figures) {
            let own = median(all.iter().map(|f| f.cpu));
            let p99 = median(all.iter().map(|f| f.p99)) / 1000.0;
            let ratio = median(figures[0].iter().zip(all).map(|(mine, theirs)| mine.cpu / theirs.cpu));
            print!("{:>9} {:>7}: {own:8.2} µs, p99 {p99:6.2} ms", shape.name, proxy.name);
            match proxy.name {
                "waymark" => println!(),
                _ => println!(", ratio {ratio:.3} (goal: at most {GOAL:.2})"),
            }
        }
    }
    Ok(())
}

/// Of one round, in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    /// The proxy's, for each request.
    cpu: f64,
    p99: f64,
}

type Start = fn(SocketAddr, &Path, &Path) -> anyhow::Result<Proxy>;

struct Proxy {
    name: &'static str,
    process: Pinned,
    tls: SocketAddr,
    plain: SocketAddr,
}

impl Proxy {
    fn waymark(endpoint: SocketAddr, certificate: &Path) -> anyhow::Result<Self> {
        let (tls, plain) = (free_address()?, free_address()?);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("balancer").args([tls, plain, endpoint].map(|address| address.to_string()));
        command.arg(certificate).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Pinned::start(&mut command)?;
        let mut said = String::new();
        let stdout = process.0.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        anyhow::ensure!(said.trim() == "ready", "the balancer did not start");
        Ok(Self { name: "waymark", process, tls, plain })
    }

    fn haproxy(endpoint: SocketAddr, certificate: &Path, files: &Path) -> anyhow::Result<Self> {
        let (tls, plain) = (free_address()?, free_address()?);
        let file = files.join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "global\n nbthread 1\n maxconn 4000\n\
                 defaults\n mode http\n option http-keep-alive\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
                 frontend in\n bind {tls} ssl crt {} alpn h2,http/1.1\n bind {plain} proto h2\n default_backend out\n\
                 backend out\n http-reuse always\n cookie mesosphere_server_id insert indirect nocache\n \
                 server one {endpoint} cookie 0123456789\n",
                certificate.display()
            ),
        )?;
        let process = Pinned::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file))?;
        Self { name: "haproxy", process, tls, plain }.when_it_listens()
    }

    fn nginx(endpoint: SocketAddr, certificate: &Path, files: &Path) -> anyhow::Result<Self> {
        let (tls, plain) = (free_address()?, free_address()?);
        let (file, folder, certificate) = (files.join("nginx.conf"), files.display(), certificate.display());
        std::fs::write(
            &file,
            format!(
                "daemon off;\nmaster_process off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
                 events {{ worker_connections 4000; }}\nhttp {{\n access_log off;\n keepalive_requests 1000000;\n\
                 client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n\
                 upstream out {{ server {endpoint}; keepalive 64; keepalive_requests 1000000; }}\n\
                 server {{ listen {tls} ssl http2; listen {plain} http2;\n ssl_certificate {certificate}; ssl_certificate_key {certificate};\n\
                 location / {{ proxy_pass http://out; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
            ),
        )?;
        let mut command = Command::new("nginx");
        let process = Pinned::start(command.arg("-c").arg(&file).stderr(Stdio::null()))?;
        Self { name: "nginx", process, tls, plain }.when_it_listens()
    }

    fn when_it_listens(self) -> anyhow::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(self.tls).is_err() {
            anyhow::ensure!(Instant::now() < deadline, "{} does not listen", self.name);
            thread::yield_now();
        }
        Ok(self)
    }

    /// `log` is written anew.
    fn measure(&self, shape: &Shape, log: &Path) -> anyhow::Result<Figures> {
        let address = if shape.scheme == "https" { self.tls } else { self.plain };
        let before = self.process.cpu_time()?;
        let mut load = Command::new("h2load");
        load.args(["-t", "1", "-n", &shape.n_requests.to_string()]).args(shape.args);
        load.arg(format!("--log-file={}", log.display()));
        load.arg(format!("{}://{address}/{}", shape.scheme, shape.body_bytes));
        // It appends.
        std::fs::write(log, "")?;
        let output = pinned(&mut load, LOAD_CORE).output().context("h2load (Debian: nghttp2-client)")?;
        let took = self.process.cpu_time()? - before;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let all_done = format!("{} succeeded, 0 failed", shape.n_requests);
        anyhow::ensure!(said.contains(&all_done), "{} {}: {said}", self.name, shape.name);
        anyhow::ensure!(said.contains(&format!("status codes: {} 2xx", shape.n_requests)), "{said}");
        let text = std::fs::read_to_string(log)?;
        let mut times: Vec<u64> = text.lines().filter_map(|l| l.split('\t').nth(2)?.parse().ok()).collect();
        anyhow::ensure!(times.len() == shape.n_requests, "{} lines in the log of h2load", times.len());
        times.sort_unstable();
        let p99 = times[times.len() * 99 / 100] as f64;
        Ok(Figures { cpu: took.as_secs_f64() * 1e6 / shape.n_requests as f64, p99 })
    }
}

/// The child: the balancer with one worker, and a snapshot with one app for the host 127.0.0.1 and on `plain`.
fn balancer(
    tls: SocketAddr,
    plain: SocketAddr,
    endpoint: SocketAddr,
    certificate: &str,
) -> anyhow::Result<()> {
    let (publisher, subscriber) = channel();
    let mut catalog = Catalog::new(CatalogConfig { framework: "marathon".into(), vip_pools: vec![] });
    let mut app = app("/bench", endpoint);
    app.services[0].service_port = Some(plain.port());
    let labels = [("HAPROXY_0_VHOST", "127.0.0.1"), ("HAPROXY_0_STICKY", "true")];
    app.labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    catalog.replace_all(vec![AppUpdate { app, problems: vec![] }], vec![]);
    publisher.publish(catalog.snapshot().context("the first snapshot is always taken")?);
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut config = lb_http::Config {
        http_listen: None,
        appid_listen: None,
        https_listen: Some(tls),
        http2: lb_http::Http2::WithPriorKnowledge,
        ..lb_http::Config::default()
    };
    config.tls.certificates = vec![certificate.into()];
    let (plane, workers) =
        control.block_on(lb_http::start(config, subscriber, 1, CancellationToken::new()))?;
    support::serve(&control, workers, lb_http::Worker::run, plane.applied(), || plane.problems())
}
