//! Serves one UDP socket: receives what has arrived with one system call, answers, sends all replies with another.
//!
//! Nothing is queued: what is not received waits in the socket's buffer, and the kernel drops what that cannot hold.

mod batch;

use std::io;
use std::net::UdpSocket as StdUdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use self::batch::{BATCH, Batch, Destination, Peer};
use crate::handler::{Outcome, Responder};
use crate::server::Context;
use crate::stats::{Silence, Transport};

/// Packets, and looks that bring none, between two turns of the worker's other tasks.
const TURN: usize = 4 * BATCH;
/// Who sends so many at once sends more before they are answered.
const WORTH_ANOTHER_LOOK: usize = 4;
/// Looks that bring fewer, before the next wait: to be woken costs more than they do, the one who sends even more than
/// the one who is woken.
const PATIENCE: usize = 16;

/// A socket of which the runtime hears only that something has arrived. Were it to hear of room for replies too, every
/// reply that its reader takes would wake this worker once more.
type Socket = AsyncFd<StdUdpSocket>;

pub(crate) async fn serve(socket: StdUdpSocket, context: Rc<Context>) {
    let destination = match socket.local_addr() {
        Ok(address) if address.ip().is_unspecified() => Destination::Told,
        _ => Destination::Known,
    };
    let socket = match watch(socket, Interest::READABLE) {
        Ok(socket) => Rc::new(socket),
        Err(error) => {
            tracing::error!(%error, "cannot watch a DNS socket");
            return;
        }
    };
    let mut server =
        Server { responder: context.responder(), batch: Batch::new(destination), socket, context };
    let context = Rc::clone(&server.context);
    let mut cancelled = pin!(context.cancel.cancelled());
    loop {
        let socket = Rc::clone(&server.socket);
        let mut readable = tokio::select! {
            biased;
            () = &mut cancelled => break,
            readable = socket.readable() => match readable {
                Ok(readable) => readable,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for DNS packets");
                    return;
                }
            }
        };
        let (mut turn, mut patience) = (TURN, 0);
        let has_more = loop {
            let n = server.answer_what_arrived().await;
            if n >= WORTH_ANOTHER_LOOK {
                patience = PATIENCE;
            } else if patience == 0 {
                break false;
            } else {
                patience -= 1;
            }
            turn = turn.saturating_sub(n.max(1));
            if turn == 0 {
                break true;
            }
        };
        if has_more {
            // The connections that share this worker come first.
            tokio::task::yield_now().await;
        } else {
            // It is empty now: no need for the call that would find it so.
            readable.clear_ready();
        }
    }
    // What has arrived by now was sent to a server that served.
    while server.answer_what_arrived().await > 0 {}
}

struct Server {
    socket: Rc<Socket>,
    context: Rc<Context>,
    responder: Responder,
    batch: Batch,
}

impl Server {
    /// Receives, answers and sends once. Tells how many packets there were.
    async fn answer_what_arrived(&mut self) -> usize {
        let Self { socket, context, responder, batch } = self;
        let n = receive(socket, batch);
        for slot in 0..n {
            responder.foresee(batch.query(slot));
        }
        for slot in 0..n {
            let (peer, packet, reply) = batch.packet(slot);
            let Some(client) = peer.client() else {
                responder.silent(Silence::PortZero);
                continue;
            };
            if let Outcome::Forward(foreign) = responder.respond(packet, Transport::Udp, client, reply)
                && let Some(pending) = context.forwarder.begin(&foreign, &context.counters, reply)
            {
                let (socket, context, peer) = (Rc::clone(socket), Rc::clone(context), peer.clone());
                context.tasks.clone().spawn_local(async move {
                    let mut reply = Vec::new();
                    context.forwarder.finish(pending, &foreign, &context.counters, &mut reply).await;
                    send_one(&socket, &context, &peer, &reply).await;
                });
            }
            if !reply.is_empty() {
                batch.reply(slot);
            }
        }
        send(socket, context, batch).await;
        n
    }
}

fn watch(socket: StdUdpSocket, interest: Interest) -> io::Result<Socket> {
    // SAFETY: a socket keeps its one descriptor open until it is dropped, and `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Fills the batch with what has arrived, if anything.
fn receive(socket: &Socket, batch: &mut Batch) -> usize {
    match batch.receive(socket.as_raw_fd()) {
        Ok(n) => n,
        Err(error) => {
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::debug!(%error, "cannot receive DNS packets");
            }
            0
        }
    }
}

async fn send(socket: &Socket, context: &Context, batch: &mut Batch) {
    let mut sent = 0;
    while sent < batch.n_replies() {
        match when_writable(socket, |fd| batch.send(fd, sent)).await {
            Ok(more) => sent += more,
            Err(error) => {
                // The first reply cannot be sent (to nowhere, say); the others may.
                not_sent(context, &error);
                sent += 1;
            }
        }
    }
}

async fn send_one(socket: &Socket, context: &Context, peer: &Peer, reply: &[u8]) {
    if let Err(error) = when_writable(socket, |fd| peer.send(fd, reply)).await {
        not_sent(context, &error);
    }
}

fn not_sent(context: &Context, error: &io::Error) {
    tracing::debug!(%error, "cannot send a DNS reply");
    context.counters.silent(Silence::SendFailed);
}

/// Sends, and when there is no room for it, waits until there is.
async fn when_writable<T>(socket: &Socket, mut send: impl FnMut(RawFd) -> io::Result<T>) -> io::Result<T> {
    loop {
        match send(socket.as_raw_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Seldom enough to ask for a notice of its own.
                let twin = watch(socket.get_ref().try_clone()?, Interest::WRITABLE)?;
                let _room = twin.writable().await?;
            }
            done => return done,
        }
    }
}
