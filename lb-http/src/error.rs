//! What can go wrong: at the start ([`BindError`]) and with one request ([`ProxyError`]).
//!
//! A proxy error knows its stage, so that one `match` decides the status and which counter moves.

use std::io;
use std::net::SocketAddr;

use crate::http1::refusal::Refusal;
use crate::http1::response::BadResponse;

use crate::tls::certificate::CertificateError;

/// Why the plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the certificates cannot be used")]
    Certificate(#[from] CertificateError),
    #[error("cannot write the access log {path}")]
    AccessLog {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Bind(error) => error.hint,
            Self::Certificate(_) => "each file of --ssl-certs has a certificate chain and its key, as PEM",
            Self::AccessLog { .. } => "http.access_log.file names a file in a directory that exists",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {hint}")]
pub struct BindError {
    pub address: SocketAddr,
    /// E.g. `virtual hosts`.
    pub purpose: String,
    /// What to do about it.
    pub hint: &'static str,
    #[source]
    pub source: io::Error,
}

impl BindError {
    pub(crate) fn new(address: SocketAddr, purpose: impl Into<String>, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => "another program listens there; stop it or choose another port",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher port"
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            _ => "choose another address",
        };
        Self { address, purpose: purpose.into(), hint, source }
    }
}

/// Why a request got no response of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("no endpoint accepted a connection")]
    Connect,
    #[error("no endpoint accepted a connection in time")]
    ConnectTimeout,
    #[error("no endpoint could be greeted by TLS as the service's labels ask")]
    Handshake,
    #[error("the app has no instance in rotation")]
    NoEndpoint,
    #[error("every instance is busy, and as many requests wait as may")]
    QueueFull,
    #[error("every instance was busy for too long")]
    QueueTimeout,
    #[error("the endpoint closed the connection without a response")]
    NoResponse,
    #[error("the endpoint sent an invalid response: {0}")]
    BadResponse(BadResponse),
    #[error("the endpoint did not respond in time")]
    ServerTimeout,
    #[error("{0}")]
    Refused(Refusal),
    #[error("the client left")]
    ClientGone,
}

impl ProxyError {
    /// `None`: there is nobody to tell.
    pub(crate) fn status(self) -> Option<u16> {
        Some(match self {
            Self::Connect
            | Self::ConnectTimeout
            | Self::Handshake
            | Self::NoEndpoint
            | Self::QueueFull
            | Self::QueueTimeout => 503,
            Self::NoResponse | Self::BadResponse(_) => 502,
            Self::ServerTimeout => 504,
            Self::Refused(refusal) => refusal.status(),
            Self::ClientGone => return None,
        })
    }

    /// A word for programs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Connect | Self::ConnectTimeout => "connect-failed",
            Self::Handshake => "handshake-failed",
            Self::NoEndpoint => "no-endpoint",
            Self::QueueFull => "queue-full",
            Self::QueueTimeout => "queue-timeout",
            Self::NoResponse => "no-response",
            Self::BadResponse(_) => "bad-response",
            Self::ServerTimeout => "response-timeout",
            Self::Refused(Refusal::BodyTime | Refusal::Time) => "request-timeout",
            Self::Refused(_) => "request-body",
            Self::ClientGone => "client-gone",
        }
    }

    /// The connection cannot be used for another request, because of the client's body.
    pub(crate) fn is_of_client(self) -> bool {
        matches!(self, Self::Refused(_) | Self::ClientGone)
    }
}
