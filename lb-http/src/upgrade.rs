//! Tunnels: what an upgraded connection (WebSocket) says goes both ways until one side ends it or nothing moves.
//!
//! The bytes are not looked at.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::failover::Exchange;
use crate::worker::Local;

/// Starts the tunnel; it begins when both sides have been told of the upgrade. The exchange counts as in flight until
/// its end.
pub(crate) fn spawn(local: &Local, client: OnUpgrade, server: OnUpgrade, exchange: Exchange) {
    let idle = exchange.tunnel_timeout().unwrap_or(local.timeouts.tunnel_idle);
    local.tasks.spawn_local(async move {
        match tokio::try_join!(client, server) {
            Ok((client, server)) => {
                if let Err(error) = tunnel(client, server, idle).await {
                    tracing::debug!(%error, "tunnel ended");
                }
            }
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
        drop(exchange);
    });
}

async fn tunnel(client: Upgraded, server: Upgraded, idle: Duration) -> io::Result<()> {
    let last = Rc::new(Cell::new(Instant::now()));
    let mut client = Watched { inner: TokioIo::new(client), last: Rc::clone(&last) };
    let mut server = Watched { inner: TokioIo::new(server), last: Rc::clone(&last) };
    let silence = async {
        while last.get().elapsed() < idle {
            tokio::time::sleep_until(last.get() + idle).await;
        }
    };
    tokio::select! {
        moved = tokio::io::copy_bidirectional(&mut client, &mut server) => moved.map(|_| ()),
        () = silence => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Notes when something was read.
struct Watched {
    inner: TokioIo<Upgraded>,
    last: Rc<Cell<Instant>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if result.is_ready() {
            self.last.set(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
