//! Real resolvers that ask Waymark on a node of their own: the C library in its various manners, and Unbound, which
//! checks whoever it forwards to with spelling and partial names.
//!
//! What the answers should be is tested elsewhere; here they only have to arrive.

#![allow(clippy::print_stdout, reason = "whoever runs the tests should see what was not tested")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::netns::{Netns, is_root};

use crate::{PROGRAM, VIP_NAME};

/// A program in a debug build that starts all planes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// DC/OS's first resolver address. Who asks it on the same host does so under this very address.
const RESOLVER: &str = "198.51.100.1";
/// Where the upstream of Waymark is, and where the resolver that has Waymark as its upstream.
const UPSTREAM: &str = "127.0.0.9";
const FORWARDER: &str = "127.0.0.10";
/// Addresses of a name that no UDP answer holds.
const N_ADDRESSES: usize = 200;

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Node {
    host: Netns,
    scratch: tempfile::TempDir,
    _programs: [Running; 3],
}

impl Node {
    /// `None`: it cannot be made here, which was said.
    fn start() -> anyhow::Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let (host, scratch) = (Netns::new("node")?, tempfile::tempdir()?);
        host.add_address("lo", &format!("{RESOLVER}/32"))?;
        // Without an address of its own the C library asks for none.
        host.add_address("lo", "fd00:9::1/128")?;
        let big: String = (0..N_ADDRESSES)
            .map(|i| format!("  local-data: \"big.example.corp. 60 A 10.9.0.{i}\"\n"))
            .collect();
        let Some(upstream) = unbound(
            &host,
            scratch.path(),
            UPSTREAM,
            &format!(
                "  local-zone: \"example.corp.\" static\n  local-data: \"www.example.corp. 60 A 192.0.2.80\"\n  \
                 local-data: \"www.example.corp. 60 AAAA 2001:db8::80\"\n{big}"
            ),
        )?
        else {
            return Ok(None);
        };
        let Some(forwarder) = unbound(
            &host,
            scratch.path(),
            FORWARDER,
            &format!(
                "  use-caps-for-id: yes\n  qname-minimisation: yes\n  qname-minimisation-strict: yes\n  \
                 do-not-query-localhost: no\n  module-config: \"iterator\"\n\
                 forward-zone:\n  name: \".\"\n  forward-addr: {RESOLVER}\n"
            ),
        )?
        else {
            return Ok(None);
        };
        let ready = scratch.path().join("ready");
        let mut command = host.command(PROGRAM);
        command.args(["dev", "--dns-listen", &format!("{RESOLVER}:53"), "--dns-upstreams", UPSTREAM]);
        command.arg("--state-dir").arg(scratch.path().join("state")).arg("--ready-file").arg(&ready);
        let waymark = Running(quiet(&mut command).spawn()?);
        let deadline = Instant::now() + DEADLINE;
        while !ready.exists() {
            anyhow::ensure!(Instant::now() < deadline, "waymark dev did not become ready");
            std::thread::yield_now();
        }
        Ok(Some(Self { host, scratch, _programs: [upstream, forwarder, waymark] }))
    }

    /// The addresses that the C library finds, with this in `/etc/resolv.conf` behind the server.
    fn getent(&self, options: &str, name: &str) -> anyhow::Result<Vec<String>> {
        let resolv_conf = self.scratch.path().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {RESOLVER}\n{options}\n"))?;
        // `ip netns exec` has given the command mounts of its own.
        let mut command = self.host.command("sh");
        command.args(["-c", "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\""]);
        let output = command.arg(resolv_conf).arg(name).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut found: Vec<String> =
            text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn dig(&self, server: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.host.command("dig");
        command.arg(format!("@{server}")).args(["+short", "+tries=2", "+time=5"]).args(words);
        let output = command.output().context("dig is needed")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Unbound on port 53 of `address`.
fn unbound(host: &Netns, scratch: &Path, address: &str, more: &str) -> anyhow::Result<Option<Running>> {
    if Command::new("unbound").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "unbound is needed");
        println!("SKIPPED: unbound is not installed");
        return Ok(None);
    }
    let config = scratch.join(format!("unbound-{address}.conf"));
    std::fs::write(
        &config,
        format!(
            "server:\n  directory: \"{}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             do-daemonize: no\n  interface: {address}\n  access-control: 0.0.0.0/0 allow\n{more}",
            scratch.display()
        ),
    )?;
    let mut command = host.command("unbound");
    Ok(Some(Running(quiet(command.arg("-d").arg("-c").arg(config)).spawn()?)))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

#[test]
fn the_c_library_and_unbound_resolve_names_of_the_cluster_and_of_the_world() -> anyhow::Result<()> {
    let Some(node) = Node::start()? else { return Ok(()) };
    let vip = node.dig(RESOLVER, &[VIP_NAME])?;
    anyhow::ensure!(vip.starts_with("127.11."), "{vip:?}");
    let vip = &[vip.as_str()][..];
    let both = &["192.0.2.80", "2001:db8::80"][..];
    for options in [
        // Two queries from one socket.
        "",
        "options single-request",
        "options single-request-reopen",
        "options edns0",
        // Over TCP.
        "options use-vc",
    ] {
        let options = format!("search marathon.l4lb.thisdcos.directory example.corp\n{options}");
        for (name, expect) in [
            (VIP_NAME, vip),
            ("dcos-101app2", vip),
            ("leader.mesos", &["127.0.0.1"]),
            ("nobody.marathon.mesos", &[]),
            ("www.example.corp", both),
            ("www", both),
            ("none.example.corp", &[]),
        ] {
            assert_eq!(node.getent(&options, name)?, expect, "{name} with {options}");
        }
        assert_eq!(node.getent(&options, "big.example.corp")?.len(), N_ADDRESSES, "{options}");
    }

    for words in [
        &[VIP_NAME][..],
        &[&format!("_10000._tcp.{VIP_NAME}"), "SRV"],
        &["_app2-dcos-101._tcp.marathon.mesos", "SRV"],
        &["leader.mesos"],
        &["www.example.corp", "AAAA"],
        &["nobody.marathon.mesos"],
        &["mesos", "NS"],
    ] {
        assert_eq!(node.dig(FORWARDER, words)?, node.dig(RESOLVER, words)?, "{words:?}");
    }
    assert_eq!(node.dig(FORWARDER, &["big.example.corp"])?.lines().count(), N_ADDRESSES);
    Ok(())
}
