//! One listener of the HTTP APIs: its connections, in clear or over TLS, and their limits.
//!
//! Which of the two a client speaks shows in its first byte, so one port has both: DNS over HTTPS needs TLS, and
//! Mesos-DNS's API never had it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Api, Dialect, route};

/// Far more than tools and browsers of one host open; beyond it, connections wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
/// A client has so long for its first byte, its handshake and each request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptor left, mostly), before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The type of a TLS record that begins a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Clone)]
pub(super) struct Server {
    pub api: Arc<Api>,
    pub dialect: Dialect,
    pub tls: TlsAcceptor,
}

impl Server {
    pub async fn run(self, listener: std::net::TcpListener, cancel: CancellationToken) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot watch the listener of the DNS HTTP API");
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = cancel.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the DNS HTTP API cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (server, cancel) = (self.clone(), cancel.clone());
            tokio::spawn(async move {
                // A client that broke off or spoke something else is its own business.
                if let Err(error) = server.connection(stream, cancel).await {
                    tracing::debug!(%error, "a connection to the DNS HTTP API ended");
                }
                drop(permit);
            });
        }
    }

    async fn connection(self, stream: TcpStream, cancel: CancellationToken) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await??;
        let client = stream.peer_addr()?.ip();
        if first[0] == TLS_HANDSHAKE {
            let stream = timeout(HEAD_TIMEOUT, self.tls.accept(stream)).await??;
            self.requests(stream, client, cancel).await;
        } else {
            self.requests(stream, client, cancel).await;
        }
        Ok(())
    }

    async fn requests<S>(self, stream: S, client: std::net::IpAddr, cancel: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let api = Arc::clone(&self.api);
            let dialect = self.dialect;
            async move {
                let is_head = *request.method() == Method::HEAD;
                let mut response = route(&api, dialect, client, request).await;
                if is_head {
                    *response.body_mut() = Full::default();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = cancel.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
