//! Bytes from one socket to another without passing through this process: splice(2) by way of a pipe.
//!
//! Worth it for large bodies only: a pipe costs two system calls more than a copy. Pipes are kept by the worker.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::wait::Wait;

/// From so many bytes on that are still to come.
pub(super) const WORTH_BYTES: u64 = 32 * 1024;
/// Of a pipe, asked of the kernel, which may give less.
const PIPE_BYTES: usize = 1024 * 1024;
const MOST_SPARE: usize = 16;
/// From a source that is quick so many bytes are awaited at once: each wake-up costs as much as moving them.
const MUCH_BYTES: u64 = 256 * 1024;

/// Empty pipes of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    /// An error (no file descriptors left) means: copy.
    pub(super) fn take(&self) -> io::Result<Box<Pipe>> {
        match self.0.borrow_mut().pop() {
            Some(pipe) => Ok(Box::new(pipe)),
            None => Pipe::new().map(Box::new),
        }
    }

    /// One that still holds bytes is closed.
    pub(super) fn put(&self, pipe: Pipe) {
        let mut spare = self.0.borrow_mut();
        if pipe.n_held == 0 && spare.len() < MOST_SPARE {
            spare.push(Pipe { patience: Patience::default(), ..pipe });
        }
    }
}

#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    n_held: usize,
    /// With the source of the present body.
    patience: Patience,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: the call writes two descriptors into the array.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both are new, open, and owned by nobody else.
        let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        // SAFETY: a plain call on an open descriptor. That the kernel refuses a larger pipe does not matter.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES as libc::c_int) };
        Ok(Self { reader, writer, n_held: 0, patience: Patience::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.n_held == 0
    }

    /// Takes some of the `left` bytes that are still to come from the socket into the empty pipe. 0: the other side has
    /// ended.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        left: u64,
        wait: &Wait,
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(PIPE_BYTES);
        let filled =
            poll_io(cx, from, Interest::READABLE, || splice(from.as_raw_fd(), self.writer.as_raw_fd(), most));
        if filled.is_pending() {
            self.patience.wait(from, left, wait);
        }
        let n = ready!(filled)?;
        self.n_held = n;
        Poll::Ready(Ok(n))
    }

    /// The body has ended: what comes next from its source may be short.
    pub(super) fn end(&mut self, source: &TcpStream) {
        if self.patience.asked > 1 {
            self.patience.ask(source, 1);
        }
    }

    /// Gives what it holds to the socket.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let n = ready!(poll_io(cx, to, Interest::WRITABLE, || {
            splice(self.reader.as_raw_fd(), to.as_raw_fd(), self.n_held)
        }))?;
        self.n_held -= n;
        Poll::Ready(Ok(n))
    }
}

fn poll_io(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    interest: Interest,
    mut io: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(match interest {
            Interest::READABLE => socket.poll_read_ready(cx),
            _ => socket.poll_write_ready(cx),
        })?;
        match socket.try_io(interest, &mut io) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// How many bytes a source must have before its task is woken. What it sends reaches the other side no later than a
/// long wait is noticed, and from then on at once.
#[derive(Debug, Default)]
struct Patience {
    /// Of the socket; 0: nothing, so it is 1.
    asked: u64,
    is_lost: bool,
}

impl Patience {
    /// There is nothing to read; `left` bytes are still to come.
    fn wait(&mut self, source: &TcpStream, left: u64, wait: &Wait) {
        self.is_lost = self.is_lost || wait.is_long();
        self.ask(source, if self.is_lost { 1 } else { left.min(MUCH_BYTES) });
    }

    fn ask(&mut self, source: &TcpStream, n_bytes: u64) {
        if std::mem::replace(&mut self.asked, n_bytes) == n_bytes {
            return;
        }
        let n_bytes = libc::c_int::try_from(n_bytes).unwrap_or(libc::c_int::MAX);
        let length = size_of_val(&n_bytes) as libc::socklen_t;
        let value = (&raw const n_bytes).cast();
        // SAFETY: the kernel reads an integer that lives until the call returns. That it refuses does not matter: the
        // task is then woken more often.
        unsafe { libc::setsockopt(source.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, length) };
    }
}

fn splice(from: i32, to: i32, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: a plain call on open descriptors; no memory is passed.
    let n = unsafe { libc::splice(from, null_mut(), to, null_mut(), most, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
