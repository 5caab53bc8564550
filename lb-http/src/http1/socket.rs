//! Reading from and writing to sockets as they are, with no more of the runtime than a wait needs.
//!
//! Streams that are no sockets (TLS) go through their own traits instead.

use std::io;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads once what is there. An error of the kind `WouldBlock`: nothing.
pub(super) fn receive(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let (fd, n_wanted) = (socket.as_raw_fd(), room.len());
    // SAFETY: the kernel writes to `room`, and no further than its length.
    once(socket, Interest::READABLE, n_wanted, || unsafe {
        libc::recv(fd, room.as_mut_ptr().cast(), n_wanted, 0)
    })
}

/// Writes as much as fits, and waits while that is nothing.
pub(crate) fn poll_send(cx: &mut Context<'_>, socket: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let fd = socket.as_raw_fd();
    loop {
        // SAFETY: the kernel reads from `bytes`, and no further than their length.
        let sent = once(socket, Interest::WRITABLE, bytes.len(), || unsafe {
            libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
        });
        match sent {
            // Tried before it is waited for, because there nearly always is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_write_ready(cx))?,
            sent => return Poll::Ready(sent),
        }
    }
}

/// Makes a system call that moves up to `n_wanted` bytes, unless the socket is known not to be ready for it.
fn once(
    socket: &TcpStream,
    interest: Interest,
    n_wanted: usize,
    mut call: impl FnMut() -> isize,
) -> io::Result<usize> {
    let mut n_moved = 0;
    let result = socket.try_io(interest, || {
        n_moved = usize::try_from(call()).map_err(|_| io::Error::last_os_error())?;
        // Less than was wanted means that the socket is empty (or full) now: the runtime, told so, waits for more
        // instead of making another call that would only find that out.
        if 0 < n_moved && n_moved < n_wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n_moved) }
    });
    if n_moved > 0 { Ok(n_moved) } else { result }
}
