//! What is measured of Waymark's DNS alone: its memory, how soon a change is answered, and what a flood of questions
//! for foreign names does to it.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::{AppUpdate, Catalog, CatalogConfig};
use event_watcher::publish::channel;
use tokio_util::sync::CancellationToken;

use crate::name_of;
use crate::peers::{Server, a_query, free_address, ip};
use crate::support::{LOAD_CORE, app, median, pin};

/// Each app has eleven records or more.
const N_APPS_OF_100_000_RECORDS: u32 = 9_100;
const N_CHANGES: u32 = 200;
const FLOOD_PER_SEC: u32 = 10_000;
const FLOOD: Duration = Duration::from_secs(10);
const LOCAL_PER_SEC: u32 = 500;

/// Queries in flight under callgrind, about as many as a batch has under load.
const WINDOW: u32 = 16;

/// The child's part: the real server with one worker, until its parent lets go of its input.
pub fn serve(n_names: u32, upstream: Option<SocketAddr>) -> anyhow::Result<()> {
    let mut catalog = catalog()?;
    catalog.replace_all((0..n_names).map(update).collect(), vec![]);
    let snapshot = catalog.snapshot().context("a first snapshot is always taken")?;
    drop(catalog);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (publisher, subscriber) = channel();
        let upstreams = Some(upstream.into_iter().collect());
        let config =
            dns::Config { listen: vec!["127.0.0.1:0".parse()?], upstreams, ..dns::Config::default() };
        let cancel = CancellationToken::new();
        let (plane, workers) = dns::start(config, subscriber, None, 1, cancel.clone()).await?;
        publisher.publish(Arc::clone(&snapshot));
        plane.applied().reached(snapshot.generation).await?;
        println!("{}", plane.addresses()[0]);
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            cancel.cancel();
        });
        for worker in workers {
            worker.run().await;
        }
        Ok(())
    })
}

/// Asks for the names in turn, and waits until the server has ended.
pub fn ask(n: u32) -> anyhow::Result<()> {
    let server = Server::waymark(crate::N_NAMES, None)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reply = [0; 512];
    for first in (0..n).step_by(WINDOW as usize) {
        let window = first..n.min(first + WINDOW);
        for i in window.clone() {
            socket.send(&a_query(&name_of(i % crate::N_NAMES)))?;
        }
        for _ in window {
            socket.recv(&mut reply).context("a query was not answered")?;
        }
    }
    server.end()
}

fn catalog() -> anyhow::Result<Catalog> {
    Ok(Catalog::new(CatalogConfig {
        framework: "marathon".into(),
        vip_pools: vec!["127.11.0.0/16".parse()?],
    }))
}

fn update(i: u32) -> AppUpdate {
    AppUpdate { app: app(&format!("app{i}"), (ip(i), 31000).into()), problems: vec![] }
}

pub fn memory() -> anyhow::Result<()> {
    let empty = Server::waymark(0, None)?;
    let full = Server::waymark(N_APPS_OF_100_000_RECORDS, None)?;
    let (empty, full) = (resident_mb(empty.pid())?, resident_mb(full.pid())?);
    println!(
        "memory: {full:.1} MB resident with 100,000 records of {N_APPS_OF_100_000_RECORDS} apps, {empty:.1} MB without (goal: <= 60 MB)"
    );
    Ok(())
}

fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<f64>()? / 1024.0)
}

