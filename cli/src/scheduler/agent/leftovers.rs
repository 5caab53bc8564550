//! Processes of instances that outlived them: daemons that left their group, and those of an earlier run that
//! was killed before it could end them. The kernel ends the first process of each task with its scheduler, but
//! not that process' own children.
//!
//! Not here: the lock that makes sure that the earlier run is over (`store`).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A killed process is gone within a few looks; one that is stuck in the kernel is not waited for.
const LOOKS: usize = 100;

/// Kills every process whose environment says that it lives in a sandbox below `sandboxes`, and looks until
/// they are gone. Returns how many there were.
pub fn end(sandboxes: &Path) -> usize {
    let mut mark = b"MESOS_SANDBOX=".to_vec();
    mark.extend_from_slice(sandboxes.as_os_str().as_bytes());
    mark.push(b'/');
    let n_found = kill_marked(&mark);
    let mut n_left = n_found;
    for _ in 0..LOOKS {
        if n_left == 0 {
            break;
        }
        std::thread::yield_now();
        n_left = kill_marked(&mark);
    }
    n_found
}

fn kill_marked(mark: &[u8]) -> usize {
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let mut n_killed = 0;
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Environments of other users' processes cannot be read, and are none of ours.
        let Ok(environment) = std::fs::read(process.path().join("environ")) else { continue };
        if pid != own && environment.split(|&b| b == 0).any(|variable| variable.starts_with(mark)) {
            // SAFETY: plain system call.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
            n_killed += 1;
        }
    }
    n_killed
}
