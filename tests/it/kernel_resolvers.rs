//! Real resolvers that ask Waymark on a node of their own: the C library in its various manners, systemd-resolved as
//! `waymark dns install` leaves it, and Unbound, which checks whoever it forwards to with spelling and partial names.
//!
//! What the answers should be is tested elsewhere; here they only have to arrive.

#![allow(clippy::print_stdout, reason = "whoever runs the tests should see what was not tested")]

use std::path::{Path, PathBuf};
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

/// Where systemd-resolved's package was unpacked by whoever does not want it installed: that replaces the host's
/// `/etc/resolv.conf`.
const RESOLVED_ROOT: &str = "WAYMARK_TEST_RESOLVED_ROOT";
const RESOLVED: &str = "lib/systemd/systemd-resolved";
/// Where systemd-resolved answers.
const STUB: &str = "127.0.0.53";
/// The server of the node's link, and the node's own end of it.
const LINK_SERVER: &str = "10.77.0.2";
const LINK_ADDRESS: &str = "10.77.0.1";

/// Runs systemd-resolved without systemd: as its own user, told of the link by the file that networkd would write, with
/// the configuration below `$1`, from the root `$0`. `ip netns exec` has given the shell mounts of its own.
const START_RESOLVED: &str = r#"
set -e
mount --bind "$1/run/systemd" /run/systemd
{ cat /etc/passwd; echo 'systemd-resolve:x:990:990::/:/usr/sbin/nologin'; } > "$1/passwd"
getent passwd systemd-resolve > "$1/user" || { mount --bind "$1/passwd" /etc/passwd; echo x:x:990:990 > "$1/user"; }
mkdir -p /run/systemd/resolve /run/systemd/netif/links
chown "$(cut -d: -f3,4 "$1/user")" /run/systemd/resolve
printf 'ADMIN_STATE=configured\nOPER_STATE=routable\nDNS=%s\n' "$2" \
    > "/run/systemd/netif/links/$(cat /sys/class/net/up0/ifindex)"
libraries="$0/usr/lib/x86_64-linux-gnu"
export LD_LIBRARY_PATH="$libraries/systemd:$libraries:$0/lib/x86_64-linux-gnu" SYSTEMD_LOG_TARGET=console
exec "$0/lib/systemd/systemd-resolved"
"#;

/// The root below which systemd-resolved is. `None`: it is nowhere, which was said.
fn resolved_root() -> Option<PathBuf> {
    let unpacked = std::env::var_os(RESOLVED_ROOT).map(PathBuf::from);
    let is_there = |root: &PathBuf| root.join(RESOLVED).exists();
    assert!(unpacked.as_ref().is_none_or(is_there), "systemd-resolved is not below {unpacked:?}");
    let root = unpacked.unwrap_or_else(|| "/".into());
    if is_there(&root) {
        return Some(root);
    }
    println!(
        "SKIPPED: systemd-resolved is not installed, and {RESOLVED_ROOT} does not say where it was unpacked"
    );
    None
}

#[test]
fn systemd_resolved_asks_here_alone_for_the_cluster_and_everybody_for_the_rest() -> anyhow::Result<()> {
    let Some(program_root) = resolved_root() else { return Ok(()) };
    let Some(node) = Node::start()? else { return Ok(()) };
    let uplink = Netns::new("uplink")?;
    let end = (&*format!("{LINK_ADDRESS}/24"), &*format!("{LINK_SERVER}/24"));
    node.host.connect(("up0", end.0), &uplink, ("up1", end.1))?;
    // It denies what it does not know, names of the cluster and of Waymark's upstream alike.
    let of_link = "  local-zone: \"mesos.\" static\n  local-zone: \"thisdcos.directory.\" static\n  \
                   local-zone: \"example.corp.\" static\n  local-data: \"link.example.corp. 60 A 192.0.2.81\"\n";
    let Some(_link_server) = unbound(&uplink, node.scratch.path(), LINK_SERVER, of_link)? else {
        return Ok(());
    };

    let root = node.scratch.path().join("root");
    std::fs::create_dir_all(root.join("run/systemd"))?;
    let mut install = node.host.command(PROGRAM);
    install.args(["dns", "install", "--apply", "--style", "resolved", "--root"]).arg(&root);
    let installed = install.output()?;
    anyhow::ensure!(installed.status.success(), "{installed:?}");
    let mut resolved = node.host.command("sh");
    resolved.args(["-c", START_RESOLVED]).arg(program_root).arg(&root).arg(LINK_SERVER);
    let _resolved = Running(quiet(&mut resolved).spawn()?);
    let known_servers = root.join("run/systemd/resolve/resolv.conf");
    let deadline = Instant::now() + DEADLINE;
    while !std::fs::read_to_string(&known_servers).is_ok_and(|text| text.contains(LINK_SERVER)) {
        anyhow::ensure!(Instant::now() < deadline, "systemd-resolved did not find the server of its link");
        std::thread::yield_now();
    }

    // It asks all that may know.
    assert_eq!(node.dig(STUB, &["link.example.corp"])?, "192.0.2.81");
    assert_eq!(node.dig(STUB, &["www.example.corp"])?, "192.0.2.80");
    let port = format!("_10000._tcp.{VIP_NAME}");
    for words in [
        &[VIP_NAME][..],
        &[VIP_NAME, "AAAA"],
        &["DCOS-101app2.Marathon.l4lb.thisdcos.global"],
        &[&port, "SRV"],
        &["_app2-dcos-101._tcp.marathon.mesos", "SRV"],
        &["leader.mesos"],
        &["ready.spartan"],
        &["nobody.marathon.mesos"],
    ] {
        assert_eq!(node.dig(STUB, words)?, node.dig(RESOLVER, words)?, "{words:?}");
    }
    // It calls all of 127.0.0.0/8 localhost, so the names of this pool's addresses do not get through.
    let told = std::fs::read_to_string(root.join("run/systemd/resolved.conf.d/waymark.conf"))?;
    assert!(told.contains(" ~11.127.in-addr.arpa"), "{told}");
    Ok(())
}
