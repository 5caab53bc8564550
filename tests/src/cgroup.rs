//! Control groups of a test's own, for what is attached to them: made empty, joined by threads, removed when dropped.
//!
//! Threads join, not processes, so that tests side by side in one process do not see each other's programs. The root
//! group and everybody else's are left alone.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::Context as _;

const PREFIX: &str = "waymark-tests-";

#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new() -> anyhow::Result<Self> {
        static N_MADE: AtomicU32 = AtomicU32::new(0);
        let parent = own_parent()?;
        let path = parent.join(N_MADE.fetch_add(1, Relaxed).to_string());
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        std::fs::write(path.join("cgroup.type"), "threaded")?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For `--vip-cgroup`.
    pub fn flag(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Runs `work` on a thread of its own inside. The sockets and processes that it makes are inside, too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().expect("the group exists as long as this value");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves this thread inside for the rest of its life.
    pub fn enter(&self) -> io::Result<()> {
        // 0 is whoever writes it.
        std::fs::write(self.path.join("cgroup.threads"), "0")
    }

    /// Makes the process that `command` starts live inside.
    pub fn around<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let threads = self.path.join("cgroup.threads");
        // SAFETY: between fork and exec the closure makes system calls on memory that was allocated before.
        unsafe { command.pre_exec(move || std::fs::write(&threads, "0")) }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // While something lives in it the kernel keeps it; the next run removes it.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A group for this process, whose threads may then be spread over groups below it.
fn own_parent() -> anyhow::Result<PathBuf> {
    static PARENT: std::sync::Mutex<Option<PathBuf>> = std::sync::Mutex::new(None);
    let mut parent =
        PARENT.lock().map_err(|_| anyhow::anyhow!("another test failed to make a control group"))?;
    if let Some(parent) = &*parent {
        return Ok(parent.clone());
    }
    let root = hierarchy().context("no cgroup2 hierarchy is mounted")?;
    remove_left_over(&root);
    let path = root.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::write(path.join("cgroup.procs"), "0")?;
    *parent = Some(path.clone());
    Ok(path)
}

/// Groups of processes that have ended. The kernel refuses to remove one in which something lives.
fn remove_left_over(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            for below in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(below.path());
            }
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let of_cgroup2 = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    };
    mounts.lines().find_map(of_cgroup2)
}
