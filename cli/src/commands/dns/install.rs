//! `waymark dns install`: makes Waymark the resolver of this host, takes that back, or only shows what it would do.
//!
//! With `--until-exit-of` it stays, and takes it back when that process has ended in whatever way: so nothing is left
//! behind by a crash.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};

use dns::install::{BACKUP, Host, InstallError, Outcome, Plan, Style};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::args::{InstallArgs, ResolverStyle};
use crate::commands::stats::StatsClient;
use crate::config::DCOS_RESOLVERS;
use crate::failure::Failure;
use crate::{output, runtime, shutdown};

/// What every Waymark answers for.
const ZONES: [&str; 5] = ["mesos", "thisdcos.directory", "thisdcos.global", "spartan", "zk"];

pub fn run(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let host = Host::new(&args.root);
    if args.remove {
        return removed(&host, &args.root);
    }
    let plan = plan(&host, args)?;
    if args.apply {
        let install = || apply(&host, &plan, &args.root);
        return match args.until_exit_of {
            None => install().map(|()| ExitCode::SUCCESS),
            Some(pid) => {
                let lived = runtime::single_threaded("command")?.block_on(for_life_of(pid, install));
                let removed = removed(&host, &args.root);
                lived.and(removed)
            }
        };
    }
    output::print(&format!("# {}\n{}", plan.path.display(), plan.text))?;
    Ok(ExitCode::SUCCESS)
}

fn plan(host: &Host, args: &InstallArgs) -> Result<Plan, Failure> {
    let style = match args.style {
        Some(ResolverStyle::Resolved) => Style::SystemdResolved,
        Some(ResolverStyle::ResolvConf) => Style::ResolvConf,
        None => host.style(),
    };
    let (mut servers, mut zones) = (args.address.clone(), args.zone.clone());
    if servers.is_empty() || (zones.is_empty() && style == Style::SystemdResolved) {
        let learnt = runtime::single_threaded("command")?.block_on(learn(args));
        if servers.is_empty() {
            servers = learnt.0;
        }
        if zones.is_empty() {
            zones = learnt.1;
        }
    }
    host.plan(style, &servers, &zones).map_err(|e| failure("plan the installation", &e))
}

fn apply(host: &Host, plan: &Plan, root: &Path) -> Result<(), Failure> {
    let outcome = host.apply(plan).map_err(|e| failure("install", &e))?;
    output::print_line(&match outcome {
        Outcome::Unchanged => format!("{} is as it should be", plan.path.display()),
        _ => format!("wrote {}; waymark dns install --remove takes it back", plan.path.display()),
    })?;
    tell(host, outcome, root)
}

fn removed(host: &Host, root: &Path) -> Result<ExitCode, Failure> {
    let outcome = host.remove().map_err(|e| failure("remove the installation", &e))?;
    output::print_line(match outcome {
        Outcome::Unchanged => "nothing of Waymark is installed",
        Outcome::Superseded => "somebody else has replaced /etc/resolv.conf since, which stays as it is",
        Outcome::Changed | Outcome::RestartResolved => "what was there before is there again",
    })?;
    tell(host, outcome, root)?;
    Ok(ExitCode::SUCCESS)
}

fn failure(doing: &str, error: &InstallError) -> Failure {
    let failure = Failure::chain(format!("cannot {doing}"), error);
    match error {
        InstallError::Read(_, source) | InstallError::Write(_, source)
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            failure.hint("it needs root")
        }
        InstallError::Read(..) | InstallError::Write(..) => failure,
        InstallError::NoServer => failure.hint("name one with --address IP"),
        InstallError::Edited(path) => failure.hint(format!(
            "keep of it what you need, delete {}, and try again; the host's own file is /{BACKUP} if there is one",
            path.display()
        )),
        InstallError::GlobalServers(_) => failure.hint("--style resolv-conf makes Waymark the first resolver"),
    }
}

/// systemd-resolved reads its drop-ins when it starts. Under another root nothing runs that could be told.
fn tell(host: &Host, outcome: Outcome, root: &Path) -> Result<(), Failure> {
    if outcome != Outcome::RestartResolved {
        return Ok(());
    }
    if root == Path::new("/") {
        let told = Command::new("systemctl").args(["try-restart", "systemd-resolved"]).output();
        let reason = match &told {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            return Err(Failure::new(format!("systemd-resolved could not be restarted: {reason}"))
                .hint("restart it, or run this command again: it is still to be told"));
        }
    }
    host.told().map_err(|e| failure("finish", &e))
}

/// The addresses of the running Waymark that have port 53, and its zones; DC/OS's own when none can be asked.
async fn learn(args: &InstallArgs) -> (Vec<IpAddr>, Vec<String>) {
    let status = async { StatsClient::new(&args.stats).ok()?.get("api/status").await.ok() };
    let status = status.await.unwrap_or_default();
    let list =
        |key: &str| status["addresses"][key].as_array().into_iter().flatten().filter_map(|v| v.as_str());
    let bound = list("dns").filter_map(|address| address.parse::<SocketAddr>().ok());
    let servers: Vec<IpAddr> = bound.filter(|address| address.port() == 53).map(|a| a.ip()).collect();
    let zones: Vec<String> = list("dns_zones").map(str::to_owned).collect();
    (
        if servers.is_empty() { DCOS_RESOLVERS.to_vec() } else { servers },
        if zones.is_empty() { ZONES.map(str::to_owned).into() } else { zones },
    )
}

/// Installs, and waits until the process has ended or this one is told to stop.
async fn for_life_of(pid: u32, install: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // First, so that whatever comes next finds somebody who takes it back.
    let stop = shutdown::on_signals()?;
    // SAFETY: pidfd_open takes two numbers and gives a descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::pid_t::try_from(pid).unwrap_or(-1), 0) };
    if fd < 0 {
        // It has ended already.
        return Ok(());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: the descriptor is open, and owned by what it is registered with.
    let ended = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|e| Failure::chain("cannot watch the process", &std::io::Error::from(e)))?;
    install()?;
    tokio::select! {
        _ = ended.readable() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
