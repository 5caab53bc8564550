//! A client's connection before HTTP begins: the TLS handshake, and which HTTP is spoken after it.
//!
//! What is spoken then is `http1`'s and `http2`'s. A connection that stays silent, or dawdles, is ended after the time
//! that a request's head may take.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http1::connection;
use crate::http1::side::ClientStream;
use crate::http2;
use crate::peek;
use crate::proxy::{Accepted, Entry, Protection};
use crate::reason::RefusedConnection;
use crate::tcp;
use crate::tls::{self, Protocol};
use crate::wait::{Phase, Registered};
use crate::worker::Local;

/// RFC 9113 section 3.4: what a client that knows that HTTP/2 is spoken begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl ClientStream for TlsStream<TcpStream> {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    fn cut(&self) {
        self.get_ref().0.cut();
    }
}

/// Whether connections to an entry begin with a handshake.
pub(crate) fn is_tls(local: &Local, entry: Entry) -> bool {
    match entry {
        Entry::TlsHosts => true,
        Entry::ServicePort(port) => local.with_tls(|table| table.of_port(port).is_some()),
        Entry::Hosts | Entry::AppIds => false,
    }
}

/// The configuration of the handshake at an entry; `None`: plain text is spoken there.
pub(crate) fn config_of(local: &Local, entry: Entry, server_name: Option<&str>) -> Option<Arc<ServerConfig>> {
    local.with_tls(|table| match entry {
        Entry::TlsHosts => Some(Arc::clone(table.of_host(server_name))),
        Entry::ServicePort(port) => table.of_port(port).cloned(),
        Entry::Hosts | Entry::AppIds => None,
    })
}

/// Serves a connection to an entry that speaks TLS.
pub(crate) async fn serve(local: Rc<Local>, accepted: Accepted<TcpStream>, registered: Registered) {
    let Accepted { stream, client, local_port, entry, session, permit, .. } = accepted;
    let wait = Rc::clone(registered.wait());
    wait.enter(Phase::Head, local.timeouts.client_header);
    registered.wake_this_task().await;
    if entry == Entry::TlsHosts && local.with_table(|table| table.routes.passes_tls()) {
        match wait.unless_expired(tcp::backend_of_server_name(&local, &stream)).await {
            Some(Ok(Some(backend))) => {
                drop(registered);
                let protection = Protection::Plain;
                let accepted = Accepted { stream, client, local_port, entry, protection, session, permit };
                return tcp::serve(local, backend, accepted).await;
            }
            Some(Ok(None)) => {}
            refused => {
                session.series().of_worker(local.index).n_handshake_failures.increment();
                match refused {
                    Some(Err(error)) => tracing::debug!(%client, %error, "refused"),
                    _ => tracing::debug!(%client, "refused: its ClientHello did not come in time"),
                }
                return;
            }
        }
    }
    let config_of = |name: Option<&str>| config_of(&local, entry, name);
    let greeted = match wait.unless_expired(tls::accept(stream, config_of)).await {
        Some(Ok(greeted)) => greeted,
        refused => {
            session.series().of_worker(local.index).n_handshake_failures.increment();
            match refused {
                Some(Err(error)) => tracing::debug!(%client, %error, "TLS handshake failed"),
                _ => tracing::debug!(%client, "TLS handshake timed out"),
            }
            return;
        }
    };
    let protection = Protection::Tls { server_name: greeted.server_name };
    let stream = greeted.stream;
    let accepted = Accepted { stream, client, local_port, entry, protection, session, permit };
    match greeted.protocol {
        Protocol::Http1 => connection::serve(local, accepted, registered).await,
        Protocol::Http2 => http2::serve(local, accepted, registered).await,
    }
}

/// Serves a plain connection whose client may know that HTTP/2 is spoken.
pub(crate) async fn serve_either(local: Rc<Local>, accepted: Accepted<TcpStream>, registered: Registered) {
    let wait = Rc::clone(registered.wait());
    wait.enter(Phase::Head, local.timeouts.client_header);
    registered.wake_this_task().await;
    match wait.unless_expired(begins_with_preface(&accepted.stream)).await {
        Some(Ok(true)) => http2::serve(local, accepted, registered).await,
        Some(Ok(false)) => connection::serve(local, accepted, registered).await,
        Some(Err(_)) => {}
        None => {
            accepted.session.series().of_worker(local.index).refused_connection(RefusedConnection::Silent)
        }
    }
}

/// Looks at the first bytes and leaves them where they are.
async fn begins_with_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    let mut n_before = 0;
    loop {
        let n = peek::beyond(stream, n_before, &mut seen).await?;
        if n == PREFACE.len() || n <= n_before || seen[..n] != PREFACE[..n] {
            return Ok(seen == *PREFACE);
        }
        n_before = n;
    }
}
