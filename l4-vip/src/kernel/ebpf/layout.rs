//! The bytes of the maps' keys and values: what the programs and this process agree on.
//!
//! IPv4 addresses are stored as IPv4-mapped IPv6 ones, so that one table serves both families and sockets that speak
//! IPv4 through IPv6. A port shares its word with the protocol: the port as it stands in the packet, then the protocol
//! number. A change of anything here needs a new [`VERSION`]. It makes no system call.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::Protocol;

use super::super::Frontend;

/// Part of the pinned maps' names: a newer layout takes nothing from an older one.
pub const VERSION: u32 = 4;

pub const TCP: u32 = 6;
pub const UDP: u32 = 17;
/// Where the protocol stands in the word of the port.
pub const PROTOCOL_SHIFT: u32 = 16;
pub const PORT_MASK: i32 = 0xffff;

/// The third word of an IPv4-mapped address.
pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Address, then port and protocol.
pub const FRONTEND_BYTES: usize = 20;
pub type FrontendKey = [u8; FRONTEND_BYTES];

pub fn frontend_key(frontend: &Frontend) -> FrontendKey {
    let mut key = [0; FRONTEND_BYTES];
    key[..16].copy_from_slice(&mapped(frontend.address.ip()).octets());
    let protocol = match frontend.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let word = port_word(frontend.address.port()) | protocol << PROTOCOL_SHIFT;
    key[16..].copy_from_slice(&word.to_ne_bytes());
    key
}

/// `None` for what these programs never write.
pub fn read_frontend(key: &[u8]) -> Option<Frontend> {
    let word = word(key, 16);
    let protocol = match word >> PROTOCOL_SHIFT {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Frontend { protocol, address: read_address(key)? })
}

/// What a frontend's connections are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceValue {
    /// Which slots are its own; a new version for every change of them.
    pub version: u32,
    pub n_slots: u32,
    /// Of its counters, and of its clients' affinity.
    pub id: u32,
    pub affinity: Option<Duration>,
}

pub mod service {
    pub const VERSION: i16 = 0;
    pub const N_SLOTS: i16 = 4;
    pub const ID: i16 = 8;
    pub const AFFINITY_NS: i16 = 16;
    /// What the programs need of it.
    pub const USED_BYTES: i16 = 24;
    /// Its frontend once more: a program may see an element that was given to another frontend after it was found.
    pub const FRONTEND: i16 = 24;
    pub const BYTES: usize = 48;
}

impl ServiceValue {
    pub fn bytes(&self, frontend: &FrontendKey) -> [u8; service::BYTES] {
        let mut value = [0; service::BYTES];
        value[..4].copy_from_slice(&self.version.to_ne_bytes());
        value[4..8].copy_from_slice(&self.n_slots.to_ne_bytes());
        value[8..12].copy_from_slice(&self.id.to_ne_bytes());
        let nanoseconds = self.affinity.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        value[16..24].copy_from_slice(&nanoseconds.to_ne_bytes());
        value[24..24 + FRONTEND_BYTES].copy_from_slice(frontend);
        value
    }

    pub fn read(value: &[u8]) -> Self {
        Self {
            version: word(value, 0),
            n_slots: word(value, 4),
            id: word(value, 8),
            affinity: Some(Duration::from_nanos(double(value, 16))).filter(|time| !time.is_zero()),
        }
    }
}

/// One of a service's slots. Each slot is as likely as any other; inside it the first backend is taken with a
/// probability of its own, otherwise the second (Walker's alias method).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotValue {
    pub first: u32,
    pub second: u32,
    /// The first is taken when a random word is not above this.
    pub threshold: u32,
}

pub mod slot {
    pub const FIRST: i16 = 0;
    pub const SECOND: i16 = 4;
    pub const THRESHOLD: i16 = 8;
    pub const BYTES: usize = 12;
    /// Version, then index.
    pub const KEY_BYTES: usize = 8;
}

pub fn slot_key(version: u32, index: u32) -> [u8; slot::KEY_BYTES] {
    let mut key = [0; slot::KEY_BYTES];
    key[..4].copy_from_slice(&version.to_ne_bytes());
    key[4..].copy_from_slice(&index.to_ne_bytes());
    key
}

pub fn read_slot_key(key: &[u8]) -> (u32, u32) {
    (word(key, 0), word(key, 4))
}

impl SlotValue {
    pub fn bytes(&self) -> [u8; slot::BYTES] {
        let mut value = [0; slot::BYTES];
        value[..4].copy_from_slice(&self.first.to_ne_bytes());
        value[4..8].copy_from_slice(&self.second.to_ne_bytes());
        value[8..].copy_from_slice(&self.threshold.to_ne_bytes());
        value
    }

    pub fn read(value: &[u8]) -> Self {
        Self { first: word(value, 0), second: word(value, 4), threshold: word(value, 8) }
    }
}

/// A backend of one service, by a number that is never used again. As long as it is in the map, UDP flows keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendValue {
    pub address: SocketAddr,
    pub weight: u16,
    /// The id of its service.
    pub service: u32,
}

pub mod backend {
    pub const ADDRESS: i16 = 0;
    pub const PORT: i16 = 16;
    pub const WEIGHT: i16 = 20;
    pub const SERVICE: i16 = 24;
    pub const BYTES: usize = 28;
}

