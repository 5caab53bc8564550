//! What a host asks of its clients beyond the defaults: a certificate of its own, client certificates, a version.
//!
//! Only values; labels are read in `labels`, files in `files`.

use std::path::PathBuf;
use std::str::FromStr;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

/// Everything that is absent is as for hosts without a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPolicy {
    /// PEM files or directories.
    pub certificates: Vec<PathBuf>,
    pub client_auth: Option<ClientAuth>,
    pub min_version: Option<MinVersion>,
    pub alpn: Alpn,
}

/// What may be spoken inside of TLS, as far as the balancer tells clients (RFC 7301).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// HTTP/2 or HTTP/1.1.
    #[default]
    Http2,
    /// What `alpn http/1.1` asks for.
    Http1,
    /// It tells nothing: in mode tcp it does not know.
    Silent,
}

/// Client certificates, signed by one of the authorities in `ca`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAuth {
    /// PEM.
    pub ca: PathBuf,
    pub need: Need,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// Clients without one are served too.
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MinVersion {
    /// The oldest that is still safe (RFC 8996 forbids the older ones).
    #[default]
    Tls12,
    Tls13,
}

/// Newest first.
static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

impl MinVersion {
    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
        }
    }
}

impl FromStr for MinVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let number = text.trim_start_matches("TLSv").trim_start_matches("tls");
        match number {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(UnknownVersion(text.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no TLS version that can be the least; 1.2 and 1.3 can")]
pub struct UnknownVersion(String);
