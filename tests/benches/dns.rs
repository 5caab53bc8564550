//! 10,000 A names over UDP, against Knot DNS with one worker, in the same run.
//!
//! `cargo bench -p tests --bench dns`. Each server is a process of its own, pinned to one core; dnsperf asks on another.
//! Rounds are interleaved. What counts is the CPU time of the server's process per query, which is steady where
//! throughput moves with the neighbours. Without knotd it reports Waymark alone; without dnsperf it cannot run.
//! `-- srv` and `-- tcp` measure SRV queries and queries over TCP as well.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{AppUpdate, Catalog, CatalogConfig};
use event_watcher::publish::channel;
use tokio_util::sync::CancellationToken;

mod support;

use support::{LOAD_CORE, Pinned, app, is_not_installed, median, pinned};

const N_NAMES: u32 = 10_000;
const N_ROUNDS: usize = 7;
const ROUND_SECONDS: u64 = 3;
/// The highest ratio of CPU times.
const GOAL: f64 = 1.30;
const READY_WITHIN: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "serve-dns") {
        return serve();
    }
    let scratch = tempfile::tempdir()?;
    let mine = Server::waymark()?;
    let theirs = match Server::knot(scratch.path()) {
        Ok(server) => Some(server),
        Err(error) if is_not_installed(&error) => {
            println!("knotd is not installed: no comparison (Debian: apt-get install knot)");
            None
        }
        Err(error) => return Err(error),
    };
    println!(
        "medians of {N_ROUNDS} rounds of {ROUND_SECONDS} s   CPU µs/query: waymark   knot   ratio   goal   queries/s: waymark   knot"
    );
    let wanted = |load: &&Load| load.name == "a" || args.iter().any(|a| a == load.name);
    for load in LOADS.iter().filter(wanted) {
        let queries = scratch.path().join(load.name);
        std::fs::write(&queries, (0..N_NAMES).map(load.query).collect::<String>())?;
        let (mut of_mine, mut of_theirs) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            of_mine.push(mine.measure(load, &queries)?);
            of_theirs.extend(theirs.as_ref().map(|s| s.measure(load, &queries)).transpose()?);
        }
        let cpu = |all: &[Measured]| median(all.iter().map(|m| m.cpu_us));
        let rate = |all: &[Measured]| median(all.iter().map(|m| m.rate));
        println!(
            "{:<46} {:>9.2} {:>6.2} {:>7.2} {:>6} {:>20.0} {:>6.0}",
            load.what,
            cpu(&of_mine),
            cpu(&of_theirs),
            cpu(&of_mine) / cpu(&of_theirs),
            load.goal.map_or("–".to_owned(), |goal| format!("{goal:.2}")),
            rate(&of_mine),
            rate(&of_theirs),
        );
    }
    Ok(())
}

struct Load {
    name: &'static str,
    what: &'static str,
    transport: &'static str,
    goal: Option<f64>,
    query: fn(u32) -> String,
}

const LOADS: [Load; 3] = [
    Load {
        name: "a",
        what: "A over UDP",
        transport: "udp",
        goal: Some(GOAL),
        query: |i| format!("app{i}.marathon.mesos A\n"),
    },
    Load {
        name: "srv",
        what: "SRV with its target's address over UDP",
        transport: "udp",
        goal: None,
        query: |i| format!("_app{i}._tcp.marathon.mesos SRV\n"),
    },
    Load {
        name: "tcp",
        what: "A over TCP, 20 connections",
        transport: "tcp",
        goal: None,
        query: |i| format!("app{i}.marathon.mesos A\n"),
    },
];

#[derive(Clone, Copy)]
struct Measured {
    cpu_us: f64,
    rate: f64,
}

/// A server in a process of its own.
struct Server {
    process: Pinned,
    address: SocketAddr,
}

