//! Connections that are held open and say little: what idle ones cost in memory, and what slow senders take from
//! others.
//!
//! Clients come from several addresses of the loopback network: a proxy may limit what one address holds.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const N_IDLE: usize = 10_000;
const N_SLOW: usize = 5_000;
const N_NORMAL: usize = 64;
const NORMAL_FOR: Duration = Duration::from_secs(5);
/// Below every proxy's limit for one client.
const PER_ADDRESS: usize = 400;
const REQUEST: &[u8] = b"GET /128 HTTP/1.1\r\nHost: bench.test\r\n\r\n";

/// Connections want a descriptor each, here and in the proxies that are started afterwards.
pub fn allow_descriptors() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only touch the structure.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// KiB of the process for each of many connections that have been answered once and wait; all must still serve then.
pub async fn idle(address: SocketAddr, process: u32) -> anyhow::Result<f64> {
    // Whatever is made once has been made.
    for client in 0..N_NORMAL {
        ask(&mut connect(address, client).await?).await?;
    }
    let before = resident_kib(process)?;
    let mut held = Vec::with_capacity(N_IDLE);
    for client in 0..N_IDLE {
        let mut stream = connect(address, client).await?;
        ask(&mut stream).await?;
        held.push(stream);
    }
    let after = resident_kib(process)?;
    for stream in &mut held {
        ask(stream).await.context("an idle connection does not serve any more")?;
    }
    Ok((after - before) / N_IDLE as f64)
}

/// Requests that were sent beside many half ones, and how many of them were served.
pub async fn slow(address: SocketAddr) -> anyhow::Result<(u64, u64)> {
    let mut half = Vec::with_capacity(N_SLOW);
    for client in 0..N_SLOW {
        let mut stream = connect(address, client).await?;
        stream.write_all(&REQUEST[..20]).await?;
        half.push(stream);
    }
    let end = Instant::now() + NORMAL_FOR;
    let mut normal = tokio::task::JoinSet::new();
    for client in 0..N_NORMAL {
        normal.spawn_local(async move {
            let (mut n_sent, mut n_served) = (0, 0);
            while Instant::now() < end {
                n_sent += 1;
                let Ok(mut stream) = connect(address, N_SLOW + client).await else { continue };
                if ask(&mut stream).await.is_err() {
                    continue;
                }
                n_served += 1;
                // The same connection serves a few more.
                for _ in 0..10 {
                    n_sent += 1;
                    n_served += u64::from(ask(&mut stream).await.is_ok());
                }
            }
            (n_sent, n_served)
        });
    }
    // Now and then a byte more, as slow senders do.
    for stream in half.iter_mut().take(N_SLOW / 10) {
        let _ = stream.write_all(&REQUEST[20..21]).await;
    }
    let mut sums = (0, 0);
    while let Some(done) = normal.join_next().await {
        let (n_sent, n_served) = done?;
        sums = (sums.0 + n_sent, sums.1 + n_served);
    }
    Ok(sums)
}

async fn connect(address: SocketAddr, client: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let from = Ipv4Addr::new(127, 0, 1, 1 + (client / PER_ADDRESS) as u8);
    socket.bind((from, 0).into())?;
    socket.connect(address).await
}

async fn ask(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        anyhow::ensure!(stream.read_buf(&mut buffer).await? > 0, "the proxy closed a connection");
        let end = buffer.windows(4).position(|w| w == b"\r\n\r\n");
        if end.is_some_and(|end| buffer.len() >= end + 4 + 128) {
            anyhow::ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", buffer.escape_ascii());
            return Ok(());
        }
    }
}

fn resident_kib(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
