//! 60,000 connections from one address to one VIP of the userspace plane. A kernel that translates addresses has no
//! more ports for them than one client has (DC/OS: 28,232); here each of the endpoints has as many of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::netns::{Netns, is_root};

use crate::{VIP, spawn_endpoint, start_forwarder};

const N_CONNECTIONS: usize = 60_000;
pub const PORT: u16 = 80;

/// Opens so many connections from one address to one VIP with three endpoints, and keeps them all. A client has as many
/// as it has ports; the forwarder has its own ports for each of the endpoints.
pub fn run() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let n_connections = raise_descriptor_limit()?;
    if n_connections < N_CONNECTIONS {
        println!("the limit of open files allows only {n_connections} of {N_CONNECTIONS} connections");
    }
    let host = Netns::new("many")?;
    host.set_variable("net/ipv4/ip_local_port_range", "1024 65535")?;
    host.run(|| {
        let endpoints = [(); 3].map(|()| spawn_endpoint(greet));
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("forwarder-of-one").stdin(Stdio::piped()).stdout(Stdio::piped());
        for endpoint in endpoints {
            command.arg(endpoint?.to_string());
        }
        let process = start_forwarder(&mut command)?;
        let memory = || -> anyhow::Result<usize> {
            let statm = std::fs::read_to_string(format!("/proc/{}/statm", process.0.id()))?;
            let pages: usize = statm.split_whitespace().nth(1).context("an empty statm")?.parse()?;
            Ok(pages * 4)
        };
        let (before, began) = (memory()?, Instant::now());
        let mut open = Vec::with_capacity(n_connections);
        for n in 0..n_connections {
            let mut client =
                TcpStream::connect((VIP, PORT)).with_context(|| format!("connection {n}"))?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            client.read_exact(&mut [0]).with_context(|| format!("connection {n} is not served"))?;
            open.push(client);
        }
        let took = began.elapsed();
        for client in &mut open {
            client.set_nonblocking(true)?;
            let still = client.read(&mut [0]).map_err(|e| e.kind());
            anyhow::ensure!(still == Err(ErrorKind::WouldBlock), "a connection ended: {still:?}");
        }
        let kib = (memory()? - before) as f64 / n_connections as f64;
        println!(
            "{n_connections} connections from one address to one VIP with 3 endpoints: all open and served, {:.1} s, \
             {kib:.1} KiB each in the forwarder",
            took.as_secs_f64()
        );
        Ok(())
    })
}

/// Greets every connection and keeps it.
fn greet(listener: TcpListener) -> io::Result<()> {
    let mut open = Vec::new();
    loop {
        let (mut connection, _) = listener.accept()?;
        connection.write_all(b"x")?;
        open.push(connection);
    }
}

/// As far as it takes, or as this process may. Answers how many connections that is enough for: this process and the
/// forwarder have two descriptors for each.
fn raise_descriptor_limit() -> anyhow::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let wanted = libc::rlimit { rlim_cur: 3 * N_CONNECTIONS as u64, rlim_max: 3 * N_CONNECTIONS as u64 };
    // SAFETY: the calls get pointers to valid rlimits that outlive them.
    unsafe {
        anyhow::ensure!(
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0,
            "{}",
            io::Error::last_os_error()
        );
        let allowed = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) == 0 {
            limit = wanted;
        } else if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const allowed) == 0 {
            limit = allowed;
        }
    }
    Ok(N_CONNECTIONS.min((limit.rlim_cur as usize).saturating_sub(200) / 2))
}
