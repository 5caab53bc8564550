//! One worker thread's share of the plane: it accepts on its own listeners and forwards.
//!
//! It opens no addresses and compiles nothing: listeners come from the control thread, and each carries its VIP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::drain::Tasks;
use crate::forward::tcp::{Forwarder, Options};
use crate::stats::Counter;
use crate::table::VipState;

/// Pauses between attempts to accept when the host has run out of something. Long enough for connections to end,
/// short enough for clients that wait in the backlog.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listening socket on its way to the worker that will accept on it.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) vip: Arc<VipState>,
    /// Cancelled when the VIP goes or the plane stops.
    pub(crate) stop: CancellationToken,
}

/// Runs on a thread of its own, with a current-thread runtime inside a `LocalSet`.
#[derive(Debug)]
pub struct Worker {
    pub(crate) listeners: mpsc::Receiver<Listen>,
    pub(crate) options: Options,
    pub(crate) drain_timeout: Duration,
    pub(crate) n_accept_pauses: Arc<Counter>,
    pub(crate) cancel: CancellationToken,
}

impl Worker {
    /// Serves until the plane is cancelled, then lets established connections end for as long as the configuration
    /// says. Connections that have not ended by then are reset.
    pub async fn run(self) {
        let Self { mut listeners, options, drain_timeout, n_accept_pauses, cancel } = self;
        let server =
            Rc::new(Server { forwarder: Forwarder::new(options), tasks: Rc::default(), n_accept_pauses });
        loop {
            tokio::select! {
                listen = listeners.recv() => match listen {
                    Some(listen) => server.tasks.spawn(accept(listen, Rc::clone(&server))),
                    None => break,
                },
                () = cancel.cancelled() => break,
            }
        }
        cancel.cancelled().await;
        drop(listeners);
        let n_cut = server.tasks.drain(drain_timeout).await;
        if n_cut > 0 {
            tracing::warn!(n_cut, "connections through VIPs were reset at the end of the drain time");
        }
    }
}

struct Server {
    forwarder: Forwarder,
    tasks: Rc<Tasks>,
    n_accept_pauses: Arc<Counter>,
}

impl Server {
    fn serve(self: &Rc<Self>, client: TcpStream, peer: IpAddr, vip: &Arc<VipState>) {
        let (server, vip) = (Rc::clone(self), Arc::clone(vip));
        self.tasks.spawn(async move {
            let pool = vip.pool.load_full();
            let outcome = server.forwarder.forward(client, peer, &pool, &vip.counters).await;
            tracing::trace!(%peer, vip = %vip.key.target, port = vip.key.port, ?outcome, "connection ended");
        });
    }
}

/// Accepts until told to stop, then takes what is still in the backlog, so that nobody who got a SYN-ACK is reset.
async fn accept(listen: Listen, server: Rc<Server>) {
    let Listen { socket, vip, stop } = listen;
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, vip = %vip.key.target, "cannot watch a VIP's socket");
            return;
        }
    };
    let mut stopped = pin!(stop.cancelled());
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((client, peer)) => {
                pause = FIRST_PAUSE;
                server.serve(client, peer.ip(), &vip);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                server.n_accept_pauses.add(1);
                tracing::warn!(%error, vip = %vip.key.target, ?pause, "cannot accept; waiting");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = &mut stopped => break,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    match listener.into_std() {
        Ok(listener) => {
            while let Ok((client, peer)) = take_waiting(&listener) {
                server.serve(client, peer.ip(), &vip);
            }
        }
        Err(error) => tracing::error!(%error, vip = %vip.key.target, "cannot empty a VIP's backlog"),
    }
}

/// Accepts without asking the runtime whether there is something: it may not have been told yet.
fn take_waiting(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (client, peer) = listener.accept()?;
    client.set_nonblocking(true)?;
    Ok((TcpStream::from_std(client)?, peer))
}
