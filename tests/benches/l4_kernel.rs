//! The kernel planes against the direct path, in one network namespace and in the same run; and what their changes
//! cost.
//!
//! `cargo bench -p tests --bench l4_kernel`, as root; `-- ebpf` or `-- nft` for one of them. Clients and endpoints are
//! threads of this process; direct and VIP take turns in short rounds, and what is reported is the median of the
//! rounds' ratios. TIME_WAIT of the clients' own TCP is made short of an obstacle for both paths alike (tcp_tw_reuse),
//! because no plane can help there.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_watcher::catalog::Protocol::{self, Tcp, Udp};
use l4_vip::kernel::ebpf::{Ebpf, EbpfConfig, Limits};
use l4_vip::kernel::nft::{Nft, NftConfig, Ownership};
use l4_vip::kernel::{Backend, Change, Frontend, KernelPlane, Service};
use tests::cgroup::Cgroup;
use tests::netns::{Netns, is_root};

mod support;

use support::median;

const N_ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(400);
const MESSAGE: [u8; 128] = [b'x'; 128];
const N_CLIENTS: usize = 4;
/// Kept connections of each client.
const N_KEPT: usize = 16;
const HOST: &str = "10.9.0.1";
const VIP: &str = "11.1.2.3:80";
const N_VIPS: u32 = 10_000;
const N_CHANGES: u32 = 1_000;

fn main() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("bench")?;
    host.add_address("lo", &format!("{HOST}/32"))?;
    host.set_variable("net/ipv4/tcp_tw_reuse", "1")?;
    host.set_variable("net/ipv4/ip_local_port_range", "10000 60999")?;
    let cgroup = Cgroup::new()?;
    let wanted: Vec<String> = std::env::args().collect();
    let chosen: Vec<&Candidate> = CANDIDATES.iter().filter(|c| wanted.iter().any(|w| w == c.name)).collect();
    let candidates = if chosen.is_empty() { CANDIDATES.iter().collect() } else { chosen };
    host.run(|| {
        cgroup.enter()?;
        for candidate in candidates {
            let open = || (candidate.open)(&cgroup);
            traffic(candidate, &open)?;
            changes(candidate, &open)?;
        }
        Ok(())
    })
}

type Open<'a> = &'a dyn Fn() -> anyhow::Result<Box<dyn KernelPlane>>;

struct Candidate {
    name: &'static str,
    open: fn(&Cgroup) -> anyhow::Result<Box<dyn KernelPlane>>,
    /// Ratios to the direct path: exchanges, connections, datagrams.
    goals: [f64; 3],
    /// Milliseconds for one change.
    change_goal: f64,
}

const CANDIDATES: [Candidate; 2] = [
    Candidate { name: "ebpf", open: open_ebpf, goals: [0.95, 0.98, 0.90], change_goal: 0.1 },
    Candidate { name: "nft", open: open_nft, goals: [0.74, 0.75, 0.72], change_goal: 0.2 },
];

fn open_ebpf(cgroup: &Cgroup) -> anyhow::Result<Box<dyn KernelPlane>> {
    let config = EbpfConfig {
        cgroup: Some(cgroup.path().to_owned()),
        pools: vec!["11.0.0.0/8".parse()?],
        limits: Limits::default(),
    };
    Ok(Box::new(Ebpf::open(config)?))
}

fn open_nft(_cgroup: &Cgroup) -> anyhow::Result<Box<dyn KernelPlane>> {
    let config = NftConfig { pools: vec!["11.0.0.0/8".parse()?], ownership: Ownership::Exclusive };
    Ok(Box::new(Nft::open(config)?))
}

fn service(protocol: Protocol, address: SocketAddr, backends: &[SocketAddr]) -> Service {
    let backends = backends.iter().map(|address| Backend { address: *address, weight: 1 }).collect();
    Service { frontend: Frontend { protocol, address }, backends, affinity: None }
}

