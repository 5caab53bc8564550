//! This server as the resolver of its host: the addresses that DC/OS gives it, and the host's own configuration while
//! it runs (`dns.install`).
//!
//! For the latter, a child process that does nothing else installs it and takes that back when this one has ended, in
//! whatever way.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::loopback::Loopback;
use crate::admin::Addresses;
use crate::args::{Mode, PlaneName};
use crate::config::Config;
use crate::failure::Failure;

/// Gives `lo` the resolver addresses that are to be listened on, where that is allowed. Of the default list, those
/// that this host cannot have are left out, as long as there is another one.
pub fn addresses(config: &mut Config) -> Loopback {
    if config.mode != Mode::Serve || !config.runs(PlaneName::Dns) {
        return Loopback::default();
    }
    let (loopback, refused) = Loopback::add(config.dns.listen.iter().map(SocketAddr::ip));
    if config.dns.listen == Config::defaults(Mode::Serve).dns.listen
        && refused.len() < config.dns.listen.len()
    {
        for (ip, error) in refused {
            tracing::warn!(%ip, %error, "lo cannot have this resolver address; DNS does without");
            config.dns.listen.retain(|address| address.ip() != ip);
        }
    }
    loopback
}

/// The child. Dropping it tells it to take the installation back; it would notice by itself, too.
#[derive(Debug)]
pub struct Installed(Child);

pub fn install(addresses: &Addresses) -> Result<Installed, Failure> {
    let own: Vec<String> =
        addresses.dns.iter().filter(|a| a.port() == 53).map(|a| a.ip().to_string()).collect();
    if own.is_empty() {
        return Err(Failure::new("dns.install needs a DNS address with port 53")
            .hint("programs look names up on no other port; add --dns-listen ADDRESS:53"));
    }
    let exe =
        std::env::current_exe().map_err(|e| Failure::chain("cannot find this program's own file", &e))?;
    let mut command = Command::new(exe);
    command.args(["dns", "install", "--apply", "--root"]).arg(Path::new("/"));
    command.args(["--until-exit-of", &std::process::id().to_string()]);
    for ip in own {
        command.args(["--address", &ip]);
    }
    for zone in &addresses.dns_zones {
        command.args(["--zone", zone]);
    }
    // A signal that is meant for this process (Ctrl-C) must not reach the child before this one has ended.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    child.map(Installed).map_err(|e| Failure::chain("cannot start waymark dns install", &e))
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}
