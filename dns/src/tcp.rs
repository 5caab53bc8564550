//! Serves DNS over TCP (RFC 7766): any number of queries on a connection, however their bytes arrive.
//!
//! A connection that says nothing costs a place that others may need, so places are limited: see `Connections`.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::forward::{Foreign, Pending};
use crate::handler::Outcome;
use crate::server::Context;
use crate::stats::Transport;
use crate::wire::HEADER;

/// Much more than a query needs. A longer one is somebody who does not speak DNS.
const QUERY_BYTES: usize = 4096;
/// Questions to upstreams that one connection may have open; the next query waits for one of them.
const N_FORWARDS: usize = 32;
/// Replies are sent at the latest when so much has gathered.
const FLUSH_BYTES: usize = 64 * 1024;
/// Without file descriptors there is nothing to accept with until some connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn serve(listener: StdTcpListener, context: Rc<Context>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot watch a DNS listener");
            return;
        }
    };
    loop {
        tokio::select! {
            biased;
            () = context.cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => start(stream, client.ip(), &context),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a DNS connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    // Who is already in the backlog has connected as far as it knows.
    poll_fn(|cx| {
        while let Poll::Ready(Ok((stream, client))) = listener.poll_accept(cx) {
            start(stream, client.ip(), &context);
        }
        Poll::Ready(())
    })
    .await;
}

fn start(stream: TcpStream, client: IpAddr, context: &Rc<Context>) {
    context.counters.tcp_connected();
    let place = context.connections.enter(client, context);
    let context = Rc::clone(context);
    context.tasks.clone().spawn_local(async move {
        let connection = Rc::clone(&place.connection);
        tokio::select! {
            biased;
            () = connection.make_room.notified() => context.counters.tcp_evicted(),
            ended = converse(stream, &connection, &context) => {
                if let Err(error) = ended {
                    tracing::debug!(%client, %error, "a DNS connection ended");
                }
            }
        }
    });
}

async fn converse(mut stream: TcpStream, connection: &Connection, context: &Rc<Context>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut responder = context.responder();
    let mut received = Vec::new();
    let mut replies = Vec::new();
    // What upstreams are asked for does not hold up what comes behind it (RFC 7766 section 6.2.1.1).
    let mut forwards = JoinSet::new();
    let mut cancelled = pin!(context.cancel.cancelled());
    let mut more = More::Expected;
    loop {
        let mut at = 0;
        while forwards.len() < N_FORWARDS
            && let Some(query) = next_query(&received[at..])?
        {
            at += 2 + query.len();
            let length_at = replies.len();
            replies.extend_from_slice(&[0, 0]);
            match responder.respond(query, Transport::Tcp, connection.client, &mut replies) {
                Outcome::Reply => finish_frame(&mut replies, length_at),
                Outcome::Silence => return Ok(()),
                Outcome::Forward(foreign) => {
                    match context.forwarder.begin(&foreign, &context.counters, &mut replies) {
                        None => finish_frame(&mut replies, length_at),
                        Some(pending) => {
                            replies.truncate(length_at);
                            forwards.spawn_local(forward(pending, foreign, Rc::clone(context)));
                        }
                    }
                }
            }
            connection.last_active.set(Instant::now());
            if replies.len() > FLUSH_BYTES {
                flush(&mut stream, &mut replies, context).await?;
            }
        }
        received.drain(..at);
        flush(&mut stream, &mut replies, context).await?;
        if more == More::None && forwards.is_empty() {
            return Ok(());
        }

        let deadline = connection.last_active.get() + context.config.tcp_idle;
        let may_read = more == More::Expected && forwards.len() < N_FORWARDS;
        tokio::select! {
            biased;
            Some(reply) = forwards.join_next() => {
                connection.last_active.set(Instant::now());
                replies.extend_from_slice(&reply.map_err(io::Error::other)?);
            }
            read = stream.read_buf(&mut received), if may_read => {
                if read? == 0 {
                    more = More::None;
                }
            }
            () = sleep_until(deadline), if forwards.is_empty() => return Ok(()),
            () = &mut cancelled, if more == More::Expected => more = More::None,
        }
    }
}

/// Whether the client may send another query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Expected,
    None,
}

/// The reply, framed.
async fn forward(pending: Pending, foreign: Foreign, context: Rc<Context>) -> Vec<u8> {
    let mut reply = vec![0, 0];
    context.forwarder.finish(pending, &foreign, &context.counters, &mut reply).await;
    finish_frame(&mut reply, 0);
    reply
}

/// Writes the length of the message that ends `replies` before it.
fn finish_frame(replies: &mut [u8], length_at: usize) {
    let length = u16::try_from(replies.len() - length_at - 2).unwrap_or(u16::MAX);
    replies[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
}

/// The first whole query; `None` while it is still arriving.
fn next_query(received: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = received.split_first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if !(HEADER..=QUERY_BYTES).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a query of {length} bytes")));
    }
    Ok(rest.get(..length))
}

async fn flush(stream: &mut TcpStream, replies: &mut Vec<u8>, context: &Context) -> io::Result<()> {
    if !replies.is_empty() {
        timeout_at(Instant::now() + context.config.tcp_idle, stream.write_all(replies)).await??;
        replies.clear();
    }
    Ok(())
}

/// The connections of one worker. When there are too many, of all or of one client, the one that has been idle for
/// longest makes room: whoever talks is served, and holding connections open gains nothing.
#[derive(Debug, Default)]
pub(crate) struct Connections(RefCell<Vec<Rc<Connection>>>);

#[derive(Debug)]
struct Connection {
    client: IpAddr,
    last_active: Cell<Instant>,
    make_room: Notify,
}

/// A connection's place among the others; gives it back when dropped.
struct Place {
    connection: Rc<Connection>,
    context: Rc<Context>,
}

impl Connections {
    fn enter(&self, client: IpAddr, context: &Rc<Context>) -> Place {
        let mut connections = self.0.borrow_mut();
        let of_client = connections.iter().filter(|c| c.client == client).count();
        let crowded_by_client = of_client >= context.config.n_tcp_connections_per_client;
        if crowded_by_client || connections.len() >= context.config.n_tcp_connections_max {
            let candidates = connections.iter().filter(|c| !crowded_by_client || c.client == client);
            if let Some(idlest) = candidates.min_by_key(|c| c.last_active.get()).cloned() {
                connections.retain(|c| !Rc::ptr_eq(c, &idlest));
                idlest.make_room.notify_one();
            }
        }
        let connection =
            Rc::new(Connection { client, last_active: Cell::new(Instant::now()), make_room: Notify::new() });
        connections.push(Rc::clone(&connection));
        Place { connection, context: Rc::clone(context) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.context.connections.0.borrow_mut().retain(|c| !Rc::ptr_eq(c, &self.connection));
    }
}
