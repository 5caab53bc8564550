//! DNS on a node, in network namespaces: its addresses on `lo`, which come and go with it, and what strangers get.

use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::netns::{Netns, is_root};

use crate::PROGRAM;

const DEADLINE: Duration = Duration::from_secs(10);
const RESOLVERS: [&str; 4] = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "fd01:d::c633:6401"];

/// `waymark serve` inside, with DNS alone and a scheduler that is not there.
fn serve(host: &Netns, state: &tempfile::TempDir, extra: &[&str]) -> anyhow::Result<Child> {
    let mut command: Command = host.command(PROGRAM);
    command.args(["serve", "--planes", "dns", "--marathon", "http://127.0.0.1:9", "--dns-upstreams", "none"]);
    command.arg("--state-dir").arg(state.path()).args(extra);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Queries that are sent at once, and how often.
const BURST: usize = 100;
const N_BURSTS: usize = 30;

/// `localhost A`, which needs no scheduler.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";

/// Asks until there is an answer.
fn wait_for_answer(client: &Netns, server: &str) -> anyhow::Result<()> {
    let server: IpAddr = server.parse()?;
    client.run(|| {
        let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            // Until it listens, there may be no such address, or nobody at it.
            let _ = socket.send_to(QUERY, (server, 53));
            if let Ok((n, from)) = socket.recv_from(&mut [0; 512]) {
                anyhow::ensure!(n > QUERY.len() && from.ip() == server, "an answer from {from}");
                return Ok(());
            }
        }
        anyhow::bail!("{server} does not answer")
    })
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes two numbers; the child has not been waited for, so the id is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

#[test]
fn resolver_addresses_come_and_go_with_the_server() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Netns::new("host")?;
    let state = tempfile::tempdir()?;
    let mut server = serve(&host, &state, &[])?;
    for address in RESOLVERS {
        wait_for_answer(&host, address)?;
    }
    signal(&server, libc::SIGTERM);
    anyhow::ensure!(server.wait()?.success());
    let left = host.ip("address show dev lo")?;
    anyhow::ensure!(RESOLVERS.iter().all(|ip| !left.contains(ip)), "still there: {left}");

    let mut server = serve(&host, &state, &[])?;
    wait_for_answer(&host, RESOLVERS[0])?;
    signal(&server, libc::SIGKILL);
    server.wait()?;
    let left = host.ip("address show dev lo")?;
    let lifetimes = left
        .lines()
        .filter_map(|line| line.trim().strip_prefix("valid_lft ")?.split("sec").next()?.parse().ok());
    let lifetimes: Vec<u32> = lifetimes.collect();
    anyhow::ensure!(lifetimes.len() == 4 && lifetimes.iter().all(|s| *s <= 60), "they would stay: {left}");

    // The next one takes them over, and what somebody else has configured stays.
    host.add_address("lo", "198.51.100.4/32")?;
    let mut server =
        serve(&host, &state, &["--dns-listen", "198.51.100.4:53", "--dns-listen", "198.51.100.1:53"])?;
    wait_for_answer(&host, "198.51.100.4")?;
    wait_for_answer(&host, "198.51.100.1")?;
    signal(&server, libc::SIGTERM);
    server.wait()?;
    anyhow::ensure!(host.ip("address show dev lo")?.contains("198.51.100.4/32"));
    Ok(())
}

#[test]
fn strangers_are_answered_so_often_and_neighbours_always() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (host, stranger) = (Netns::new("host")?, Netns::new("stranger")?);
    host.connect(("out", "203.0.113.1/24"), &stranger, ("in", "203.0.113.2/24"))?;
    host.add_address("out", "10.9.0.1/24")?;
    stranger.add_address("in", "10.9.0.2/24")?;
    let state = tempfile::tempdir()?;
    let mut server = serve(&host, &state, &["--dns-listen", "0.0.0.0:53"])?;
    wait_for_answer(&stranger, "10.9.0.1")?;
    let answers = |server: &'static str| {
        stranger.run(move || -> anyhow::Result<(usize, usize)> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((server, 53))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            let (mut whole, mut cut) = (0, 0);
            let mut reply = [0; 512];
            // Never more in flight than the socket's buffer holds, and not waiting long for those that do not come.
            for _ in 0..N_BURSTS {
                for _ in 0..BURST {
                    socket.send(QUERY)?;
                }
                for _ in 0..BURST {
                    match socket.recv(&mut reply) {
                        Ok(_) if reply[2] & 2 == 0 => whole += 1,
                        Ok(_) => cut += 1,
                        Err(_) => break,
                    }
                }
            }
            Ok((whole, cut))
        })
    };
    let (whole, cut) = answers("203.0.113.1").context("as a stranger")?;
    // 500 a second, for a few seconds on a busy machine.
    anyhow::ensure!(whole < N_BURSTS * BURST * 3 / 4 && cut > 50, "{whole} whole and {cut} empty answers");
    let (whole, cut) = answers("10.9.0.1").context("as a neighbour")?;
    anyhow::ensure!(whole > N_BURSTS * BURST * 3 / 4 && cut == 0, "{whole} whole and {cut} empty answers");
    signal(&server, libc::SIGTERM);
    server.wait()?;
    Ok(())
}
