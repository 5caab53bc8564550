//! Waits for any of a worker's flow sockets: one epoll(7) set that the runtime watches as a single descriptor.
//!
//! Tens of thousands of flows then cost neither a task nor a registration with the runtime each.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Events taken in one call.
const BATCH: usize = 64;

#[derive(Debug)]
pub(super) struct Poller(AsyncFd<OwnedFd>);

impl Poller {
    /// Needs the runtime's IO driver.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a plain call; its result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an owned descriptor stays open and the same until it is dropped, and the set drops it last.
        let registered = unsafe { AsyncFd::register(fd) };
        registered.map(Self).map_err(|e| io::Error::other(e.to_string()))
    }

    /// Watches a socket until it is closed.
    pub(super) fn watch(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: both descriptors are open, and `event` lives for the call.
        let result = unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_fd().as_raw_fd(),
                &raw mut event,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until some sockets have something, and tells their tokens.
    pub(super) async fn ready(&self, tokens: &mut Vec<u64>) -> io::Result<()> {
        tokens.clear();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        loop {
            let mut guard = self.0.readable().await?;
            // SAFETY: the kernel writes at most `BATCH` events into the array.
            let n =
                unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH as libc::c_int, 0) };
            match usize::try_from(n) {
                Ok(0) => guard.clear_ready(),
                Ok(n) => {
                    tokens.extend(events[..n].iter().map(|event| event.u64));
                    return Ok(());
                }
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
    }
}
