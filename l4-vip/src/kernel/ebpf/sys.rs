//! bpf(2): maps, programs, links and pins, as owned descriptors and plain calls.
//!
//! The attribute union is filled in as the kernel's `union bpf_attr` lays it out (`linux/bpf.h`). What is stored in
//! the maps is the callers' affair.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::btf;

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_INFO: u32 = 15;
const BTF_LOAD: u32 = 18;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// Long enough for the part of a complaint that says what is wrong; the kernel keeps the end of a longer one.
const LOG_BYTES: usize = 256 * 1024;
/// Elements read in one call.
const BATCH: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuHash = 5,
    LruHash = 9,
    /// An element for a socket, kept with it and gone with it.
    SocketStorage = 24,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    pub kind: MapKind,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub max_entries: u32,
}

/// Elements are allocated as they come, so that an empty table costs only its buckets.
const NO_PREALLOC: u32 = 1;

impl MapShape {
    fn flags(self) -> u32 {
        match self.kind {
            MapKind::Hash | MapKind::PerCpuHash | MapKind::SocketStorage => NO_PREALLOC,
            // The kernel insists on preallocation for LRU maps: they must never fail to take an entry.
            MapKind::Array | MapKind::LruHash => 0,
        }
    }
}

/// `union bpf_attr`, of the size that the newest of the commands above needs.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(self, at: usize, to: *const T) -> Self {
        self.u64(at, to as u64)
    }

    /// A name as `bpftool` shows it; at most 15 bytes count.
    fn name(mut self, at: usize, name: &str) -> Self {
        let n = name.len().min(15);
        self.0[at..at + n].copy_from_slice(&name.as_bytes()[..n]);
        self
    }

    /// # Safety
    /// Every pointer in the attribute is good for what `command` does with it.
    unsafe fn call(&mut self, command: u32) -> io::Result<i32> {
        // SAFETY: the attribute is as long as it says, and the caller vouches for what it points to.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(self), size_of::<Self>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// # Safety
    /// As for [`Self::call`]; the command answers a new descriptor.
    unsafe fn open(&mut self, command: u32) -> io::Result<OwnedFd> {
        // SAFETY: the caller vouches for the pointers; the descriptor is new and nobody else's.
        unsafe { self.call(command).map(|fd| OwnedFd::from_raw_fd(fd)) }
    }
}

#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    shape: MapShape,
}

impl Map {
    pub fn create(name: &str, shape: MapShape) -> io::Result<Self> {
        let mut attr = Attr::new()
            .u32(0, shape.kind as u32)
            .u32(4, shape.key_bytes)
            .u32(8, shape.value_bytes)
            .u32(12, shape.max_entries)
            .u32(16, shape.flags())
            .name(28, name);
        let types = match shape.kind {
            MapKind::SocketStorage => Some(btf::of_words(shape.value_bytes)?),
            _ => None,
        };
        if let Some(types) = &types {
            attr = attr.fd(48, types.as_fd()).u32(52, btf::KEY).u32(56, btf::VALUE);
        }
        // SAFETY: the attribute has no pointers.
        Ok(Self { fd: unsafe { attr.open(MAP_CREATE) }?, shape })
    }

    /// Opens a pinned map; `None` when nothing is pinned there or it is of another shape.
    pub fn open_pinned(path: &Path, shape: MapShape) -> io::Result<Option<Self>> {
        Ok(Self::open_pinned_of_any_size(path, shape)?.filter(|map| map.shape == shape))
    }

