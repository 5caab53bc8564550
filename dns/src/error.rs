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
    #[error("cannot serve the DNS HTTP API on {address}")]
    Http {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("DNS over HTTPS has no certificate to show")]
    Tls(#[from] TlsError),
    #[error("a UDP answer of {0} bytes is not between 512 and 4096")]
    UdpPayload(u16),
}

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot make one")]
    Make(#[from] rcgen::Error),
    #[error("cannot read it")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("there is none in the file")]
    NoCertificate,
    #[error("cannot use it")]
    Config(#[source] rustls::Error),
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
            Self::Http { .. } => "choose another address with --dns-http-listen (or --dns-dcos-listen)",
            Self::Tls(_) => "dns.http.certificate and dns.http.key name PEM files that belong together",
            Self::NoAddress => "name one with --dns-listen",
            Self::UdpPayload(_) => "1232 suits every network; set dns.udp_payload_bytes",
        }
    }
}
