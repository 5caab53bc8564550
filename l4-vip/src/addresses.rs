//! The host's addresses: which are its own, and the sockets that listen on a VIP's: one per worker, so that the kernel
//! spreads connections and clients over them.
//!
//! It makes no address local to the host; that needs rights that the userspace plane does not ask for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::ListenError;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens `n_workers` sockets in one SO_REUSEPORT group. The address serves from the moment this returns: what
/// connects before a worker accepts waits in the backlog. All or none.
pub fn listen(address: SocketAddr, n_workers: usize) -> Result<Vec<TcpListener>, ListenError> {
    each_worker(address, n_workers, listen_once)
}

/// The same for datagrams. The kernel keeps a client with one of the sockets.
pub fn listen_udp(address: SocketAddr, n_workers: usize) -> Result<Vec<UdpSocket>, ListenError> {
    each_worker(address, n_workers, bind_udp)
}

fn each_worker<T>(
    address: SocketAddr,
    n_workers: usize,
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<Vec<T>, ListenError> {
    (0..n_workers)
        .map(|_| open(address))
        .collect::<io::Result<_>>()
        .map_err(|source| ListenError { address, source })
}

/// Accepted sockets inherit TCP_NODELAY, SO_KEEPALIVE and congestion control from their listener (Linux), which saves
/// three calls each.
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
    do_not_pace(&socket, address);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What a loopback address's listener accepts is sent unpaced, whatever the host's congestion control is: there is no
/// network to spare, and BBR, for one, sets a timer for each piece, which costs more than moving it. Reno is in every
/// kernel. To be called before the socket listens. Where it is not allowed, what is sent is paced.
pub fn do_not_pace(listener: &Socket, address: SocketAddr) {
    if address.ip().is_loopback() {
        let _ = listener.set_tcp_congestion(b"reno");
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The addresses of this host's interfaces but the loopback ones, on which operators put VIPs themselves.
pub fn of_this_host() -> io::Result<Vec<IpAddr>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: getifaddrs writes a list that it owns to `first`, or fails.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: the list's nodes are valid until it is freed below, and a socket address is as long as its family says.
    unsafe {
        while let Some(interface) = next.as_ref() {
            next = interface.ifa_next;
            if interface.ifa_addr.is_null() || interface.ifa_flags & libc::IFF_LOOPBACK as u32 != 0 {
                continue;
            }
            match i32::from((*interface.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let v4 = interface.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    addresses.push(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into());
                }
                libc::AF_INET6 => {
                    let v6 = interface.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    addresses.push(Ipv6Addr::from(v6.sin6_addr.s6_addr).into());
                }
                _ => {}
            }
        }
        libc::freeifaddrs(first);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn what_comes_by_loopback_is_not_paced() {
        let listener = listen(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(SockRef::from(&accepted).tcp_congestion().unwrap().starts_with(b"reno"));
    }

    #[test]
    fn loopback_is_not_among_the_hosts_addresses() {
        let own = of_this_host().unwrap();
        assert!(own.iter().all(|ip| !ip.is_loopback()), "{own:?}");
        // What is the host's own can be bound.
        for ip in own.iter().filter(|ip| ip.is_ipv4()) {
            UdpSocket::bind((*ip, 0)).unwrap();
        }
    }
}