    /// The same, whatever number of elements it was made for.
    pub fn open_pinned_of_any_size(path: &Path, shape: MapShape) -> io::Result<Option<Self>> {
        let Some(fd) = open_pinned(path)? else { return Ok(None) };
        let mut info = [0_u32; 6];
        object_info(fd.as_fd(), &mut info)?;
        let [kind, _, key_bytes, value_bytes, max_entries, flags] = info;
        let same = (kind, key_bytes, value_bytes, flags)
            == (shape.kind as u32, shape.key_bytes, shape.value_bytes, shape.flags());
        Ok(same.then_some(Self { fd, shape: MapShape { max_entries, ..shape } }))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn max_entries(&self) -> u32 {
        self.shape.max_entries
    }

    /// Replaces or adds an element; whoever reads at the same time finds the old value or the new one.
    pub fn update<const K: usize, const V: usize>(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        debug_assert_eq!((K, V), (self.shape.key_bytes as usize, self.shape.value_bytes as usize));
        let mut attr = Attr::new().fd(0, self.fd()).pointer(8, key).pointer(16, value);
        // SAFETY: key and value are as long as the map's are and outlive the call.
        unsafe { attr.call(MAP_UPDATE) }.map(|_| ())
    }

    /// Replaces or adds many elements, each as [`Self::update`] does, in the order of the keys. After an error it is
    /// not known which were.
    pub fn update_all<const K: usize, const V: usize>(
        &self,
        keys: &[[u8; K]],
        values: &[[u8; V]],
    ) -> io::Result<()> {
        debug_assert_eq!((K, V), (self.shape.key_bytes as usize, self.shape.value_bytes as usize));
        // One call for one element is cheaper than a batch of one.
        if let ([key], [value]) = (keys, values) {
            return self.update(key, value);
        }
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            let mut attr = Attr::new()
                .pointer(16, keys.as_ptr())
                .pointer(24, values.as_ptr())
                .u32(32, keys.len().min(values.len()) as u32)
                .fd(36, self.fd());
            // SAFETY: there are as many keys and values as the count says, and they outlive the call.
            unsafe { attr.call(MAP_UPDATE_BATCH) }?;
        }
        Ok(())
    }

    /// Sets an element of a per-CPU map: these numbers on the first CPU, zero on the others.
    pub fn update_first_cpu<const K: usize>(&self, key: &[u8; K], first: &[u64]) -> io::Result<()> {
        debug_assert_eq!((self.shape.kind, K), (MapKind::PerCpuHash, self.shape.key_bytes as usize));
        let mut value = vec![0_u64; self.value_bytes() / 8];
        value[..first.len()].copy_from_slice(first);
        let mut attr = Attr::new().fd(0, self.fd()).pointer(8, key).pointer(16, value.as_ptr());
        // SAFETY: the value has one part for each possible CPU, which is what the kernel reads.
        unsafe { attr.call(MAP_UPDATE) }.map(|_| ())
    }

    /// Removing what is not there is no error.
    pub fn delete<const K: usize>(&self, key: &[u8; K]) -> io::Result<()> {
        debug_assert_eq!(K, self.shape.key_bytes as usize);
        let mut attr = Attr::new().fd(0, self.fd()).pointer(8, key);
        // SAFETY: the key is as long as the map's are and outlives the call.
        match unsafe { attr.call(MAP_DELETE) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// The value of an element, one part for each CPU when the map is per CPU.
    pub fn lookup_all_cpus<const K: usize>(&self, key: &[u8; K]) -> io::Result<Option<Vec<u8>>> {
        debug_assert_eq!(K, self.shape.key_bytes as usize);
        let mut value = vec![0_u8; self.value_bytes()];
        let mut attr = Attr::new().fd(0, self.fd()).pointer(8, key).pointer(16, value.as_mut_ptr());
        // SAFETY: key and value are as long as the map's are and outlive the call.
        match unsafe { attr.call(MAP_LOOKUP) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with the key and the value of every element. A per-CPU value is one part after the other.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key_bytes, value_bytes) = (self.shape.key_bytes as usize, self.value_bytes());
        let mut keys = vec![0_u8; BATCH * key_bytes];
        let mut values = vec![0_u8; BATCH * value_bytes];
        // The kernel's mark of how far it has come: a bucket number, for a hash.
        let (mut mark, mut next_mark) = ([0_u8; 32], [0_u8; 32]);
        let mut begun = false;
        loop {
            let from = if begun { mark.as_ptr() } else { std::ptr::null() };
            let mut attr = Attr::new()
                .pointer(0, from)
                .pointer(8, next_mark.as_mut_ptr())
                .pointer(16, keys.as_mut_ptr())
                .pointer(24, values.as_mut_ptr())
                .u32(32, BATCH as u32)
                .fd(36, self.fd());
            // SAFETY: the buffers hold as many keys and values as the count says; marks are shorter than theirs.
            let result = unsafe { attr.call(MAP_LOOKUP_BATCH) };
            let done = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let n = u32::from_ne_bytes([attr.0[32], attr.0[33], attr.0[34], attr.0[35]]) as usize;
            for (key, value) in keys.chunks_exact(key_bytes).zip(values.chunks_exact(value_bytes)).take(n) {
                each(key, value);
            }
            if done {
                return Ok(());
            }
            (mark, begun) = (next_mark, true);
        }
    }

    /// Of what a lookup from outside answers.
    fn value_bytes(&self) -> usize {
        let value_bytes = self.shape.value_bytes as usize;
        match self.shape.kind {
            MapKind::PerCpuHash => value_bytes.next_multiple_of(8) * n_possible_cpus(),
            _ => value_bytes,
        }
    }
}

/// CPUs that the kernel keeps per-CPU data for, present or not.
fn n_possible_cpus() -> usize {
    static N: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
        let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<usize>().ok());
        // SAFETY: a plain call.
        let configured = || unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1) as usize;
        last.map_or_else(configured, |last| last + 1)
    });
    *N
}

