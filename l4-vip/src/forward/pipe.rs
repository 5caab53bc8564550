//! splice(2): moves bytes between sockets through a pipe without copying them, and the pipes for it.
//!
//! It keeps pipes only while they are empty: one that holds bytes belongs to a connection, and is closed with it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// More bytes per call and per turn than the default 64 KiB: measured at 64, 256 and 1,024 KiB, CPU per GB falls by
/// a tenth with each step. An unprivileged user has 64 MiB of pipes before the kernel makes them smaller.
const PIPE_BYTES: usize = 512 * 1024;

/// With less, copying is cheaper.
const LEAST_PIPE_BYTES: usize = 64 * 1024;

/// Empty pipes that a worker keeps. Beyond that a new one costs little compared with what it will move.
const MAX_IDLE_PIPES: usize = 16;

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
        let fd = write.as_raw_fd();
        // SAFETY: plain calls on an open descriptor. A refusal (the user's limit is reached) leaves the pipe as it is.
        let got = unsafe {
            match libc::fcntl(fd, libc::F_SETPIPE_SZ, PIPE_BYTES as libc::c_int) {
                -1 => libc::fcntl(fd, libc::F_GETPIPE_SZ),
                got => got,
            }
        };
        let capacity = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if capacity < LEAST_PIPE_BYTES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
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
    /// `Err` when no descriptor or pipe memory is left; the caller copies instead.
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
