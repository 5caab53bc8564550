//! Processes of an earlier run that was killed before it could end them. The kernel ends the first process of
//! each task with its scheduler, but not that process' own children.
//!
//! Not here: the lock that makes sure that the earlier run is over (`store`).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Kills every process whose environment says that it lives in a sandbox below `sandboxes`. Returns how many.
pub fn end(sandboxes: &Path) -> usize {
    let mut mark = b"MESOS_SANDBOX=".to_vec();
    mark.extend_from_slice(sandboxes.as_os_str().as_bytes());
    mark.push(b'/');
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let mut n_killed = 0;
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Environments of other users' processes cannot be read, and are none of ours.
        let Ok(environment) = std::fs::read(process.path().join("environ")) else { continue };
        if pid != own && environment.split(|&b| b == 0).any(|variable| variable.starts_with(&mark)) {
            // SAFETY: plain system call.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
            n_killed += 1;
        }
    }
    n_killed
}