/// Descriptions of types, as [`btf`] codes them.
pub fn load_types(blob: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().pointer(0, blob.as_ptr()).u32(16, blob.len() as u32);
    // SAFETY: the bytes outlive the call and are as many as it says.
    unsafe { attr.open(BTF_LOAD) }
}

/// `enum bpf_prog_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// Runs in a socket call that names an address.
    SockAddr = 18,
    /// Runs when something happens to a TCP socket.
    SockOps = 13,
}

/// Loads a program that is attached to a cgroup. The error's text ends with what the verifier said.
pub fn load_program(
    name: &str,
    kind: ProgramType,
    code: &[[u8; 8]],
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let attr = || {
        Attr::new()
            .u32(0, kind as u32)
            .u32(4, code.len() as u32)
            .pointer(8, code.as_ptr())
            .pointer(16, license.as_ptr())
            .name(48, name)
            .u32(68, attach_type)
    };
    // SAFETY: code and licence outlive the call.
    let error = match unsafe { attr().open(PROG_LOAD) } {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    // Writing the log costs time, so it is asked for only when there is something to read.
    let mut log = vec![0_u8; LOG_BYTES];
    let mut attr = attr().u32(24, 1).u32(28, LOG_BYTES as u32).pointer(32, log.as_mut_ptr());
    // SAFETY: as above, and the log is as long as it says.
    let _ = unsafe { attr.open(PROG_LOAD) };
    let text = String::from_utf8_lossy(&log);
    let text = text.trim_end_matches('\0').trim();
    if text.is_empty() {
        return Err(error);
    }
    // What is wrong stands at the end, before a line of totals.
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join(" | ");
    Err(io::Error::new(error.kind(), format!("{error}; verifier: {end}")))
}

pub fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().fd(0, program).fd(4, cgroup).u32(8, attach_type);
    // SAFETY: the attribute has no pointers.
    unsafe { attr.open(LINK_CREATE) }
}

/// Puts another program in a link's place, at once.
pub fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link).fd(4, program);
    // SAFETY: the attribute has no pointers.
    unsafe { attr.call(LINK_UPDATE) }.map(|_| ())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub program_id: u32,
    /// 0 when it is attached no more: the cgroup is gone, or somebody took it off.
    pub cgroup_id: u64,
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = [0_u32; 8];
    object_info(link, &mut info)?;
    Ok(LinkInfo { program_id: info[2], cgroup_id: u64::from(info[4]) | u64::from(info[5]) << 32 })
}

/// The beginning of an object's information, as much of it as `info` holds.
fn object_info<const N: usize>(object: BorrowedFd<'_>, info: &mut [u32; N]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, object).u32(4, 4 * N as u32).pointer(8, info.as_mut_ptr());
    // SAFETY: the buffer is as long as it says; the kernel cuts what does not fit.
    unsafe { attr.call(OBJ_INFO) }.map(|_| ())
}

pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Attr::new().pointer(0, path.as_ptr()).fd(8, object);
    // SAFETY: the path outlives the call.
    unsafe { attr.call(OBJ_PIN) }.map(|_| ())
}

/// Opens whatever is pinned at a path; `None` when nothing is.
pub fn open_pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = Attr::new().pointer(0, path.as_ptr());
    // SAFETY: the path outlives the call.
    match unsafe { attr.open(OBJ_GET) } {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