impl BackendValue {
    pub fn bytes(&self) -> [u8; backend::BYTES] {
        let mut value = [0; backend::BYTES];
        value[..16].copy_from_slice(&mapped(self.address.ip()).octets());
        value[16..20].copy_from_slice(&port_word(self.address.port()).to_ne_bytes());
        value[20..24].copy_from_slice(&u32::from(self.weight).to_ne_bytes());
        value[24..].copy_from_slice(&self.service.to_ne_bytes());
        value
    }

    pub fn read(value: &[u8]) -> Option<Self> {
        Some(Self {
            address: read_address(value)?,
            weight: u16::try_from(word(value, 20)).ok()?,
            service: word(value, 24),
        })
    }
}

/// Per CPU, of a service or a backend.
pub mod counters {
    pub const N_CONNECTIONS: i16 = 0;
    pub const N_REFUSED: i16 = 8;
    /// Connects that nobody answered, or that were given up.
    pub const N_FAILED: i16 = 16;
    /// Of connections that have ended.
    pub const BYTES_IN: i16 = 24;
    pub const BYTES_OUT: i16 = 32;
    pub const BYTES: usize = 40;
    /// Set in the key under which a service keeps the sums of its removed backends, so that totals only grow.
    pub const REMOVED: u32 = 1 << 31;
}

/// What a TCP socket believes it is connected to, and what it is connected to. Its place is the end of the socket's
/// cookie, a number that counts up: a connection is forgotten when so many newer ones were made.
pub mod peer {
    pub const COOKIE: i16 = 0;
    pub const VIP: i16 = 8;
    pub const BACKEND: i16 = 28;
    pub const BACKEND_PORT: i16 = 44;
    /// Whose counters it counts in.
    pub const BACKEND_ID: i16 = 48;
    pub const SERVICE_ID: i16 = 52;
    pub const BYTES: usize = 56;
}

/// The first VIP that a UDP socket has spoken to, and where its datagrams go: most sockets speak to no other. It stands
/// with the socket itself, and is never changed, only replaced by another, so whoever reads it reads a whole one.
pub mod talk {
    pub const VIP: i16 = 0;
    pub const BACKEND: i16 = 20;
    pub const BACKEND_PORT: i16 = 36;
    pub const BACKEND_ID: i16 = 40;
    pub const BYTES: usize = 44;
}

/// Which backend a UDP socket's datagrams to one VIP go to. Key: the socket's cookie, the VIP.
pub mod flow {
    pub const KEY_BYTES: usize = 32;
    pub const BYTES: usize = 4;
}

pub fn flow_key(cookie: u64, frontend: &FrontendKey) -> [u8; flow::KEY_BYTES] {
    let mut key = [0; flow::KEY_BYTES];
    key[..8].copy_from_slice(&cookie.to_ne_bytes());
    key[8..28].copy_from_slice(frontend);
    key
}

/// Which VIP a UDP socket reached a backend through. Key: the socket's cookie, the backend; value: the VIP.
pub mod reverse {
    pub const KEY_BYTES: usize = 32;
}

/// Which backend a client had last, and when. Key: its network namespace, the address it is bound to, the service.
pub mod affinity {
    pub const KEY_BYTES: usize = 32;
    pub const LAST_NS: i16 = 0;
    pub const BACKEND: i16 = 8;
    pub const BYTES: usize = 16;
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A port as it stands in a packet, in the low half of a word.
fn port_word(port: u16) -> u32 {
    u32::from(port.to_be())
}

fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let octets: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let port = u16::from_be(word(bytes, 16) as u16);
    Some(SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), port))
}

/// The word at an offset; the kernel answers as many bytes as the map's shape says.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

pub fn double(bytes: &[u8], at: usize) -> u64 {
    let (first, second) = (word(bytes, at), word(bytes, at + 4));
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (protocol, address) in [
            (Protocol::Tcp, "11.1.2.3:80"),
            (Protocol::Udp, "11.1.2.3:65535"),
            (Protocol::Tcp, "[fd01:c::5]:443"),
        ] {
            let frontend = Frontend { protocol, address: address.parse().unwrap() };
            assert_eq!(read_frontend(&frontend_key(&frontend)), Some(frontend));
            let backend = BackendValue { address: frontend.address, weight: 7, service: 9 };
            assert_eq!(BackendValue::read(&backend.bytes()), Some(backend));
        }
        let service = ServiceValue { version: 1, n_slots: 2, id: 3, affinity: Some(Duration::from_secs(5)) };
        assert_eq!(ServiceValue::read(&service.bytes(&[9; FRONTEND_BYTES])), service);
        let slot = SlotValue { first: 1, second: 2, threshold: 3 };
        assert_eq!(SlotValue::read(&slot.bytes()), slot);
        assert_eq!(read_slot_key(&slot_key(4, 5)), (4, 5));
    }

    #[test]
    fn a_key_is_what_the_packet_carries() {
        let frontend = Frontend { protocol: Protocol::Tcp, address: "11.1.2.3:80".parse().unwrap() };
        let key = frontend_key(&frontend);
        assert_eq!(key[10..16], [0xff, 0xff, 11, 1, 2, 3]);
        #[cfg(target_endian = "little")]
        assert_eq!(key[16..], [0, 80, 6, 0]);
    }
}
