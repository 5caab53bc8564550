//! Reading from and writing to sockets as they are, with no more of the runtime than a wait needs.
//!
//! Streams that are no sockets (TLS, those of HTTP/2) go through their own traits instead.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
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

/// The same of a socket that the runtime does not watch. `None`: nothing is there.
pub(super) fn receive_unwatched(fd: RawFd, room: &mut [u8]) -> Option<io::Result<usize>> {
    // SAFETY: the kernel writes to `room`, and no further than its length.
    unless_blocked(unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), 0) })
}

/// Writes as much as fits to a socket that the runtime does not watch. `None`: nothing does.
pub(super) fn send(fd: RawFd, bytes: &[u8]) -> Option<io::Result<usize>> {
    // SAFETY: the kernel reads from `bytes`, and no further than their length.
    unless_blocked(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

fn unless_blocked(moved: isize) -> Option<io::Result<usize>> {
    let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error());
    let is_blocked = moved.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    (!is_blocked).then_some(moved)
}

/// Takes a connection from the backlog; the connection does not block.
pub(crate) fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes an address and its length where it is told to, or fails; what it returns is a new
    // descriptor that nobody else owns.
    let (stream, peer) = unsafe {
        socket2::SockAddr::try_init(|address, length| {
            match libc::accept4(listener.as_raw_fd(), address.cast(), length, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(std::net::TcpStream::from_raw_fd(fd)),
            }
        })?
    };
    let peer = peer.as_socket().ok_or_else(|| io::Error::other("a connection without an address"))?;
    Ok((stream, peer))
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
