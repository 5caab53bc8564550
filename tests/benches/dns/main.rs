//! DNS against Knot, NSD, Unbound, BIND and dnsmasq, with one worker each, in the same run.
//!
//! `cargo bench -p tests --bench dns`. Each server is a process of its own, pinned to one core; who asks is on another:
//! dnsperf, and over UDP also a generator of our own, because dnsperf needs more time for a query than these servers
//! and so measures itself (`busy` says how much of the server's core was used). Rounds are interleaved. The CPU time of
//! the server's processes per query is steady where throughput moves with the neighbours. Peers that are not installed
//! are left out; without dnsperf nothing can be compared. `-- a srv tcp memory change flood` says which measurements;
//! `a` alone is the default. `-- queries N` only asks N times, for callgrind (`benches/dns_instructions.sh`).

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

mod alone;
mod generator;
mod peers;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use peers::{Server, query};
use support::{LOAD_CORE, is_not_installed, median, pin, pinned};

/// Names that every server knows: `app<i>.marathon.mesos` at 10.0.0.1 + i, and its SRV record.
const N_NAMES: u32 = 10_000;
const N_ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
/// Of the CPU time per query, against Knot's.
const CPU_GOAL: f64 = 0.92;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [command, n_names, upstream @ ..] = &args[..]
        && command == "serve-dns"
    {
        return alone::serve(n_names.parse()?, upstream.first().map(|a| a.parse()).transpose()?);
    }
    if let [command, n] = &args[..]
        && command == "queries"
    {
        return alone::ask(n.parse()?);
    }
    let wanted = |name: &str| args.iter().any(|a| a == name) || args.is_empty() && name == "a";
    for load in LOADS.iter().filter(|load| wanted(load.name)) {
        compare(load)?;
    }
    if wanted("memory") {
        alone::memory()?;
    }
    if wanted("change") {
        alone::change()?;
    }
    if wanted("flood") {
        alone::flood()?;
    }
    Ok(())
}

