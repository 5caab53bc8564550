//! The TCP forwarder: connects an accepted client to an endpoint of a pool and relays until both sides are done.
//!
//! A FIN ends one direction and is passed on; everything else that ends a connection is passed on as RST, so that a
//! cut stream never looks complete. Unless told otherwise there is no idle time-out: a half-open or silent connection
//! is the peers' affair.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Type};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::direction::{Broken, Direction, Shared};
use super::{MAX_TRIES, is_local};
use crate::policy::Policy;
use crate::pool::{EndpointState, InFlight, Pool};
use crate::stats::Counters;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For one endpoint; a connection is refused after at most three.
    pub connect_timeout: Duration,
    /// A connection without a byte in either direction for this long is reset; at most twice as long, because it is
    /// looked at once in that time. `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// How a connection ended. All but `Closed` were reset on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides ended their direction.
    Closed,
    /// The pool has no usable endpoint.
    NoEndpoint,
    /// No endpoint that was tried accepted.
    Unreachable,
    /// All endpoints had as many connections as they may for too long.
    NoRoom,
    ClientReset,
    EndpointReset,
    /// Nothing moved for longer than the configuration allows.
    Idle,
}

/// A connection that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    /// From the client to the endpoint, without what was put in front.
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Where a client's connection may go, and who counts it.
#[derive(Debug)]
pub struct Destination<'a, R = Unlimited> {
    pub pool: &'a Pool,
    pub counters: &'a Counters,
    pub rooms: R,
}

impl<'a> Destination<'a> {
    /// To any endpoint, however many connections it has.
    pub fn unlimited(pool: &'a Pool, counters: &'a Counters) -> Self {
        Self { pool, counters, rooms: Unlimited }
    }
}

/// Who may have how many connections.
pub trait Rooms {
    type Place: Place;

    /// `None`: the endpoint has as many as it may.
    fn enter(&self, endpoint: &Arc<EndpointState>) -> Option<Self::Place>;

    /// All endpoints had; returns the place at the first that has one less. `None`: it took too long, or `client` left.
    fn wait(&self, client: &TcpStream) -> impl Future<Output = Option<Self::Place>>;
}

/// Counts a connection as in flight at an endpoint until it is dropped.
pub trait Place {
    fn endpoint(&self) -> &Arc<EndpointState>;
}