impl Server {
    fn waymark() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve-dns").stdout(Stdio::piped());
        let mut process = Pinned::start(&mut command).context("cannot start the DNS server")?;
        let stdout = process.0.stdout.take().context("the child has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the child said {line:?}"))?;
        Ok(Self { process, address })
    }

    fn knot(scratch: &Path) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut zone =
            "$ORIGIN mesos.\n$TTL 5\n@ SOA ns1 root.ns1 1 60 180 86400 1\n@ NS ns1\nns1 A 127.0.0.1\n"
                .to_owned();
        for i in 0..N_NAMES {
            writeln!(
                zone,
                "app{i}.marathon A {ip}\n_app{i}._tcp.marathon SRV 0 1 31000 app{i}.marathon",
                ip = ip(i)
            )?;
        }
        std::fs::write(scratch.join("mesos.zone"), zone)?;
        let directory = scratch.display();
        let port = address.port();
        std::fs::write(
            scratch.join("knot.conf"),
            format!(
                "server:\n    listen: 127.0.0.1@{port}\n    rundir: {directory}\n    udp-workers: 1\n    tcp-workers: 1\n    \
                 background-workers: 1\ndatabase:\n    storage: {directory}\nlog:\n  - target: stderr\n    any: error\n\
                 zone:\n  - domain: mesos\n    storage: {directory}\n    file: mesos.zone\n"
            ),
        )?;
        let mut command = Command::new("knotd");
        command.arg("-c").arg(scratch.join("knot.conf"));
        let process = Pinned::start(&mut command)?;
        let server = Self { process, address };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Asks for the last name until it is there.
    fn wait_until_ready(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in [&format!("app{}", N_NAMES - 1), "marathon", "mesos", ""] {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 1, 0, 1]);
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            socket.send_to(&query, self.address)?;
            let mut reply = [0; 512];
            if matches!(socket.recv(&mut reply), Ok(12..)) && reply[7] == 1 {
                return Ok(());
            }
        }
        anyhow::bail!("the server at {} did not become ready", self.address)
    }

    fn measure(&self, load: &Load, queries: &Path) -> anyhow::Result<Measured> {
        let before = self.process.cpu_time()?;
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-p", &self.address.port().to_string(), "-m", load.transport]);
        command.args(["-c", "20", "-T", "1", "-l", &ROUND_SECONDS.to_string(), "-d"]).arg(queries);
        pinned(&mut command, LOAD_CORE);
        let output = command.output().context("cannot run dnsperf (Debian: apt-get install dnsperf)")?;
        let cpu_us = (self.process.cpu_time()? - before).as_secs_f64() * 1e6;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = |key: &str| -> anyhow::Result<f64> {
            let line = text.lines().find(|l| l.trim_start().starts_with(key));
            let word = line.and_then(|l| l.split_once(':')?.1.split_whitespace().next());
            word.with_context(|| format!("dnsperf did not say {key:?}:\n{text}"))?.parse().map_err(Into::into)
        };
        let n_answered = value("Queries completed:")?;
        anyhow::ensure!(
            text.contains("Response codes:       NOERROR") && value("Queries lost:")? <= n_answered / 1000.0,
            "the answers are not what they should be:\n{text}"
        );
        Ok(Measured { cpu_us: cpu_us / n_answered, rate: value("Queries per second:")? })
    }
}

/// The child's part: the real server with one worker, until killed.
fn serve() -> anyhow::Result<()> {
    let mut catalog = Catalog::new(CatalogConfig {
        framework: "marathon".into(),
        vip_pools: vec!["127.11.0.0/16".parse()?],
    });
    let updates = (0..N_NAMES)
        .map(|i| AppUpdate { app: app(&format!("app{i}"), (ip(i), 31000).into()), problems: vec![] });
    catalog.replace_all(updates.collect(), vec![]);
    let snapshot = catalog.snapshot().context("a first snapshot is always taken")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (publisher, subscriber) = channel();
        let config =
            dns::Config { listen: vec![free_address()?], upstreams: Some(vec![]), ..dns::Config::default() };
        let (plane, workers) = dns::start(config, subscriber, None, 1, CancellationToken::new()).await?;
        publisher.publish(Arc::clone(&snapshot));
        plane.applied().reached(snapshot.generation).await?;
        println!("{}", plane.addresses()[0]);
        for worker in workers {
            worker.run().await;
        }
        Ok(())
    })
}

fn ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + i)
}

/// An address that is free for UDP now.
fn free_address() -> io::Result<SocketAddr> {
    UdpSocket::bind("127.0.0.1:0")?.local_addr()
}
