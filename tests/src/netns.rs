//! Network namespaces of a test's own: made empty, joined by virtual cables and bridges, removed when dropped.
//!
//! A name says which process made it, so that nobody removes another's. It sets no address and no route that a test
//! did not ask for, and touches nothing outside the namespaces that it made.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::Context as _;

/// Whether this process may make namespaces. Says so and returns false without root, and fails where CI is set,
/// because a test that is always skipped shows nothing.
#[must_use]
#[allow(clippy::print_stdout, reason = "whoever runs the tests should see what was not tested")]
pub fn is_root() -> bool {
    // SAFETY: a call without arguments that cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "kernel tests need root");
    println!("SKIPPED: making network namespaces needs root");
    false
}

/// Loopback is up; there is nothing else in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// `role` tells the namespaces of one test apart.
    pub fn new(role: &str) -> anyhow::Result<Self> {
        static N_MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("waymark-{}-{}-{role}", std::process::id(), N_MADE.fetch_add(1, Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// For `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `ip` with these words inside, like `route add default via 10.0.0.1`.
    pub fn ip(&self, words: &str) -> anyhow::Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split(' ')))
    }

    /// A program with these words inside; what it printed.
    pub fn output(&self, program: &str, words: &str) -> anyhow::Result<String> {
        run(self.command(program).args(words.split(' ')))
    }

    /// Sets a variable below /proc/sys, like `net/ipv4/ip_forward`.
    pub fn set_variable(&self, path: &str, value: &str) -> anyhow::Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{path}"), value))
            .with_context(|| format!("cannot set {path}"))
    }

    /// Runs `work` on a thread of its own that lives inside. The sockets and threads that it makes stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.name).expect("the namespace exists as long as this value");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A cable from here to `other`; each end is an interface with a name and an address like `10.1.0.1/24`.
    pub fn connect(&self, end: (&str, &str), other: &Self, other_end: (&str, &str)) -> anyhow::Result<()> {
        self.cable(end.0, other, other_end.0)?;
        for (namespace, (interface, address)) in [(self, end), (other, other_end)] {
            namespace.add_address(interface, address)?;
            namespace.ip(&format!("link set {interface} up"))?;
        }
        Ok(())
    }

    /// A bridge that is itself an interface of this namespace, as a container runtime makes one.
    pub fn add_bridge(&self, bridge: &str, address: &str) -> anyhow::Result<()> {
        self.ip(&format!("link add {bridge} type bridge"))?;
        self.add_address(bridge, address)?;
        self.ip(&format!("link set {bridge} up"))?;
        Ok(())
    }

    /// Connects `other` to a bridge of this namespace, in hairpin mode, by a port called `port`; inside `other` the
    /// interface is `eth0`.
    pub fn plug(&self, bridge: &str, port: &str, other: &Self, address: &str) -> anyhow::Result<()> {
        self.cable(port, other, "eth0")?;
        self.ip(&format!("link set {port} master {bridge} up"))?;
        run(Command::new("bridge").args(["-n", &self.name, "link", "set", "dev", port, "hairpin", "on"]))?;
        other.add_address("eth0", address)?;
        other.ip("link set eth0 up")?;
        Ok(())
    }

    pub fn add_address(&self, interface: &str, address: &str) -> anyhow::Result<()> {
        // Without duplicate address detection an IPv6 address serves at once.
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface}{nodad}"))?;
        Ok(())
    }

    fn cable(&self, interface: &str, other: &Self, other_interface: &str) -> anyhow::Result<()> {
        self.ip(&format!("link add {interface} type veth peer name {other_interface} netns {}", other.name))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the next run uses another name.
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// Moves this thread into a namespace for the rest of its life.
fn enter(name: &str) -> std::io::Result<()> {
    let namespace = File::open(format!("/run/netns/{name}"))?;
    // SAFETY: a plain call on a descriptor that is open.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
