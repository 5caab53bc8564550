//! One task's process group: started in its sandbox, signalled as a whole, gone as a whole.
//!
//! Not here: when it is signalled (`agent`), nor the log files (`logs`).

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::spec::{ContainerSpec, LaunchSpec};
use super::{docker, logs, secrets};
use crate::scheduler::app::pod::Program;

/// How often a group that was told to go is looked at: short against every grace period, cheap for the CPU.
const GROUP_POLL: Duration = Duration::from_millis(5);

/// Time for SIGKILL to take effect; only a process stuck in the kernel needs longer.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Time for the last output to be copied once the group is gone. Only a process that left its group can
/// still hold the pipe by then.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

/// Prefixes of variables that describe the scheduler or a task it runs in, not the machine.
const NOT_INHERITED: &[&str] = &["MESOS_", "MARATHON_", "LIBPROCESS_", "WAYMARK_", "PORT"];

/// Makes this process the parent of orphans among its instances' children, so that it can see them end.
pub fn adopt_orphans() {
    // SAFETY: sets an attribute of this process; no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

#[derive(Debug)]
pub struct Process {
    child: Child,
    group: libc::pid_t,
    logs: JoinSet<()>,
}

impl Process {
    /// Starts a container's program: on this machine, or through `docker` when it has an image.
    pub async fn spawn(spec: &LaunchSpec, container: &ContainerSpec) -> io::Result<Self> {
        let env = secrets::resolve(&container.env, &spec.app.secrets, &spec.secrets).await;
        let env = env.map_err(io::Error::other)?;
        let mut command = match (&container.image, &container.program) {
            (Some(image), _) => {
                let mut command = Command::new("docker");
                command.args(docker::run_arguments(spec, container, image, &env));
                command
            }
            (None, Some(Program::Argv(args))) => {
                let (program, rest) =
                    args.split_first().ok_or_else(|| io::Error::other("'args' is empty"))?;
                let mut command = Command::new(program);
                command.args(rest);
                command
            }
            (None, Some(Program::Shell(line))) => shell(line),
            (None, None) => return Err(io::Error::other("there is neither a command nor an image")),
        };
        if container.image.is_none() {
            prepare(&mut command, container, env)?;
        } else {
            isolate(&mut command, &container.sandbox);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            io::Error::new(error.kind(), format!("{program}: {error}"))
        })?;
        let group = child.id().ok_or_else(|| io::Error::other("the process has no id"))? as libc::pid_t;
        let mut logs = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            logs.spawn(logs::copy(stdout, container.sandbox.join("stdout")));
        }
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(logs::copy(stderr, container.sandbox.join("stderr")));
        }
        Ok(Self { child, group, logs })
    }

    /// Waits for the first process; others of its group may still run.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGTERM to the whole group, SIGKILL to what is left of it after `grace`.
    pub async fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + grace;
        self.signal(libc::SIGTERM);
        if let Ok(status) = tokio::time::timeout_at(deadline, self.child.wait()).await {
            // Its children may be finishing their own work: they have the same time.
            while !self.group_is_gone() && Instant::now() < deadline {
                tokio::time::sleep(GROUP_POLL).await;
            }
            self.end_group_now().await;
            return status;
        }
        self.signal(libc::SIGKILL);
        let status = tokio::time::timeout(KILL_PATIENCE, self.child.wait()).await;
        self.end_group_now().await;
        status.unwrap_or_else(|_| Err(io::Error::other("it did not end after SIGKILL")))
    }

    /// SIGKILL to what is left of the group once its first process is gone.
    pub async fn end_group_now(&mut self) {
        let deadline = Instant::now() + KILL_PATIENCE;
        while !self.group_is_gone() && Instant::now() < deadline {
            self.signal(libc::SIGKILL);
            tokio::time::sleep(GROUP_POLL).await;
        }
    }

    pub async fn close_logs(&mut self) {
        let all = async { while self.logs.join_next().await.is_some() {} };
        if tokio::time::timeout(LOG_PATIENCE, all).await.is_err() {
            self.logs.abort_all();
        }
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: plain system call. The group id cannot belong to a stranger: it is in use as long as the
        // first process is not reaped or the group has members, and is not signalled after that.
        unsafe { libc::kill(-self.group, signal) };
    }

    /// Only asked once the first process has been reaped.
    fn group_is_gone(&self) -> bool {
        // Orphans of the group are our children (`adopt_orphans`); as zombies they would still count.
        // SAFETY: plain system calls, a null status is allowed.
        unsafe {
            while libc::waitpid(-self.group, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::kill(-self.group, 0) != 0
        }
    }
}

