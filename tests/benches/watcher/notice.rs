//! What a client of the HTTP plane notices while all apps change at once: the 99th percentile of its requests.
//!
//! The machine may be a guest whose cores are taken away for milliseconds at a time, which is more than a request
//! takes. A thread of real-time priority on each core tells when that happened; requests that met such a stall are left
//! out, and counted. It does not judge the figures.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tests::client;
use tests::scheduler::{ScriptedInstance, ScriptedScheduler};
use tests::waymark::Waymark;

use crate::support::pin;
use crate::{N_INSTANCES, generation, set, usage};

/// Full syncs during which clients of the HTTP plane are watched.
const N_SYNCS: usize = 10;
/// Between two requests of the client that measures.
const PACE: Duration = Duration::from_micros(500);
const PROBE_PORT: u16 = 9_999;
/// How often it is looked whether a core is there, and how late that look may be.
const LOOK: Duration = Duration::from_micros(250);
const LATE: Duration = Duration::from_micros(150);
/// After a stall, until requests that it held up are through.
const RECOVERY: Duration = Duration::from_millis(2);

/// When a core of this machine was not there for the programs on it.
struct Stalls {
    stop: Arc<AtomicBool>,
    lookouts: Vec<JoinHandle<io::Result<Vec<Range<Instant>>>>>,
}

impl Stalls {
    fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lookouts = (0..n_cores).map(|core| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || look_out(core, &stop))
        });
        Self { lookouts: lookouts.collect(), stop }
    }

    fn end(self) -> anyhow::Result<Vec<Range<Instant>>> {
        self.stop.store(true, Relaxed);
        let mut stalls = Vec::new();
        for lookout in self.lookouts {
            stalls.extend(lookout.join().map_err(|_| anyhow::anyhow!("a lookout panicked"))??);
        }
        Ok(stalls)
    }
}

/// Gives the calling thread a core whenever it wants one.
fn go_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads the parameter, which lives on this stack.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn look_out(core: usize, stop: &AtomicBool) -> io::Result<Vec<Range<Instant>>> {
    pin(core)?;
    go_first()?;
    let mut stalls = Vec::new();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        std::thread::park_timeout(LOOK);
        let ended = Instant::now();
        if ended - began > LOOK + LATE {
            stalls.push(began..ended + RECOVERY);
        }
    }
    Ok(stalls)
}

/// Answers requests for as long as the process lives.
fn backend() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        // As the client, which tells when it may not; the threads below inherit it.
        let _ = go_first();
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|n| n > 0) {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(port)
}

struct Taken {
    due: Instant,
    time: Duration,
}

/// Asks at a steady pace until told to stop.
fn probe(address: SocketAddr, stop: &AtomicBool) -> anyhow::Result<Vec<Taken>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(client::DEADLINE))?;
    // It stands for another machine, and so does the endpoint: neither is to wait for a core of this one.
    go_first().context("no right to real-time priority: run this as root")?;
    let (mut taken, mut due, mut response) = (Vec::new(), Instant::now(), [0; 4096]);
    while !stop.load(Relaxed) {
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
        // A request that could not begin in time because the one before was slow counts from when it was due.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n")?;
        let mut n_read = 0;
        while !response[..n_read].ends_with(b"\r\n\r\nok") {
            let n = stream.read(&mut response[n_read..])?;
            anyhow::ensure!(n > 0, "closed by the plane");
            n_read += n;
        }
        anyhow::ensure!(response.starts_with(b"HTTP/1.1 200"), "not served");
        taken.push(Taken { due, time: due.elapsed() });
        due += PACE;
    }
    Ok(taken)
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

async fn sync_and_wait(
    scheduler: &ScriptedScheduler,
    waymark: &Waymark,
    list: &Arc<[u8]>,
) -> anyhow::Result<()> {
    let before = generation(waymark).await?;
    scheduler.answer_list(Some(Arc::clone(list)));
    scheduler.event("group_change_success", &json!({"eventType": "group_change_success", "groupId": "/"}))?;
    let target = format!("/api/status?after={before}&wait=5s");
    for _ in 0..6 {
        let status: serde_json::Value =
            serde_json::from_str(&client::get(waymark.address("stats"), &target).await?.text())?;
        if status["applied"].as_u64().context("no generation")? > before {
            return Ok(());
        }
    }
    anyhow::bail!("not applied: still at generation {before}")
}

/// What a client of the HTTP plane sees while all apps change at once, again and again.
pub async fn of_syncs(scheduler: &ScriptedScheduler, waymark: &Waymark, n_apps: usize) -> anyhow::Result<()> {
    let endpoint = [ScriptedInstance { task_id: "probe.1".to_owned(), port: backend()? }];
    scheduler.set_app("/probe", PROBE_PORT, json!({"HAPROXY_0_MODE": "http"}), &endpoint);
    let lists: Vec<Arc<[u8]>> = [N_INSTANCES, N_INSTANCES - 1]
        .map(|n_instances| {
            (0..n_apps).for_each(|app| set(scheduler, app, n_instances));
            scheduler.list()
        })
        .into();
    sync_and_wait(scheduler, waymark, &lists[0]).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (address, stopped) = (waymark.service(PROBE_PORT), Arc::clone(&stop));
    let stalls = Stalls::watch();
    let probing = std::thread::spawn(move || probe(address, &stopped));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut syncs = Vec::new();
    for n in 1..=N_SYNCS {
        let began = Instant::now();
        sync_and_wait(scheduler, waymark, &lists[n % 2]).await?;
        syncs.push(began..Instant::now());
    }
    stop.store(true, Relaxed);
    let mut taken = probing.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let stalls = stalls.end()?;
    let n_all = taken.len();
    taken.retain(|one| !stalls.iter().any(|stall| one.due < stall.end && stall.start < one.due + one.time));
    let times = |meets: &dyn Fn(Instant) -> bool| {
        p99(taken.iter().filter(|one| meets(one.due)).map(|one| one.time).collect())
    };
    let before = times(&|at| at < syncs[0].start);
    let during = times(&|at| syncs.iter().any(|sync| sync.contains(&at)));
    let length: Duration = syncs.iter().map(|sync| sync.end - sync.start).sum();
    println!(
        "{n_apps:>6} apps  HTTP p99: {:.3} ms before, {:.3} ms during full syncs of {:.0} ms each; of {n_all} requests, \
         {} met a stall of the machine and do not count; peak RSS {} MiB",
        before.as_secs_f64() * 1e3,
        during.as_secs_f64() * 1e3,
        length.as_secs_f64() / N_SYNCS as f64 * 1e3,
        n_all - taken.len(),
        usage(waymark.pid().context("it runs")?)?.resident_mib
    );
    scheduler.answer_list(None);
    Ok(())
}