impl Place for InFlight {
    fn endpoint(&self) -> &Arc<EndpointState> {
        self.endpoint()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Unlimited;

impl Rooms for Unlimited {
    type Place = InFlight;

    fn enter(&self, endpoint: &Arc<EndpointState>) -> Option<InFlight> {
        Some(endpoint.begin())
    }

    async fn wait(&self, _: &TcpStream) -> Option<InFlight> {
        None
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Connected<P = InFlight> {
    pub stream: TcpStream,
    pub place: P,
}

/// One per worker: holds the buffer and the pipes that its connections share.
#[derive(Debug)]
pub struct Forwarder {
    options: Options,
    shared: Shared,
}

impl Forwarder {
    pub fn new(options: Options) -> Self {
        Self { options, shared: Shared::new() }
    }

    /// Serves one accepted connection to its end. Dropping the future resets both sides.
    ///
    /// `client` should have TCP_NODELAY set (accepted sockets inherit it from a listener of
    /// [`crate::addresses::listen`]).
    pub async fn forward(
        &self,
        client: TcpStream,
        peer: IpAddr,
        pool: &Pool,
        counters: &Counters,
    ) -> Outcome {
        self.forward_after(&[], client, peer, Destination::unlimited(pool, counters)).await.outcome
    }

    /// The same, with these bytes in front of the client's: a PROXY header.
    pub async fn forward_after(
        &self,
        greeting: &[u8],
        client: TcpStream,
        peer: IpAddr,
        to: Destination<'_, impl Rooms>,
    ) -> Ended {
        let moved = Moved::default();
        let outcome = self.serve(greeting, client, peer, &to, &moved).await;
        Ended { outcome, bytes_in: moved.bytes_in.get(), bytes_out: moved.bytes_out.get() }
    }

    async fn serve(
        &self,
        greeting: &[u8],
        client: TcpStream,
        peer: IpAddr,
        to: &Destination<'_, impl Rooms>,
        moved: &Moved,
    ) -> Outcome {
        let mut client = Socket::new(client);
        let counters = to.counters;
        let Connected { stream: server, place } = match self.connect_to_one(&client, peer, to).await {
            Ok(connected) => connected,
            Err(outcome) => return outcome,
        };
        let mut server = Socket::new(server);
        // A fresh connection takes so few bytes at once.
        if !greeting.is_empty() && server.stream.write_all(greeting).await.is_err() {
            counters.n_resets.add(1);
            return Outcome::EndpointReset;
        }
        let relay = self.relay(&client, &server, place.endpoint(), counters, moved);
        let outcome = match self.options.idle_timeout {
            None => relay.await,
            Some(timeout) => tokio::select! {
                outcome = relay => outcome,
                () = silence(timeout, moved) => Outcome::Idle,
            },
        };
        match outcome {
            Outcome::Closed => {
                client.is_done = true;
                server.is_done = true;
            }
            Outcome::Idle => counters.n_idle.add(1),
            _ => counters.n_resets.add(1),
        }
        outcome
    }

    /// Connects to an endpoint for a client, for whoever relays the bytes himself (and counts them).
    pub async fn connect_to_one<R: Rooms>(
        &self,
        client: &TcpStream,
        peer: IpAddr,
        to: &Destination<'_, R>,
    ) -> Result<Connected<R::Place>, Outcome> {
        to.counters.n_connections.add(1);
        let connected = self.try_endpoints(client, peer, to).await;
        match connected {
            Err(Outcome::NoEndpoint) => to.counters.n_no_endpoint.add(1),
            Err(_) => to.counters.n_unreachable.add(1),
            Ok(_) => {}
        }
        connected
    }

    async fn try_endpoints<R: Rooms>(
        &self,
        client: &TcpStream,
        peer: IpAddr,
        to: &Destination<'_, R>,
    ) -> Result<Connected<R::Place>, Outcome> {
        let Destination { pool, counters, rooms } = to;
        let mut outcome = Outcome::NoEndpoint;
        let mut choices = pool.choose(peer);
        let mut n_full = 0;
        for _ in 0..MAX_TRIES {
            let free = choices.find_map(|choice| {
                let place = rooms.enter(choice.endpoint);
                n_full += u32::from(place.is_none());
                place
            });
            let place = match free {
                Some(place) => place,
                None if n_full > 0 => rooms.wait(client).await.ok_or(Outcome::NoRoom)?,
                None => break,
            };
            outcome = Outcome::Unreachable;
            let endpoint = place.endpoint();
            let began = (pool.policy() == Policy::P2c).then(Instant::now);
            match connect(endpoint.address, self.options.connect_timeout).await {
                Ok(stream) => {
                    endpoint.connect_succeeded();
                    if let Some(began) = began {
                        endpoint.connect_took(began.elapsed());
                    }
                    pool.keep(peer, endpoint);
                    return Ok(Connected { stream, place });
                }
                // Not the endpoint's fault, so it is not counted against it.
                Err(e) if is_local(&e) => counters.n_local_failures.add(1),
                Err(_) => {
                    counters.n_connect_failures.add(1);
                    endpoint.connect_failed();
                    if let Some(began) = began {
                        endpoint.connect_took(began.elapsed().max(self.options.connect_timeout));
                    }
                }
            }
        }
        Err(outcome)
    }

    async fn relay(
        &self,
        client: &TcpStream,
        server: &TcpStream,
        endpoint: &EndpointState,
        counters: &Counters,
        moved: &Moved,
    ) -> Outcome {
        let (mut up, mut down) = (Direction::new(), Direction::new());
        let note_up = |direction: &mut Direction| {
            let n = direction.take_moved();
            if n > 0 {
                moved.bytes_in.set(moved.bytes_in.get() + n);
                endpoint.add_bytes_in(n);
                counters.bytes_in.add(n);
            }
        };
        let note_down = |direction: &mut Direction| {
            let n = direction.take_moved();
            if n > 0 {
                moved.bytes_out.set(moved.bytes_out.get() + n);
                endpoint.add_bytes_out(n);
                counters.bytes_out.add(n);
            }
        };
        let first = poll_fn(|cx| {
            let upward = up.poll(client, server, &self.shared, cx);
            note_up(&mut up);
            if let Poll::Ready(ended) = upward {
                return Poll::Ready(ended.map(|()| Side::Client).map_err(|b| b.outcome(Side::Client)));
            }
            let downward = down.poll(server, client, &self.shared, cx);
            note_down(&mut down);
            downward.map(|ended| ended.map(|()| Side::Server).map_err(|b| b.outcome(Side::Server)))
        })
        .await;
        let ended = match first {
            Ok(side) => side,
            Err(outcome) => return outcome,
        };
        // The side that has ended its direction is not read any more, so its RST would go unseen for as long as
        // nothing is written to it: it is watched for errors instead.
        let (half_closed, sink) = match ended {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        if SockRef::from(sink).shutdown(std::net::Shutdown::Write).is_err() {
            return Broken::Sink.outcome(ended);
        }
        let rest = poll_fn(|cx| match ended {
            Side::Client => {
                let downward = down.poll(server, client, &self.shared, cx);
                note_down(&mut down);
                downward.map(|end| end.map_err(|b| b.outcome(Side::Server)))
            }
            Side::Server => {
                let upward = up.poll(client, server, &self.shared, cx);
                note_up(&mut up);
                upward.map(|end| end.map_err(|b| b.outcome(Side::Client)))
            }
        });
        tokio::select! {
            biased;
            end = rest => end.err().unwrap_or(Outcome::Closed),
            _ = half_closed.ready(Interest::ERROR) => Broken::Source.outcome(ended),
        }
    }
}

/// What a connection has moved so far.
#[derive(Debug, Default)]
struct Moved {
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

/// Returns when nothing has moved for `timeout`. One timer, looked at once in that time, not once per move.
async fn silence(timeout: Duration, moved: &Moved) {
    let n_bytes = || moved.bytes_in.get() + moved.bytes_out.get();
    loop {
        let before = n_bytes();
        tokio::time::sleep(timeout).await;
        if n_bytes() == before {
            return;
        }
    }
}

/// Where a direction comes from.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

impl Broken {
    /// Who reset the connection, when this happened in the direction from `source`.
    fn outcome(self, source: Side) -> Outcome {
        match (self, source) {
            (Self::Source, Side::Client) | (Self::Sink, Side::Server) => Outcome::ClientReset,
            (Self::Source, Side::Server) | (Self::Sink, Side::Client) => Outcome::EndpointReset,
        }
    }
}

/// A socket that is closed by RST unless its connection is done.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    is_done: bool,
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        Self { stream, is_done: false }
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_done {
            // It fails only on a socket that is already dead.
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    // A near endpoint has answered by the next turn of the loop, so most connects need no timer: arming one costs
    // a call to wake the runtime's own driver.
    let ready = tokio::select! {
        biased;
        ready = stream.ready(Interest::WRITABLE) => ready?,
        () = tokio::task::yield_now() => {
            match tokio::time::timeout(timeout, stream.ready(Interest::WRITABLE)).await {
                Ok(ready) => ready?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    };
    if ready.is_write_closed()
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    Ok(stream)
}