/// Runs a COMMAND check next to the task, or inside its container.
pub async fn run_check(
    line: &str,
    spec: &LaunchSpec,
    container: &ContainerSpec,
    timeout: Duration,
) -> Result<(), String> {
    let mut command = if container.image.is_some() {
        let mut command = Command::new("docker");
        command.args(["exec", &docker::name(container), "/bin/sh", "-c", line]);
        isolate(&mut command, &container.sandbox);
        command
    } else {
        let env = secrets::resolve(&container.env, &spec.app.secrets, &spec.secrets).await?;
        let mut command = shell(line);
        prepare(&mut command, container, env).map_err(|error| error.to_string())?;
        command
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("Failed to launch the check: {error}"))?;
    let group = child.id().ok_or("the process has no id")? as libc::pid_t;
    // Owns the group, so that it also goes when the check itself is dropped with its task.
    let _guard = GroupGuard(group);
    match tokio::time::timeout(timeout, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(describe(status)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("Command timed out after {}s", timeout.as_secs())),
    }
}

struct GroupGuard(libc::pid_t);

impl Drop for GroupGuard {
    fn drop(&mut self) {
        // SAFETY: plain system call on a group that this check made.
        unsafe { libc::kill(-self.0, libc::SIGKILL) };
    }
}

fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line);
    command
}

/// The environment and the user of a program of this machine.
fn prepare(command: &mut Command, container: &ContainerSpec, env: Vec<(String, String)>) -> io::Result<()> {
    let inherited = |(name, _): &(OsString, OsString)| {
        let name = name.to_string_lossy();
        !NOT_INHERITED.iter().any(|prefix| name.starts_with(prefix))
    };
    command.env_clear().envs(std::env::vars_os().filter(inherited)).envs(env);
    isolate(command, &container.sandbox);
    if let Some(user) = &container.user {
        let (uid, gid) = look_up(user)?;
        // SAFETY: `geteuid` has no preconditions.
        if uid != unsafe { libc::geteuid() } {
            command.uid(uid).gid(gid);
        }
    }
    Ok(())
}

/// Gives the sandbox and everything fetched into it to the app's user.
pub fn hand_over(sandbox: &Path, user: &str) -> io::Result<()> {
    let (uid, gid) = look_up(user)?;
    // SAFETY: `geteuid` has no preconditions.
    if uid == unsafe { libc::geteuid() } {
        return Ok(());
    }
    let mut folders = vec![sandbox.to_owned()];
    while let Some(folder) = folders.pop() {
        std::os::unix::fs::lchown(&folder, Some(uid), Some(gid))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => std::os::unix::fs::lchown(entry.path(), Some(uid), Some(gid))?,
            }
        }
    }
    Ok(())
}

/// A process group of its own that ends with the agent.
fn isolate(command: &mut Command, sandbox: &Path) {
    command.current_dir(sandbox).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        let parent = libc::getpid();
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The scheduler may have gone between the fork and the line above.
            if libc::getppid() != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

fn look_up(user: &str) -> io::Result<(libc::uid_t, libc::gid_t)> {
    let name = CString::new(user)?;
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0 as libc::c_char; 16 * 1024];
    let mut found = std::ptr::null_mut();
    // SAFETY: every pointer is to memory of ours that outlives the call; `found` tells whether `entry` is set.
    unsafe {
        libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found);
        if found.is_null() {
            return Err(io::Error::other(format!("there is no user '{user}'")));
        }
        let entry = entry.assume_init();
        Ok((entry.pw_uid, entry.pw_gid))
    }
}

/// Mesos' words for how a command ended.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("Command exited with status {code}"),
        (None, Some(signal)) => format!("Command terminated with signal {}", signal_name(signal)),
        (None, None) => "Command ended in an unknown way".into(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "Hangup",
        libc::SIGINT => "Interrupt",
        libc::SIGQUIT => "Quit",
        libc::SIGILL => "Illegal instruction",
        libc::SIGABRT => "Aborted",
        libc::SIGBUS => "Bus error",
        libc::SIGFPE => "Floating point exception",
        libc::SIGKILL => "Killed",
        libc::SIGSEGV => "Segmentation fault",
        libc::SIGPIPE => "Broken pipe",
        libc::SIGALRM => "Alarm clock",
        libc::SIGTERM => "Terminated",
        other => return other.to_string(),
    };
    name.into()
}
