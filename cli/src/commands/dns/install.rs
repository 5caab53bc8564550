//! `waymark dns install`: makes Waymark the resolver of this host, takes that back, or only shows what it would do.
//!
//! With `--until-exit-of` it stays, and takes it back when that process has ended in whatever way: so nothing is left
//! behind by a crash.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, ExitCode};

use dns::install::{Host, Outcome, Plan, Style};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::args::{InstallArgs, ResolverStyle};
use crate::commands::stats::StatsClient;
use crate::config::DCOS_RESOLVERS;
use crate::failure::Failure;
use crate::{output, runtime, shutdown};

/// What systemd-resolved is to send here.
const ZONES: [&str; 5] = ["mesos", "thisdcos.directory", "thisdcos.global", "spartan", "zk"];

pub fn run(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let host = Host::new(&args.root);
    if args.remove {
        return removed(&host, &args.root);
    }
    let plan = plan(&host, args)?;
    if args.apply {
        apply(&host, &plan, &args.root)?;
        return match args.until_exit_of {
            None => Ok(ExitCode::SUCCESS),
            Some(pid) => {
                runtime::single_threaded("command")?.block_on(until_exit(pid))?;
                removed(&host, &args.root)
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
    let servers = match &args.address[..] {
        [] => runtime::single_threaded("command")?.block_on(learn_servers(args)),
        named => named.to_vec(),
    };
    host.plan(style, &servers, &ZONES.map(str::to_owned))
        .map_err(|e| Failure::chain("cannot plan the installation", &e))
}

fn apply(host: &Host, plan: &Plan, root: &Path) -> Result<(), Failure> {
    let outcome = host.apply(plan).map_err(|e| Failure::chain("cannot install", &e).hint("it needs root"))?;
    tell(outcome, root)?;
    output::print_line(&match outcome {
        Outcome::Unchanged => format!("{} is as it should be", plan.path.display()),
        _ => format!("wrote {}; waymark dns install --remove takes it back", plan.path.display()),
    })
}

fn removed(host: &Host, root: &Path) -> Result<ExitCode, Failure> {
    let outcome = host.remove().map_err(|e| Failure::chain("cannot remove", &e).hint("it needs root"))?;
    tell(outcome, root)?;
    output::print_line(match outcome {
        Outcome::Unchanged => "nothing of Waymark is installed",
        _ => "what was there before is there again",
    })?;
    Ok(ExitCode::SUCCESS)
}

/// systemd-resolved reads its drop-ins when it starts. Under another root nothing runs that could be told.
fn tell(outcome: Outcome, root: &Path) -> Result<(), Failure> {
    if outcome != Outcome::RestartResolved || root != Path::new("/") {
        return Ok(());
    }
    let restarted = Command::new("systemctl").args(["try-restart", "systemd-resolved"]).status();
    match restarted {
        Ok(status) if status.success() => Ok(()),
        _ => {
            Err(Failure::new("systemd-resolved could not be told").hint("systemctl restart systemd-resolved"))
        }
    }
}

/// The addresses of the running Waymark that have port 53; DC/OS's own when none can be asked.
async fn learn_servers(args: &InstallArgs) -> Vec<IpAddr> {
    let asked = async {
        let status = StatsClient::new(&args.stats).ok()?.get("api/status").await.ok()?;
        let addresses = status["addresses"]["dns"].as_array()?.iter();
        let parsed = addresses.filter_map(|a| a.as_str()?.parse::<std::net::SocketAddr>().ok());
        Some(parsed.filter(|a| a.port() == 53).map(|a| a.ip()).collect::<Vec<_>>())
    };
    asked.await.filter(|found| !found.is_empty()).unwrap_or_else(|| DCOS_RESOLVERS.to_vec())
}

/// Until the process has ended, or this one is told to stop.
async fn until_exit(pid: u32) -> Result<(), Failure> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes two numbers and gives a descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::pid_t::try_from(pid).unwrap_or(-1), 0) };
    if fd < 0 {
        // It has ended already.
        return Ok(());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let stop = shutdown::on_signals()?;
    // SAFETY: the descriptor is open, and owned by what it is registered with.
    let ended = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|e| Failure::chain("cannot watch the process", &std::io::Error::from(e)))?;
    tokio::select! {
        _ = ended.readable() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
