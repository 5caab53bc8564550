//! Opens the listening sockets of an address: one per worker, so that the kernel spreads connections over them.
//!
//! It makes no address local to the host; that needs rights that the userspace plane does not ask for.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::ListenError;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens `n_workers` sockets in one SO_REUSEPORT group. The address serves from the moment this returns: what
/// connects before a worker accepts waits in the backlog. All or none.
pub fn listen(address: SocketAddr, n_workers: usize) -> Result<Vec<TcpListener>, ListenError> {
    (0..n_workers)
        .map(|_| listen_once(address))
        .collect::<io::Result<_>>()
        .map_err(|source| ListenError { address, source })
}

/// Accepted sockets inherit TCP_NODELAY and SO_KEEPALIVE from their listener (Linux), which saves two calls each.
fn listen_once(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
