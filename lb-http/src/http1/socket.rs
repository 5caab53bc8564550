//! Reading from and writing to sockets as they are, with no more of the runtime than a wait needs.
//!
//! Streams that are no sockets (TLS) go through their own traits instead.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads once what is there. An error of the kind `WouldBlock`: nothing. `room` is made only when there may be
/// something.
pub(super) fn receive<'r>(socket: &TcpStream, room: impl FnOnce() -> &'r mut [u8]) -> io::Result<usize> {
    once(socket, Interest::READABLE, || {
        let room = room();
        (receive_into(socket.as_raw_fd(), room), room.len())
    })
}

/// The same of a socket that the runtime does not watch. `None`: nothing is there.
pub(super) fn receive_unwatched(fd: RawFd, room: &mut [u8]) -> Option<io::Result<usize>> {
    unless_blocked(receive_into(fd, room))
}

/// When what is written goes on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    AtOnce,
    /// With the end of this direction, which the caller says next: in one packet if it fits.
    WithEnd,
}

impl Departure {
    fn flags(self) -> libc::c_int {
        match self {
            Self::AtOnce => libc::MSG_NOSIGNAL,
            Self::WithEnd => libc::MSG_NOSIGNAL | libc::MSG_MORE,
        }
    }
}

/// Writes as much as fits to a socket that the runtime does not watch. `None`: nothing does.
pub(super) fn send(fd: RawFd, bytes: &[u8], departure: Departure) -> Option<io::Result<usize>> {
    unless_blocked(send_from(fd, bytes, departure))
}

/// Says that nothing more will be written to a socket that the runtime does not watch.
pub(super) fn end(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// The kernel's calls as they are: those of the C library are points at which a thread can be cancelled, which costs
// each of them two atomic operations.

fn receive_into(fd: RawFd, room: &mut [u8]) -> io::Result<usize> {
    let (n_wanted, flags, nobody) = (room.len(), 0, 0_usize);
    // SAFETY: the kernel writes to `room`, and no further than its length.
    moved(unsafe {
        libc::syscall(libc::SYS_recvfrom, fd, room.as_mut_ptr(), n_wanted, flags, nobody, nobody)
    })
}

fn send_from(fd: RawFd, bytes: &[u8], departure: Departure) -> io::Result<usize> {
    let (n_wanted, flags, nobody) = (bytes.len(), departure.flags(), 0_usize);
    // SAFETY: the kernel reads from `bytes`, and no further than their length.
    moved(unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), n_wanted, flags, nobody, nobody) })
}

fn moved(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn unless_blocked(moved: io::Result<usize>) -> Option<io::Result<usize>> {
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
pub(crate) fn poll_send(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    bytes: &[u8],
    departure: Departure,
) -> Poll<io::Result<usize>> {
    loop {
        let send = || (send_from(socket.as_raw_fd(), bytes, departure), bytes.len());
        match once(socket, Interest::WRITABLE, send) {
            // Tried before it is waited for, because there nearly always is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_write_ready(cx))?,
            sent => return Poll::Ready(sent),
        }
    }
}

/// Makes a system call, unless the socket is known not to be ready for it. `call` says what it moved and how much it
/// would have.
fn once(
    socket: &TcpStream,
    interest: Interest,
    call: impl FnOnce() -> (io::Result<usize>, usize),
) -> io::Result<usize> {
    let mut n_moved = 0;
    let result = socket.try_io(interest, || {
        let (moved, n_wanted) = call();
        n_moved = moved?;
        // Less than was wanted means that the socket is empty (or full) now: the runtime, told so, waits for more
        // instead of making another call that would only find that out.
        if 0 < n_moved && n_moved < n_wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n_moved) }
    });
    if n_moved > 0 { Ok(n_moved) } else { result }
}
