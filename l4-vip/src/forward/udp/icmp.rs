//! Tells a client that nobody takes its datagrams: ICMP "port unreachable", as the kernel would if the port were
//! closed.
//!
//! It takes a raw socket, so CAP_NET_RAW. Without it clients wait for an answer that does not come; their next
//! datagram goes to another endpoint all the same.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Per worker and [`Icmp::refill`]: what the kernel allows itself in a second (net.ipv4.icmp_msgs_per_sec), in parts.
const BUDGET: u32 = 250;

#[derive(Debug)]
pub(super) struct Icmp {
    v4: Option<Socket>,
    v6: Option<Socket>,
    budget: Cell<u32>,
}

impl Icmp {
    pub(super) fn open() -> Self {
        let raw = |domain, protocol| {
            let socket =
                Socket::new(domain, Type::from(libc::SOCK_RAW).nonblocking().cloexec(), Some(protocol));
            let socket = socket.ok()?;
            // It only sends: with the smallest buffer it holds nothing of what every raw socket is sent copies of.
            let _ = socket.set_recv_buffer_size(0);
            Some(socket)
        };
        Self {
            v4: raw(Domain::IPV4, Protocol::ICMPV4),
            v6: raw(Domain::IPV6, Protocol::ICMPV6),
            budget: Cell::new(BUDGET),
        }
    }

    /// Call it four times a second.
    pub(super) fn refill(&self) {
        self.budget.set(BUDGET);
    }

    /// Answers a datagram of `n_bytes` from `client` to `server`. Tells whether it could.
    pub(super) fn unreachable(&self, client: SocketAddr, server: SocketAddr, n_bytes: usize) -> bool {
        let Some(rest) = self.budget.get().checked_sub(1) else { return false };
        let (socket, message) = match (client.ip(), server.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => (&self.v4, message_v4(client, server, n_bytes)),
            (IpAddr::V6(_), IpAddr::V6(_)) => (&self.v6, message_v6(client, server, n_bytes)),
            _ => return false,
        };
        let Some(socket) = socket else { return false };
        self.budget.set(rest);
        // A raw socket's address has no port.
        socket.send_to(&message, &SocketAddr::new(client.ip(), 0).into()).is_ok()
    }
}

/// RFC 792: type 3, code 3, then the IP header of what could not be delivered and its first eight bytes.
fn message_v4(client: SocketAddr, server: SocketAddr, n_bytes: usize) -> Vec<u8> {
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend([0x45, 0]);
    message.extend(length(28 + n_bytes));
    // No identification; don't fragment; time to live 64; UDP; the header's own checksum is not looked at.
    message.extend([0, 0, 0x40, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    for ip in [client.ip(), server.ip()] {
        if let IpAddr::V4(v4) = ip {
            message.extend(v4.octets());
        }
    }
    message.extend(udp_header(client, server, n_bytes));
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// RFC 4443 section 3.1: type 1, code 4, then as much of the packet. The kernel fills in the checksum.
fn message_v6(client: SocketAddr, server: SocketAddr, n_bytes: usize) -> Vec<u8> {
    let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0];
    message.extend([0x60, 0, 0, 0]);
    message.extend(length(8 + n_bytes));
    message.extend([libc::IPPROTO_UDP as u8, 64]);
    for ip in [client.ip(), server.ip()] {
        if let IpAddr::V6(v6) = ip {
            message.extend(v6.octets());
        }
    }
    message.extend(udp_header(client, server, n_bytes));
    message
}

fn udp_header(client: SocketAddr, server: SocketAddr, n_bytes: usize) -> [u8; 8] {
    let [a, b] = client.port().to_be_bytes();
    let [c, d] = server.port().to_be_bytes();
    let [e, f] = length(8 + n_bytes);
    [a, b, c, d, e, f, 0, 0]
}

fn length(n_bytes: usize) -> [u8; 2] {
    u16::try_from(n_bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_quotes_the_datagram() {
        let message = message_v4("10.0.0.9:4660".parse().unwrap(), "11.1.2.3:53".parse().unwrap(), 4);
        assert_eq!(message.len(), 36);
        assert_eq!(message[..2], [3, 3]);
        assert_eq!(message[10..12], [0, 32], "the datagram's length");
        assert_eq!(message[20..28], [10, 0, 0, 9, 11, 1, 2, 3]);
        assert_eq!(message[28..], [0x12, 0x34, 0, 53, 0, 12, 0, 0]);
        assert_eq!(checksum(&message), [0, 0], "a right checksum makes the sum zero");

        let message = message_v6("[fd01::9]:4660".parse().unwrap(), "[fd01:c::1]:53".parse().unwrap(), 4);
        assert_eq!((message.len(), &message[..2]), (56, &[1, 4][..]));
        assert_eq!(message[8], 0x60);
        assert_eq!(message[48..], [0x12, 0x34, 0, 53, 0, 12, 0, 0]);
    }
}
