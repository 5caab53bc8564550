//! Frontends and backends as elements of sets: keys and values, written and read.
//!
//! A key is several values, each padded to 4 bytes. Addresses and ports are as in packets, big-endian; marks are in the
//! byte order of this machine.

use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::Protocol;

use super::family::Family;
use crate::kernel::Frontend;
use crate::netlink::be;

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn frontend_key(frontend: Frontend) -> Vec<u8> {
    let mut key = octets(frontend.address.ip());
    key.extend([protocol_number(frontend.protocol), 0, 0, 0]);
    key.extend(port(frontend.address));
    key
}

pub(super) fn slot_key(frontend: Frontend, slot: u16) -> Vec<u8> {
    let mut key = u32::from(slot).to_ne_bytes().to_vec();
    key.extend(frontend_key(frontend));
    key
}

pub(super) fn backend_value(backend: SocketAddr) -> Vec<u8> {
    let mut value = octets(backend.ip());
    value.extend(port(backend));
    value
}

pub(super) fn read_slot(family: Family, key: &[u8]) -> Option<(Frontend, u16)> {
    let (slot, rest) = key.split_first_chunk::<4>()?;
    Some((read_frontend(family, rest)?, u16::try_from(u32::from_ne_bytes(*slot)).ok()?))
}

pub(super) fn read_frontend(family: Family, key: &[u8]) -> Option<Frontend> {
    let (address, rest) = read_address(family, key)?;
    let (protocol, rest) = rest.split_first_chunk::<4>()?;
    let port = rest.first_chunk::<4>()?;
    let protocol = match libc::c_int::from(protocol[0]) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Frontend { protocol, address: SocketAddr::new(address, be(&port[..2]) as u16) })
}

pub(super) fn read_backend(family: Family, value: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = read_address(family, value)?;
    Some(SocketAddr::new(address, be(rest.get(..2)?) as u16))
}

pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(octets, rest)| (IpAddr::from(*octets), rest)),
        Family::V6 => bytes.split_first_chunk::<16>().map(|(octets, rest)| (IpAddr::from(*octets), rest)),
    }
}

fn port(address: SocketAddr) -> [u8; 4] {
    let [high, low] = address.port().to_be_bytes();
    [high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_can_be_read_back() {
        for (protocol, address, backend, bytes) in [
            (Protocol::Tcp, "11.1.2.3:80", "10.0.0.1:31000", 12),
            (Protocol::Udp, "[fd01:c::5]:53", "[fd02::7]:5353", 24),
        ] {
            let frontend = Frontend { protocol, address: address.parse().unwrap() };
            let backend: SocketAddr = backend.parse().unwrap();
            let family = Family::of(frontend.address.ip());
            assert_eq!(frontend_key(frontend).len(), bytes);
            let key = frontend_key(frontend);
            assert_eq!(read_frontend(family, &key), Some(frontend));
            assert_eq!(read_slot(family, &slot_key(frontend, 258)), Some((frontend, 258)));
            assert_eq!(read_backend(family, &backend_value(backend)), Some(backend));
            for length in 0..bytes {
                assert_eq!(read_frontend(family, &key[..length]), None);
            }
        }
    }
}
