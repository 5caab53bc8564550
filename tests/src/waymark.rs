//! Runs the built program: `dev` or `serve` in the background, commands in the foreground.
//!
//! Every run has addresses of its own in 127.0.0.0/8, so that tests can run side by side on fixed service ports.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::client::{self, DEADLINE, Response};

/// A running `waymark`. It is told to stop when this is dropped.
#[derive(Debug)]
pub struct Waymark {
    program: PathBuf,
    child: Child,
    home: tempfile::TempDir,
    ready: Value,
    pub service_address: Ipv4Addr,
    pub vip_network: Ipv4Addr,
    /// Given back when the program has been told to stop.
    _networks: Networks,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A service address and the first address of a /20 for VIPs, of this run alone. The system would let two runs share an
/// address and hand each the other's connections.
#[derive(Debug)]
struct Networks {
    service: Ipv4Addr,
    vips: Ipv4Addr,
    /// For instances: two schedulers that offer the same port see too late that only one can have it.
    host_ports: RangeInclusive<u16>,
    /// Nobody else can have the same while this is bound.
    _lease: std::net::TcpListener,
}

impl Networks {
    const N: u32 = 1024;
    /// The network's own address is no VIP's.
    const LEASE_PORT: u16 = 65_000;
    /// Above service ports, below what the system hands out by itself. As many ranges as tests may run side by side.
    const FIRST_HOST_PORT: u16 = 12_000;
    const N_HOST_PORTS: u16 = 100;
    const N_PORT_RANGES: u32 = 200;

    fn take() -> anyhow::Result<Self> {
        static TURN: AtomicU32 = AtomicU32::new(0);
        let first = std::process::id() << 4;
        for _ in 0..Self::N {
            let number = (first + TURN.fetch_add(1, Ordering::Relaxed)) % Self::N;
            let vips = Ipv4Addr::from_bits(0x7fc0_0000 | number << 12);
            if let Ok(lease) = std::net::TcpListener::bind((vips, Self::LEASE_PORT)) {
                let service = Ipv4Addr::new(127, 64 | (number >> 8) as u8, number as u8, 1);
                let first_port =
                    Self::FIRST_HOST_PORT + (number % Self::N_PORT_RANGES) as u16 * Self::N_HOST_PORTS;
                let host_ports = first_port..=first_port + Self::N_HOST_PORTS - 1;
                return Ok(Self { service, vips, host_ports, _lease: lease });
            }
        }
        bail!("all networks for tests are taken")
    }
}

impl Waymark {
    /// Starts `waymark dev` with every port chosen by the system, and waits until all planes serve.
    pub async fn dev(program: &str, extra: &[&str]) -> anyhow::Result<Self> {
        Self::start(program, "dev", &["--scheduler-listen", "127.0.0.1:0"], extra).await
    }

    /// The same, where programs are looked for in `folder` first.
    pub async fn dev_finding(program: &str, folder: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        let mut path = OsString::from(folder);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        // `env` sets the variable for this program alone.
        let mut assignment = OsString::from("PATH=");
        assignment.push(path);
        let script = folder.join("waymark");
        let line = format!("#!/bin/sh\nexec env '{}' '{program}' \"$@\"\n", assignment.to_string_lossy());
        std::fs::write(&script, line)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Self::dev(&script.to_string_lossy(), extra).await
    }

    /// Starts `waymark serve` against a scheduler.
    pub async fn serve(program: &str, marathon: SocketAddr, extra: &[&str]) -> anyhow::Result<Self> {
        Self::serve_as(program, &format!("http://{marathon}"), extra).await
    }

    /// The same, with the scheduler's address as `--marathon` takes it.
    pub async fn serve_as(program: &str, marathon: &str, extra: &[&str]) -> anyhow::Result<Self> {
        Self::start(program, "serve", &["--marathon", marathon], extra).await
    }

