//! What this host is called and where it is reached, for names that mean "this node".
//!
//! Nothing is sent: the kernel is asked which address it would send from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::args::Mode;

/// Addresses that the default route leads to; nobody is there (RFC 5737, RFC 3849).
const ELSEWHERE: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
];

/// Where other hosts reach this one; in `dev`, loopback.
pub fn own_addresses(mode: Mode) -> Vec<IpAddr> {
    let loopback = || vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if mode == Mode::Dev {
        return loopback();
    }
    let source = |(any, elsewhere): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(SocketAddr::new(elsewhere, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    };
    let found: Vec<IpAddr> = ELSEWHERE.into_iter().filter_map(source).collect();
    if found.is_empty() { loopback() } else { found }
}

pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| String::new(), |name| name.trim().to_owned())
}
