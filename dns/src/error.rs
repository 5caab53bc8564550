//! Why the DNS server did not start.
//!
//! What goes wrong with one query is not an error of the server: it is counted, see `stats`.

use std::io;
use std::net::SocketAddr;

use crate::stats::Transport;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve DNS on {address} ({transport})")]
    Listen {
        address: SocketAddr,
        transport: Transport,
        #[source]
        source: io::Error,
    },
    #[error("no DNS address to listen on")]
    NoAddress,
    #[error("a UDP answer of {0} bytes is not between 512 and 4096")]
    UdpPayload(u16),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "another program serves there; choose another with --dns-listen",
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another with --dns-listen"
                }
                io::ErrorKind::AddrNotAvailable => {
                    "this host does not have the address; add it or choose another with --dns-listen"
                }
                _ => "choose another address with --dns-listen",
            },
            Self::NoAddress => "name one with --dns-listen",
            Self::UdpPayload(_) => "1232 suits every network; set dns.udp_payload_bytes",
        }
    }
}