struct Load {
    name: &'static str,
    what: &'static str,
    /// As dnsperf calls it.
    transport: &'static str,
    asked: fn(u32) -> String,
    /// Of what is asked for, in words and on the wire.
    record_type: (&'static str, u16),
}

const A: (&str, u16) = ("A", 1);
const SRV: (&str, u16) = ("SRV", 33);

const LOADS: [Load; 3] = [
    Load { name: "a", what: "A over UDP", transport: "udp", asked: name_of, record_type: A },
    Load {
        name: "srv",
        what: "SRV with its target's address over UDP",
        transport: "udp",
        asked: |i| format!("_app{i}._tcp.marathon.mesos"),
        record_type: SRV,
    },
    Load {
        name: "tcp",
        what: "A over TCP, 20 connections",
        transport: "tcp",
        asked: name_of,
        record_type: A,
    },
];

fn name_of(i: u32) -> String {
    format!("app{i}.marathon.mesos")
}

impl Load {
    fn suits(&self, server: &Server) -> bool {
        match self.name {
            "srv" => server.has_services,
            // It forks for each connection, and ends it after 100 queries.
            "tcp" => server.name != "dnsmasq",
            _ => true,
        }
    }
}

#[derive(Clone, Copy)]
struct Measured {
    cpu_us: f64,
    /// Of the CPU time, what was spent outside the kernel.
    user_share: f64,
    rate: f64,
    /// The part of its core that the server used.
    busy: f64,
}

fn compare(load: &Load) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut servers = vec![Server::waymark(N_NAMES, None)?];
    for start in [Server::knot, Server::nsd, Server::unbound, Server::bind, Server::dnsmasq] {
        match start(scratch.path()) {
            Ok(server) if load.suits(&server) => servers.push(server),
            Ok(_) => {}
            Err(error) if is_not_installed(&error) => println!("not installed: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    let (word, number) = load.record_type;
    let path = scratch.path().join("queries");
    let lines = (0..N_NAMES).map(|i| format!("{} {word}\n", (load.asked)(i)));
    std::fs::write(&path, lines.collect::<String>())?;
    let packets: Vec<Vec<u8>> = (0..N_NAMES).map(|i| query(&(load.asked)(i), number)).collect();
    if load.transport == "udp" {
        pin(LOAD_CORE)?;
        let heading = format!("{}, asked by a generator that keeps the servers busy", load.what);
        in_rounds(&heading, &servers, |server| {
            measure(server, || {
                let asked = generator::saturate(server.address, &packets, ROUND)?;
                anyhow::ensure!(asked.n_lost <= asked.n_answered / 1000, "{}: {asked:?}", server.name);
                Ok(asked.n_answered as f64)
            })
        })?;
    }
    in_rounds(&format!("{}, asked by dnsperf", load.what), &servers, |server| {
        measure(server, || dnsperf(server, load, &path))
    })
}

fn in_rounds(
    heading: &str,
    servers: &[Server],
    measure: impl Fn(&Server) -> anyhow::Result<Measured>,
) -> anyhow::Result<()> {
    let mut rounds: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..N_ROUNDS {
        for (server, rounds) in servers.iter().zip(&mut rounds) {
            rounds.push(measure(server)?);
        }
    }
    let middle = |rounds: &[Measured], of: fn(&Measured) -> f64| median(rounds.iter().map(of));
    let knot = servers.iter().position(|server| server.name == "knot");
    let knot_cpu = knot.map_or(f64::NAN, |at| middle(&rounds[at], |m| m.cpu_us));
    let mine = middle(&rounds[0], |m| m.rate);
    println!(
        "{heading}: medians of {N_ROUNDS} interleaved rounds of {ROUND:?} (goals: CPU <= {CPU_GOAL} of knot's, rate >= the fastest's)"
    );
    println!(
        "  server      CPU us/query   (user  system)  of knot's   busy   queries/s  waymark's rate to it"
    );
    for (server, rounds) in servers.iter().zip(&rounds) {
        let (cpu, rate) = (middle(rounds, |m| m.cpu_us), middle(rounds, |m| m.rate));
        let user = cpu * middle(rounds, |m| m.user_share);
        println!(
            "  {:<10} {cpu:>13.2} {user:>7.2} {:>7.2} {:>11.2} {:>6.2} {rate:>11.0} {:>21.2}",
            server.name,
            cpu - user,
            cpu / knot_cpu,
            middle(rounds, |m| m.busy),
            mine / rate
        );
    }
    Ok(())
}

/// What a server uses while `ask` asks it and tells how many answers there were.
fn measure(server: &Server, ask: impl FnOnce() -> anyhow::Result<f64>) -> anyhow::Result<Measured> {
    let (began, before) = (Instant::now(), server.cpu_time()?);
    let n_answered = ask()?;
    let (after, elapsed) = (server.cpu_time()?, began.elapsed().as_secs_f64());
    let cpu = (after.total - before.total).as_secs_f64();
    let n_user = (after.n_user_ticks - before.n_user_ticks) as f64;
    let n_system = (after.n_system_ticks - before.n_system_ticks) as f64;
    Ok(Measured {
        cpu_us: cpu * 1e6 / n_answered,
        user_share: n_user / (n_user + n_system).max(1.0),
        rate: n_answered / elapsed,
        busy: cpu / elapsed,
    })
}

/// The number of answers.
fn dnsperf(server: &Server, load: &Load, queries: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new("dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &server.address.port().to_string(), "-m", load.transport]);
    command.args(["-c", "20", "-T", "1", "-l", &ROUND.as_secs().to_string(), "-d"]).arg(queries);
    pinned(&mut command, LOAD_CORE);
    let output = command.output().context("cannot run dnsperf (Debian: apt-get install dnsperf)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| -> anyhow::Result<f64> {
        let line = text.lines().find(|l| l.trim_start().starts_with(key));
        let word = line.and_then(|l| l.split_once(':')?.1.split_whitespace().next());
        word.with_context(|| format!("dnsperf did not say {key:?}:\n{text}"))?.parse().map_err(Into::into)
    };
    let n_answered = value("Queries completed:")?;
    anyhow::ensure!(
        text.contains("Response codes:       NOERROR") && value("Queries lost:")? <= n_answered / 1000.0,
        "{}: the answers are not what they should be:\n{text}",
        server.name
    );
    Ok(n_answered)
}
