//! The handshake: reads the client's first message, picks the configuration of the host it names, and goes on.
//!
//! It speaks no HTTP; the caller bounds the time it may take.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A connection with its handshake done.
pub(crate) struct Accepted<S> {
    pub(crate) stream: TlsStream<S>,
    /// Lower case.
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// `config_of` is asked once, for the server name that the client names, in lower case.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config_of: impl FnOnce(Option<&str>) -> Option<Arc<ServerConfig>>,
) -> io::Result<Accepted<S>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let server_name: Option<Box<str>> =
        start.client_hello().server_name().map(|name| name.to_ascii_lowercase().into());
    let config = config_of(server_name.as_deref())
        .ok_or_else(|| io::Error::other("TLS is not spoken here any more"))?;
    let stream = start.into_stream(config).await?;
    let protocol = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    Ok(Accepted { stream, server_name, protocol })
}