fn traffic(candidate: &Candidate, open: Open<'_>) -> anyhow::Result<()> {
    let vip: SocketAddr = VIP.parse()?;
    let tcp = [tcp_endpoint()?, tcp_endpoint()?];
    let udp = [udp_endpoint()?, udp_endpoint()?];
    let [of_exchanges, of_connections, of_datagrams] = candidate.goals;
    let loads: [(&str, f64, [SocketAddr; 2], Load); 4] = [
        ("exchanges/s over kept connections", of_exchanges, tcp, exchanges),
        ("new connections/s", of_connections, tcp, connections),
        ("UDP queries/s, connected sockets", of_datagrams, udp, connected_datagrams),
        ("UDP queries/s, unconnected sockets", of_datagrams, udp, datagrams),
    ];
    // Without the plane there is no program and no connection tracking: that is the direct path. Both ways of a
    // round must be measured close together, so the plane comes and goes.
    println!("{:<36} {:>10} {:>10} {:>7} {:>6}", "two backends", "direct", candidate.name, "ratio", "goal");
    for (name, goal, endpoints, load) in loads {
        let (mut direct, mut through, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            let without = measure(&endpoints, load)?;
            let mut plane = open()?;
            plane.reconcile(&[service(Tcp, vip, &tcp), service(Udp, vip, &udp)])?;
            let with = measure(&[vip], load)?;
            plane.flush()?;
            direct.push(without);
            through.push(with);
            ratios.push(with / without);
        }
        println!(
            "{name:<36} {:>10.0} {:>10.0} {:>7.2} {goal:>6.2}",
            median(direct),
            median(through),
            median(ratios)
        );
    }
    Ok(())
}

/// Work per second of all clients, each at one of the addresses.
fn measure(addresses: &[SocketAddr], load: Load) -> anyhow::Result<f64> {
    let is_over = AtomicBool::new(false);
    let n_done = AtomicU64::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..N_CLIENTS)
            .map(|n| {
                let address = addresses[n % addresses.len()];
                let (is_over, n_done) = (&is_over, &n_done);
                scope.spawn(move || load(address, is_over, n_done))
            })
            .collect();
        while n_done.load(Relaxed) < 1_000 && !clients.iter().any(|client| client.is_finished()) {
            thread::park_timeout(Duration::from_millis(5));
        }
        let (n_before, started) = (n_done.load(Relaxed), Instant::now());
        thread::park_timeout(ROUND);
        let rate = (n_done.load(Relaxed) - n_before) as f64 / started.elapsed().as_secs_f64();
        is_over.store(true, Relaxed);
        for client in clients {
            client.join().expect("a client returns its error")?;
        }
        Ok(rate)
    })
}

type Load = fn(SocketAddr, &AtomicBool, &AtomicU64) -> anyhow::Result<()>;

