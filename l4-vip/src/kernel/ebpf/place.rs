//! Where the plane lives on a host: the control group whose processes it serves, and the directory of its pins.
//!
//! Pins are what keeps the programs attached when this process ends. One process at a time holds the directory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::OpenError;

const BPFFS: &str = "/sys/fs/bpf";
/// Below bpffs: one directory for each control group that is served.
const OWN: &str = "waymark";
/// Somebody else may be removing the directory as a left-over while it is being taken.
const ATTEMPTS: usize = 4;

#[derive(Debug)]
pub struct Cgroup {
    directory: File,
    /// As the kernel names it in a link's information.
    pub id: u64,
}

impl Cgroup {
    /// Opens `path`, or the root of the host's cgroup2 hierarchy.
    pub fn open(path: Option<&Path>) -> Result<Self, OpenError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => root().map_err(|source| {
                OpenError::new(
                    "find a cgroup2 hierarchy",
                    source,
                    "mount one (`mount -t cgroup2 none DIR`) and name it with --vip-cgroup",
                )
            })?,
        };
        let hint = "--vip-cgroup names a directory of a cgroup2 hierarchy";
        let failed =
            |source| OpenError::new(format!("use the control group {}", path.display()), source, hint);
        let directory = File::open(&path).map_err(failed)?;
        if !is_of(&path, libc::CGROUP2_SUPER_MAGIC).map_err(failed)? {
            return Err(failed(io::Error::other("it is not part of a cgroup2 hierarchy")));
        }
        let id = directory.metadata().map_err(failed)?.ino();
        Ok(Self { directory, id })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The mount point of cgroup2 that stands highest.
fn root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Fields: id, parent, device, root, mount point, options, optional fields, a dash, file system type, …
    let found = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.split(' ').next()? == "cgroup2").then_some((root != "/", point.len(), point))
    });
    match found.min() {
        Some((_, _, point)) => Ok(PathBuf::from(point)),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted")),
    }
}

/// The directory of this control group's pins, ours as long as this value lives.
#[derive(Debug)]
pub struct Pins {
    pub path: PathBuf,
    /// Locked. The lock goes with the process, however it ends.
    _lock: File,
}

impl Pins {
    /// Makes the directory if it is not there; mounts bpffs if nothing is mounted where it belongs.
    pub fn open(cgroup: &Cgroup) -> Result<Self, OpenError> {
        let failed =
            |what: &str, source| OpenError::new(what, source, "it needs root (CAP_BPF and CAP_SYS_ADMIN)");
        mount()
            .map_err(|e| failed("mount bpffs at /sys/fs/bpf, where the programs outlive this process", e))?;
        let path = Self::path_of(cgroup);
        let in_directory = |source| failed(&format!("use the pins in {}", path.display()), source);
        // Whoever removes a directory holds its lock, so one that is locked and still there is ours.
        for _ in 0..ATTEMPTS {
            std::fs::create_dir_all(&path).map_err(in_directory)?;
            let Some(lock) = lock_soon(&path).map_err(in_directory)? else {
                return Err(OpenError::new(
                    "serve VIPs for this control group",
                    io::Error::new(io::ErrorKind::AddrInUse, "another waymark serves them"),
                    "stop the other one, or give this one a group of its own with --vip-cgroup",
                ));
            };
            let is_there = std::fs::metadata(&path).is_ok_and(|now| {
                lock.metadata().is_ok_and(|locked| (now.ino(), now.dev()) == (locked.ino(), locked.dev()))
            });
            if is_there {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(in_directory(io::Error::other("somebody removes them as they are made")))
    }

    fn path_of(cgroup: &Cgroup) -> PathBuf {
        Path::new(BPFFS).join(OWN).join(cgroup.id.to_string())
    }
}

/// Directories of pins that no process holds; each is held while `each` looks at it.
pub fn for_each_unheld(mut each: impl FnMut(&Path)) {
    let all = std::fs::read_dir(Path::new(BPFFS).join(OWN)).into_iter().flatten().flatten();
    for path in all.map(|entry| entry.path()) {
        if let Ok(Some(_lock)) = lock(&path) {
            each(&path);
        }
    }
}

/// The same as [`lock`], with patience for a lock that is about to go: a child that is forked while its holder ends
/// has a copy of it until it runs its own program.
fn lock_soon(directory: &Path) -> io::Result<Option<File>> {
    for _ in 0..N_LOCK_TRIES {
        if let Some(lock) = lock(directory)? {
            return Ok(Some(lock));
        }
        std::thread::park_timeout(LOCK_PAUSE);
    }
    lock(directory)
}

const N_LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// `None` when another process, or another plane of this one, has it.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let lock = File::open(directory)?;
    // SAFETY: a plain call on a descriptor that is open.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(Some(lock));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        error => Err(error),
    }
}

fn mount() -> io::Result<()> {
    if is_of(Path::new(BPFFS), libc::BPF_FS_MAGIC)? {
        return Ok(());
    }
    // SAFETY: all arguments are texts that outlive the call.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            c"/sys/fs/bpf".as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn is_of(path: &Path, magic: libc::c_long) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statfs is a valid one, and the call only writes to it.
    let (result, found) = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &raw mut found), found)
    };
    if result == 0 { Ok(found.f_type == magic) } else { Err(io::Error::last_os_error()) }
}