    async fn start(program: &str, command: &str, first: &[&str], extra: &[&str]) -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        let networks = Networks::take()?;
        let (service_address, vip_network) = (networks.service, networks.vips);
        let ready_file = home.path().join("ready.json");
        let log = std::fs::File::create(home.path().join("log"))?;
        let mut arguments = Command::new(program);
        let pool = format!("{vip_network}/20");
        let state = home.path().join("state");
        let own: &[(&str, &OsStr)] = &[
            ("--http-listen", "127.0.0.1:0".as_ref()),
            ("--https-listen", "127.0.0.1:0".as_ref()),
            ("--appid-listen", "127.0.0.1:0".as_ref()),
            ("--stats-listen", "127.0.0.1:0".as_ref()),
            ("--dns-listen", "127.0.0.1:0".as_ref()),
            ("--dns-http-listen", "127.0.0.1:0".as_ref()),
            ("--service-address", &OsString::from(service_address.to_string())),
            ("--vip-pool", pool.as_ref()),
            // Kernel planes are tested where they can do no harm: in namespaces and control groups of a test's own.
            ("--vip-plane", "userspace".as_ref()),
            ("--ready-file", ready_file.as_ref()),
            ("--state-dir", state.as_ref()),
        ];
        arguments.arg(command);
        if !first.first().is_some_and(|flag| extra.contains(flag)) {
            arguments.args(first);
        }
        if command == "serve" && !extra.contains(&"--dns-dcos-listen") {
            arguments.args(["--dns-dcos-listen", "127.0.0.1:0"]);
        }
        // Simulated instances use no ports, and may be more.
        if command == "dev" && !extra.contains(&"--ports") && !extra.contains(&"--simulate") {
            let (first_port, last_port) = networks.host_ports.clone().into_inner();
            arguments.arg("--ports").arg(format!("{first_port}-{last_port}"));
        }
        for (flag, value) in own {
            if !extra.contains(flag) {
                arguments.arg(flag).arg(value);
            }
        }
        arguments.args(extra).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut child = arguments.spawn().with_context(|| format!("cannot start {program}"))?;
        let ready = tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some(status) = child.try_wait()? {
                    bail!("waymark {command} ended with {status}");
                }
                if let Ok(text) = tokio::fs::read(&ready_file).await
                    && let Ok(ready) = serde_json::from_slice(&text)
                {
                    return Ok(ready);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let ready = match ready.await {
            Ok(Ok(ready)) => ready,
            failed => {
                let log = std::fs::read_to_string(home.path().join("log")).unwrap_or_default();
                bail!("waymark {command} did not become ready: {failed:?}\n{log}");
            }
        };
        Ok(Self {
            program: program.into(),
            child,
            home,
            ready,
            service_address,
            vip_network,
            _networks: networks,
        })
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// What the program wrote to its terminal so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// An address of the ready file: `scheduler`, `http`, `appid`, `stats`, or the first of `dns`.
    pub fn address(&self, name: &str) -> SocketAddr {
        let value = &self.ready[name];
        let text = value.as_str().or_else(|| value[0].as_str());
        let address = text.and_then(|t| t.parse().ok());
        address.unwrap_or_else(|| panic!("no address {name} in the ready file {}", self.ready))
    }

    pub fn service(&self, port: u16) -> SocketAddr {
        (self.service_address, port).into()
    }

    /// Runs `waymark ARGUMENTS…` against this instance.
    pub async fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("WAYMARK_STATS", format!("http://{}", self.address("stats")))
            .env("WAYMARK_DNS", self.address("dns").to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.ready["scheduler"].is_string() {
            command.env("WAYMARK_MARATHON", format!("http://{}", self.address("scheduler")));
        }
        let output = tokio::time::timeout(3 * DEADLINE, command.output()).await??;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The same, for a command that must succeed; answers what it printed.
    pub async fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<String> {
        let output = self.run(arguments).await?;
        if output.code != Some(0) {
            let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
            bail!("waymark {} failed: {output:?}\nlog:\n{}", words.join(" "), self.tail());
        }
        Ok(output.stdout)
    }

    /// One request to the embedded scheduler; answers its status and its JSON, null when it is none.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<(u16, Value)> {
        let headers: &[&str] = if body.is_some() { &["Content-Type: application/json"] } else { &[] };
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let mut connection = client::Connection::open(self.address("scheduler")).await?;
        let answer = connection.request(method, path, headers, text.as_bytes()).await?;
        Ok((answer.status, answer.json().unwrap_or_default()))
    }

    /// Waits until the embedded scheduler has nothing to change.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let wait = async {
            while self.api("GET", "/v2/deployments", None).await?.1 != serde_json::json!([]) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(3 * DEADLINE, wait).await;
        ended.with_context(|| format!("deployments do not end\n{}", self.tail()))?
    }

    pub async fn stats(&self, target: &str) -> anyhow::Result<Response> {
        client::get(self.address("stats"), target).await
    }

    /// Asks until `accept` likes the answer; fails with the last answer at the deadline.
    pub async fn until(
        &self,
        target: &str,
        what: &str,
        accept: impl Fn(&Response) -> bool,
    ) -> anyhow::Result<Response> {
        let mut last = None;
        let wait = async {
            loop {
                match self.stats(target).await {
                    Ok(response) if accept(&response) => return response,
                    other => last = Some(other),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(response) => Ok(response),
            Err(_) => {
                let mut dump = String::new();
                if let Some(last) = last {
                    write!(dump, "{last:?}")?;
                }
                bail!("{what}: not within {DEADLINE:?}; last answer of {target}: {dump}\n{}", self.tail())
            }
        }
    }

    /// Asks it to stop and waits for the end.
    pub async fn stop(mut self) -> anyhow::Result<Option<i32>> {
        self.signal(libc::SIGTERM);
        let status = tokio::time::timeout(3 * DEADLINE, self.child.wait()).await;
        let status = status.with_context(|| format!("does not stop\n{}", self.tail()))??;
        Ok(status.code())
    }

    pub fn signal(&self, signal: i32) {
        if let Some(pid) = self.child.id() {
            // SAFETY: kill(2) takes numbers only; the child is not reaped, so the pid is still its own.
            unsafe { libc::kill(pid as i32, signal) };
        }
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Waymark {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
    }
}

/// The processes of an instance: those that carry its id in their environment.
pub fn processes_of(task_id: &str) -> Vec<i32> {
    let wanted = format!("MESOS_TASK_ID={task_id}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

/// The same, as soon as their number fits: an instance runs a moment before its command does.
pub async fn processes_when(task_id: &str, fits: impl Fn(usize) -> bool) -> anyhow::Result<Vec<i32>> {
    let wait = async {
        loop {
            let processes = processes_of(task_id);
            if fits(processes.len()) {
                return processes;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, wait).await;
    found.with_context(|| format!("the processes of {task_id} are {:?}", processes_of(task_id)))
}