/// From the publishing of a snapshot to the answer that shows it, with 10,000 other apps.
pub fn change() -> anyhow::Result<()> {
    let mut catalog = catalog()?;
    catalog.replace_all((0..crate::N_NAMES).map(update).collect(), vec![]);
    let (publisher, subscriber) = channel();
    let address = free_address()?;
    let (started, is_started) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let config =
                dns::Config { listen: vec![address], upstreams: Some(vec![]), ..dns::Config::default() };
            let (plane, workers) = dns::start(config, subscriber, None, 1, CancellationToken::new()).await?;
            started.send(plane)?;
            for worker in workers {
                worker.run().await;
            }
            Ok(())
        })
    });
    let plane = is_started.recv()?;
    let snapshot = catalog.snapshot().context("a first snapshot is always taken")?;
    publisher.publish(Arc::clone(&snapshot));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(plane.applied().reached(snapshot.generation))?;

    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let query = a_query(&name_of(7));
    let mut times = Vec::new();
    for turn in 0..N_CHANGES {
        let new = ip(1_000_000 + turn);
        let update = AppUpdate { app: app("app7", (new, 31000).into()), problems: vec![] };
        let began = Instant::now();
        catalog.replace(update);
        publisher.publish(catalog.snapshot().context("an app has changed")?);
        let mut reply = [0; 512];
        loop {
            socket.send(&query)?;
            let n = socket.recv(&mut reply)?;
            if reply[..n].ends_with(&new.octets()) {
                break;
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    println!(
        "change: an instance's new address is answered after {:.2} ms (median of {N_CHANGES}), {worst:.2} ms at worst (goal: <= 5 ms)",
        median(times)
    );
    Ok(())
}

/// Random foreign names at a fixed rate, to an upstream that says nothing, while somebody asks for local names.
pub fn flood() -> anyhow::Result<()> {
    let silent = UdpSocket::bind("127.0.0.1:0")?;
    let server = Server::waymark(crate::N_NAMES, Some(silent.local_addr()?))?;
    pin(LOAD_CORE)?;
    let idle = local_p99(server.address, Duration::from_secs(3))?;
    let (before_mb, address) = (resident_mb(server.pid())?, server.address);
    let flood = std::thread::spawn(move || flood_with_random_names(address));
    let mut n_descriptors = 0;
    let mut worst_mb: f64 = 0.0;
    let mut flooded = Vec::new();
    while !flood.is_finished() {
        flooded.push(local_p99(server.address, Duration::from_secs(1))?);
        n_descriptors = n_descriptors.max(std::fs::read_dir(format!("/proc/{}/fd", server.pid()))?.count());
        worst_mb = worst_mb.max(resident_mb(server.pid())?);
    }
    let n = flood.join().map_err(|_| anyhow::anyhow!("the flood ended badly"))??;
    let flooded = median(flooded);
    println!(
        "flood: {n} random names in {FLOOD:?} to a silent upstream: at most {n_descriptors} descriptors, {worst_mb:.1} MB \
         ({before_mb:.1} MB before); local p99 {flooded:.0} us, idle {idle:.0} us, ratio {:.2} (goal: <= 2)",
        flooded / idle
    );
    Ok(())
}

fn flood_with_random_names(address: SocketAddr) -> anyhow::Result<u32> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let began = Instant::now();
    let mut n = 0;
    let mut reply = [0; 512];
    while began.elapsed() < FLOOD {
        let due = (began.elapsed().as_secs_f64() * f64::from(FLOOD_PER_SEC)) as u32;
        while n < due {
            let _ = socket.send(&a_query(&format!("r{n}x{}.example.com", std::process::id())));
            n += 1;
        }
        while socket.recv(&mut reply).is_ok() {}
        pause(Duration::from_millis(1));
    }
    Ok(n)
}

/// The latency that one answer in a hundred exceeds, in microseconds.
fn local_p99(address: SocketAddr, time: Duration) -> anyhow::Result<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let query = a_query(&name_of(7));
    let began = Instant::now();
    let mut times = Vec::new();
    let mut reply = [0; 512];
    while began.elapsed() < time {
        let asked = Instant::now();
        socket.send(&query)?;
        // A query that is lost took as long as whoever asks waits.
        match socket.recv(&mut reply) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
            Ok(_) | Err(_) => times.push(asked.elapsed().as_secs_f64() * 1e6),
        }
        pause(Duration::from_secs(1) / LOCAL_PER_SEC);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() * 99 / 100])
}

#[allow(clippy::disallowed_methods, reason = "a load has a pace, and nothing to wait for")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
