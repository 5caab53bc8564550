//! `waymark exec` and `waymark shell`: a command whose resolver is Waymark's DNS.
//!
//! The C library reads `/etc/resolv.conf` and knows port 53 only. So the command gets a mount namespace of its own,
//! in which another file lies over that one. Nothing outside of the namespace changes, and nothing has to be undone.

use std::ffi::{CString, OsString};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::stats::StatsClient;
use crate::args::StatsArgs;
use crate::failure::Failure;
use crate::runtime;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Replaces this process by the command, so its exit status and signals are the command's own.
pub fn exec(stats: &StatsArgs, words: &[OsString]) -> Result<ExitCode, Failure> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::usage("no command was given").hint("waymark exec -- COMMAND"));
    };
    require_root()?;
    let server = runtime::single_threaded("command")?.block_on(server(stats))?;
    enter(server)?;
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::chain(format!("cannot run {}", program.display()), &error))
}

pub fn shell(stats: &StatsArgs) -> Result<ExitCode, Failure> {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    exec(stats, &[shell])
}

fn require_root() -> Result<(), Failure> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    Err(Failure::new("a private /etc/resolv.conf needs root")
        .hint("sudo waymark exec -- …, with waymark dev running as root, too, so that its DNS has port 53"))
}

/// The running Waymark's DNS address that has port 53.
async fn server(stats: &StatsArgs) -> Result<IpAddr, Failure> {
    let status = StatsClient::new(stats)?.get("api/status").await?;
    let addresses = &status["addresses"];
    let all = addresses["dns53"]
        .as_str()
        .into_iter()
        .chain(addresses["dns"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str));
    let mut parsed = all.filter_map(|text| text.parse::<std::net::SocketAddr>().ok());
    parsed.find(|address| address.port() == 53).map(|address| address.ip()).ok_or_else(|| {
        Failure::new("this Waymark's DNS has no address with port 53, and programs look names up on no other port")
            .hint("start it with the right to bind port 53: as root, or after setcap cap_net_bind_service+ep on the binary")
    })
}

fn enter(server: IpAddr) -> Result<(), Failure> {
    let cannot = |what: &str| {
        let error = std::io::Error::last_os_error();
        Failure::chain(what, &error).hint("a container may forbid it; it needs the capability CAP_SYS_ADMIN")
    };
    // SAFETY: unshare takes no pointers; this process has one thread here, as a new mount namespace wants.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(cannot("cannot make a mount namespace"));
    }
    // Mounts made here must not travel back.
    if mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE) != 0 {
        return Err(cannot("cannot make the mounts private"));
    }
    let file = resolv_conf(server).map_err(|e| Failure::chain("cannot write a private resolv.conf", &e))?;
    // A bind mount needs a real file to lie on, and /etc/resolv.conf is often a link.
    let target = std::fs::canonicalize(RESOLV_CONF)
        .or_else(|_| std::fs::File::create(RESOLV_CONF).map(|_| PathBuf::from(RESOLV_CONF)));
    let target = target.map_err(|e| Failure::chain(format!("cannot find {RESOLV_CONF}"), &e))?;
    let mounted = mount(Some(&file), &target, libc::MS_BIND);
    let failure = (mounted != 0).then(|| cannot(&format!("cannot mount over {}", target.display())));
    // The mount keeps the contents; the name is not needed.
    let _ = std::fs::remove_file(&file);
    failure.map_or(Ok(()), Err)
}

fn resolv_conf(server: IpAddr) -> std::io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("waymark-resolv-{}", uuid::Uuid::new_v4()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    writeln!(file, "# Written by waymark exec; it is seen by this command only.")?;
    writeln!(file, "nameserver {server}\noptions timeout:1")?;
    // Commands that drop root still have to read it.
    std::os::unix::fs::fchown(&file, Some(0), Some(0))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(path)
}

fn mount(source: Option<&Path>, target: &Path, flags: libc::c_ulong) -> libc::c_int {
    let text =
        |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("paths of the system have no NUL");
    let (source, target) = (source.map(text), text(target));
    let source = source.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: both strings outlive the call; type and data may be null for a bind mount and a propagation change.
    unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) }
}
