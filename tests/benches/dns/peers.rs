//! The servers that are compared, each with the same names, one worker and no logs.
//!
//! Nothing is measured here but what a server's processes have used.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::support::Pinned;
use crate::{A, N_NAMES, name_of};

const READY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Default)]
pub struct CpuTime {
    pub total: Duration,
    /// By the clock's ticks, which are coarse: only their proportion counts.
    pub n_user_ticks: u64,
    pub n_system_ticks: u64,
}

/// A server in processes of its own.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    pub has_services: bool,
    process: Pinned,
}

impl Server {
    pub fn waymark(n_names: u32, upstream: Option<SocketAddr>) -> anyhow::Result<Self> {
        let mut command = match std::env::var_os("WAYMARK_BENCH_CALLGRIND") {
            None => Command::new(std::env::current_exe()?),
            Some(file) => {
                let mut valgrind = Command::new("valgrind");
                valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
                valgrind.arg(std::env::current_exe()?);
                valgrind
            }
        };
        command.args(["serve-dns", &n_names.to_string()]).args(upstream.map(|a| a.to_string()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut process = Pinned::start(&mut command).context("cannot start the DNS server")?;
        let stdout = process.0.stdout.take().context("the child has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the child said {line:?}"))?;
        Ok(Self { name: "waymark", address, has_services: true, process })
    }

    pub fn knot(scratch: &Path) -> anyhow::Result<Self> {
        let (address, port, directory) = place(scratch)?;
        write_zone(scratch)?;
        std::fs::write(
            scratch.join("knot.conf"),
            format!(
                "server:\n    listen: 127.0.0.1@{port}\n    rundir: {directory}\n    udp-workers: 1\n    tcp-workers: 1\n    \
                 background-workers: 1\ndatabase:\n    storage: {directory}\nlog:\n  - target: stderr\n    any: error\n\
                 zone:\n  - domain: mesos\n    storage: {directory}\n    file: mesos.zone\n"
            ),
        )?;
        let mut command = Command::new("knotd");
        command.arg("-c").arg(scratch.join("knot.conf"));
        Self::start("knot", address, &mut command)
    }

    pub fn nsd(scratch: &Path) -> anyhow::Result<Self> {
        let (address, port, directory) = place(scratch)?;
        write_zone(scratch)?;
        std::fs::write(
            scratch.join("nsd.conf"),
            format!(
                "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  username: \"\"\n  zonesdir: \"{directory}\"\n  \
                 database: \"\"\n  pidfile: \"\"\n  xfrdfile: \"{directory}/xfrd.state\"\n  zonelistfile: \"{directory}/zone.list\"\n  \
                 xfrdir: \"{directory}\"\n  logfile: \"{directory}/nsd.log\"\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\n\
                 zone:\n  name: mesos\n  zonefile: mesos.zone\n"
            ),
        )?;
        let mut command = Command::new("nsd");
        command.arg("-d").arg("-c").arg(scratch.join("nsd.conf"));
        Self::start("nsd", address, &mut command)
    }

    pub fn unbound(scratch: &Path) -> anyhow::Result<Self> {
        let (address, port, directory) = place(scratch)?;
        let mut config = format!(
            "server:\n  directory: \"{directory}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             do-daemonize: no\n  interface: 127.0.0.1@{port}\n  num-threads: 1\n  incoming-num-tcp: 100\n  access-control: 127.0.0.0/8 allow\n  \
             local-zone: \"mesos.\" static\n"
        );
        for i in 0..N_NAMES {
            writeln!(config, "  local-data: \"app{i}.marathon.mesos. 5 A {}\"", ip(i))?;
            writeln!(
                config,
                "  local-data: \"_app{i}._tcp.marathon.mesos. 5 SRV 0 1 31000 app{i}.marathon.mesos.\""
            )?;
        }
        std::fs::write(scratch.join("unbound.conf"), config)?;
        let mut command = Command::new("unbound");
        command.arg("-d").arg("-c").arg(scratch.join("unbound.conf"));
        Self::start("unbound", address, &mut command)
    }

    pub fn bind(scratch: &Path) -> anyhow::Result<Self> {
        let (address, port, directory) = place(scratch)?;
        write_zone(scratch)?;
        std::fs::write(
            scratch.join("named.conf"),
            format!(
                "options {{ directory \"{directory}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
                 recursion no; pid-file none; session-keyfile \"{directory}/session.key\"; }};\ncontrols {{ }};\n\
                 zone \"mesos\" {{ type primary; file \"{directory}/mesos.zone\"; }};\n"
            ),
        )?;
        let mut command = Command::new("named");
        command.args(["-f", "-n", "1", "-c"]).arg(scratch.join("named.conf"));
        Self::start("bind9", address, &mut command)
    }

    pub fn dnsmasq(scratch: &Path) -> anyhow::Result<Self> {
        let (address, port, directory) = place(scratch)?;
        let hosts: String = (0..N_NAMES).map(|i| format!("{} app{i}.marathon.mesos\n", ip(i))).collect();
        std::fs::write(scratch.join("hosts"), hosts)?;
        let mut command = Command::new("dnsmasq");
        command.args([
            "-k",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--local=/mesos/",
        ]);
        command.args([
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--cache-size=20000",
            "--local-ttl=5",
        ]);
        command
            .arg(format!("--port={port}"))
            .arg(format!("--addn-hosts={directory}/hosts"))
            .arg("--pid-file");
        let mut server = Self::start("dnsmasq", address, &mut command)?;
        // It keeps services in a list that it walks through.
        server.has_services = false;
        Ok(server)
    }

    fn start(name: &'static str, address: SocketAddr, command: &mut Command) -> anyhow::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let process = Pinned::start(command)?;
        let server = Self { name, address, has_services: true, process };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Asks for the last name until it is there.
    fn wait_until_ready(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let query = a_query(&name_of(N_NAMES - 1));
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            // Before it listens, the system says so.
            let _ = socket.send(&query);
            let mut reply = [0; 512];
            if matches!(socket.recv(&mut reply), Ok(12..)) && reply[7] == 1 {
                return Ok(());
            }
        }
        anyhow::bail!("{} at {} did not become ready", self.name, self.address)
    }

    /// Lets Waymark end by itself, which its tools write their results at.
    pub fn end(mut self) -> anyhow::Result<()> {
        drop(self.process.0.stdin.take());
        let status = self.process.0.wait()?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What all its processes have used.
    pub fn cpu_time(&self) -> anyhow::Result<CpuTime> {
        let mut time = CpuTime::default();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            // State, parent, group.
            if after_name.split(' ').nth(2).and_then(|group| group.parse().ok()) != Some(self.pid()) {
                continue;
            }
            let Ok(threads) = std::fs::read_dir(entry.path().join("task")) else { continue };
            for thread in threads.flatten() {
                let thread = thread.path();
                let of_thread = |file: &str| std::fs::read_to_string(thread.join(file));
                // It may have ended by now.
                let (Ok(account), Ok(stat)) = (of_thread("schedstat"), of_thread("stat")) else { continue };
                let ns: u64 = account.split_whitespace().next().context("an empty schedstat")?.parse()?;
                time.total += Duration::from_nanos(ns);
                let mut ticks = stat.rsplit_once(") ").context("no stat")?.1.split(' ').skip(11);
                for kind in [&mut time.n_user_ticks, &mut time.n_system_ticks] {
                    *kind += ticks.next().context("a short stat")?.parse::<u64>()?;
                }
            }
        }
        Ok(time)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the group is the one that was started for this server.
        unsafe { libc::kill(-(self.pid() as libc::pid_t), libc::SIGKILL) };
    }
}

pub fn a_query(name: &str) -> Vec<u8> {
    query(name, A.1)
}

pub fn query(name: &str, record_type: u16) -> Vec<u8> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').chain([""]) {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&record_type.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    query
}

fn write_zone(scratch: &Path) -> anyhow::Result<()> {
    let mut zone =
        "$ORIGIN mesos.\n$TTL 5\n@ SOA ns1 root.ns1 1 60 180 86400 1\n@ NS ns1\nns1 A 127.0.0.1\n".to_owned();
    for i in 0..N_NAMES {
        writeln!(zone, "app{i}.marathon A {}\n_app{i}._tcp.marathon SRV 0 1 31000 app{i}.marathon", ip(i))?;
    }
    Ok(std::fs::write(scratch.join("mesos.zone"), zone)?)
}

fn place(scratch: &Path) -> io::Result<(SocketAddr, u16, String)> {
    let address = free_address()?;
    Ok((address, address.port(), scratch.display().to_string()))
}

pub fn ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + i)
}

/// An address that is free for UDP now.
pub fn free_address() -> io::Result<SocketAddr> {
    UdpSocket::bind("127.0.0.1:0")?.local_addr()
}
