//! splice(2): moves bytes between sockets through a pipe without copying them, and the pipes for it.
//!
//! It keeps pipes only while they are empty: one that holds bytes belongs to a connection, and is closed with it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// More than the default 64 KiB: fewer calls per byte. The kernel's per-user soft limit of 64 MiB of pipes allows 256.
const PIPE_BYTES: usize = 256 * 1024;

/// Empty pipes that a worker keeps. Beyond that a new one costs little compared with what it will move.
const MAX_IDLE_PIPES: usize = 64;

#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    n_bytes: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` is an array of two, as pipe2 wants.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: pipe2 has just made both, and nothing else owns them.
        let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: a plain call on an open descriptor.
        let got = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES as libc::c_int) };
        // A refusal (the user's limit is reached) leaves the size that the pipe was born with: at least two pages,
        // and asking splice for more than fits is harmless.
        let capacity = usize::try_from(got).unwrap_or(PIPE_BYTES);
        Ok(Self { read, write, capacity, n_bytes: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.n_bytes == 0
    }

    /// Fills the empty pipe from `socket`; 0 is the end of the stream. Because it is empty, `WouldBlock` can only
    /// mean that the socket has nothing.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        debug_assert!(self.is_empty());
        self.n_bytes = splice(socket.as_raw_fd(), self.write.as_raw_fd(), self.capacity)?;
        Ok(self.n_bytes)
    }

    /// Empties the pipe into `socket`, as far as the socket takes it.
    pub(super) fn empty(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let n = splice(self.read.as_raw_fd(), socket.as_raw_fd(), self.n_bytes)?;
        self.n_bytes -= n;
        Ok(n)
    }
}

fn splice(from: i32, to: i32, n_bytes: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open for the call; null offsets are what sockets and pipes want.
    let n = unsafe {
        libc::splice(
            from,
            std::ptr::null_mut(),
            to,
            std::ptr::null_mut(),
            n_bytes,
            libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// The empty pipes of one worker.
#[derive(Debug, Default)]
pub(super) struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    /// `Err` when no descriptor is left; the caller copies instead.
    pub(super) fn take(&self) -> io::Result<Pipe> {
        match self.0.borrow_mut().pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::new(),
        }
    }

    pub(super) fn give_back(&self, pipe: Pipe) {
        let mut pipes = self.0.borrow_mut();
        if pipe.is_empty() && pipes.len() < MAX_IDLE_PIPES {
            pipes.push(pipe);
        }
    }
}