fn exchanges(address: SocketAddr, is_over: &AtomicBool, n_done: &AtomicU64) -> anyhow::Result<()> {
    let mut kept = (0..N_KEPT).map(|_| connect(address)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut answer = MESSAGE;
    while !is_over.load(Relaxed) {
        for stream in &mut kept {
            stream.write_all(&MESSAGE)?;
        }
        for stream in &mut kept {
            stream.read_exact(&mut answer)?;
        }
        n_done.fetch_add(N_KEPT as u64, Relaxed);
    }
    Ok(())
}

fn connections(address: SocketAddr, is_over: &AtomicBool, n_done: &AtomicU64) -> anyhow::Result<()> {
    let mut answer = MESSAGE;
    while !is_over.load(Relaxed) {
        let mut stream = connect(address)?;
        stream.write_all(&MESSAGE)?;
        stream.read_exact(&mut answer)?;
        n_done.fetch_add(1, Relaxed);
    }
    Ok(())
}

fn connected_datagrams(address: SocketAddr, is_over: &AtomicBool, n_done: &AtomicU64) -> anyhow::Result<()> {
    let socket = udp_client()?;
    socket.connect(address)?;
    ask(&socket, is_over, n_done, |message| socket.send(message))
}

fn datagrams(address: SocketAddr, is_over: &AtomicBool, n_done: &AtomicU64) -> anyhow::Result<()> {
    let socket = udp_client()?;
    ask(&socket, is_over, n_done, |message| socket.send_to(message, address))
}

fn udp_client() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((HOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn ask(
    socket: &UdpSocket,
    is_over: &AtomicBool,
    n_done: &AtomicU64,
    send: impl Fn(&[u8]) -> std::io::Result<usize>,
) -> anyhow::Result<()> {
    let mut answer = MESSAGE;
    while !is_over.load(Relaxed) {
        for _ in 0..N_KEPT {
            send(&MESSAGE)?;
        }
        for _ in 0..N_KEPT {
            socket.recv_from(&mut answer)?;
        }
        n_done.fetch_add(N_KEPT as u64, Relaxed);
    }
    Ok(())
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("no connection")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Sends everything back; a thread for each connection, which both paths pay alike.
fn tcp_endpoint() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((HOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn udp_endpoint() -> anyhow::Result<SocketAddr> {
    let socket = UdpSocket::bind((HOST, 0))?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            // A client of the round before may have gone.
            let _ = socket.send_to(&buffer[..n], client);
        }
    });
    Ok(address)
}

fn changes(candidate: &Candidate, open: Open<'_>) -> anyhow::Result<()> {
    let (resident, slab) = (memory("/proc/self/status", "VmRSS:")?, memory("/proc/meminfo", "Slab:")?);
    let all: Vec<Service> = (0..N_VIPS).map(|n| vip(n, 3)).collect();
    let mut plane = open()?;
    let started = Instant::now();
    plane.reconcile(&all)?;
    println!("\n{N_VIPS} VIPs of 3 backends, programmed at once: {:.0} ms (goal 1000)", millis(started));
    let started = Instant::now();
    plane.reconcile(&all)?;
    println!("compared with the kernel, nothing to do: {:.0} ms", millis(started));
    let goal = candidate.change_goal;
    let mut one = |what: &str, n_backends: fn(u32) -> u32, shift: fn(u32) -> u32| -> anyhow::Result<()> {
        let mut took: Vec<f64> = Vec::new();
        for n in 0..N_CHANGES {
            let mut service = vip(n * 7 % N_VIPS, n_backends(n));
            service.backends[0].address.set_port(9_000 + shift(n) as u16);
            let change = [Change::Set(service)];
            let started = Instant::now();
            plane.apply(&change)?;
            took.push(millis(started));
        }
        println!("{what}: {:.3} ms (goal {goal})", median(took));
        Ok(())
    };
    one("one backend replaced", |_| 3, |n| n % 1_000)?;
    one("one backend fewer, the rest shared out anew", |_| 2, |n| n % 1_000)?;
    one("one backend more", |_| 3, |n| n % 1_000)?;
    let grown = |before: u64, now: u64| now.saturating_sub(before) as f64 / 1024.0;
    println!(
        "memory: {:.0} MiB of this process, {:.0} MiB of the kernel (goal 100)",
        grown(resident, memory("/proc/self/status", "VmRSS:")?),
        grown(slab, memory("/proc/meminfo", "Slab:")?)
    );
    plane.flush()?;
    Ok(())
}

fn vip(n: u32, n_backends: u32) -> Service {
    let vip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(11, 1, 0, 0)) + n);
    let backends: Vec<SocketAddr> = (0..n_backends)
        .map(|b| SocketAddr::new(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n * 4 + b)), 8_080))
        .collect();
    service(Tcp, SocketAddr::new(IpAddr::from(vip), 80), &backends)
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A line of a file of /proc, in KiB.
fn memory(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
