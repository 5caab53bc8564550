//! A real server and its real client: redis behind a VIP of either plane.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol::Tcp;
use tests::client::DEADLINE;
use tests::netns::is_root;

use super::host::{EBPF, Host, NFT, Open};
use super::peers::{frontend, service};

const VIP: [&str; 2] = ["11.1.2.3", "6380"];

#[test]
fn redis_is_served_by_ebpf() -> anyhow::Result<()> {
    redis_is_served(EBPF)
}

#[test]
fn redis_is_served_by_nft() -> anyhow::Result<()> {
    redis_is_served(NFT)
}

#[allow(clippy::print_stdout, reason = "whoever runs the tests should see what was not tested")]
fn redis_is_served(open: Open) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    if Command::new("redis-server").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "redis-server is needed");
        println!("SKIPPED: there is no redis-server");
        return Ok(());
    }
    let host = Host::new()?;
    let _server = Server::start(&host)?;
    let mut plane = open(&host)?;
    let vip = frontend(Tcp, &VIP.join(":"));
    plane.reconcile(&[service(vip, &[("127.0.0.1:6379".parse()?, 1)])])?;
    let deadline = Instant::now() + DEADLINE;
    while ask(&host, "redis-cli", &["PING"]).is_none_or(|answer| answer.trim() != "PONG") {
        assert!(Instant::now() < deadline, "redis does not answer through the VIP");
        thread::park_timeout(Duration::from_millis(20));
    }
    assert_eq!(ask(&host, "redis-cli", &["SET", "name", "waymark"]).as_deref(), Some("OK\n"));
    assert_eq!(ask(&host, "redis-cli", &["GET", "name"]).as_deref(), Some("waymark\n"));
    let benchmark = ["-n", "2000", "-c", "20", "-t", "set,get,lpush", "--csv"];
    let report = ask(&host, "redis-benchmark", &benchmark).unwrap_or_default();
    assert!(["SET", "GET", "LPUSH"].iter().all(|what| report.contains(what)), "{report}");
    let counters = plane.count()?.frontends;
    assert!(counters[0].1.n_connections > 20 && counters[0].1.n_refused == 0, "{counters:?}");
    plane.flush()?;
    Ok(())
}

/// What a program says that speaks redis to the VIP; none if it fails.
fn ask(host: &Host, program: &str, words: &[&str]) -> Option<String> {
    let [ip, port] = VIP;
    let output = host.run(|| Command::new(program).args(["-h", ip, "-p", port]).args(words).output()).ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

struct Server(Child);

impl Server {
    fn start(host: &Host) -> anyhow::Result<Self> {
        // In its protected mode it takes clients from 127.0.0.1 alone, which a client of a VIP is not.
        let flags = ["--bind", "127.0.0.1", "--port", "6379", "--save", "", "--protected-mode", "no"];
        let mut command = host.netns.command("redis-server");
        let child = command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
