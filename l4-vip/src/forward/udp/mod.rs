//! The UDP forwarder of one worker: gives each client of a VIP a socket of its own to one endpoint, and sends answers
//! from the address that was asked.
//!
//! The table of flows is bounded, and so is the time a silent flow lives. Datagrams are never queued: what a socket
//! does not take at once is dropped and counted, as the network would.

mod flows;
mod icmp;
mod poller;

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_watcher::catalog::Rotation;
use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::flows::{FlowId, Flows};
use self::icmp::Icmp;
use self::poller::Poller;
use super::descriptors::Ceiling;
use super::{MAX_TRIES, is_local};
use crate::pool::InFlight;
use crate::stats::UdpCounters;
use crate::table::{Owner, VipState};

/// The longest datagram there is.
const BUFFER_BYTES: usize = 65_536;

/// Datagrams that one socket may move before others have their turn.
const BATCH: usize = 64;

/// How often flows are looked over. Four times within the second in which a flow must leave an endpoint that is gone.
const SWEEP: Duration = Duration::from_millis(250);

/// A flow that was silent for this long leaves an endpoint that drains: whatever it asked has been answered.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// One per worker.
#[derive(Debug)]
pub(crate) struct Relay {
    flows: RefCell<Flows<Key, Flow>>,
    poller: Poller,
    icmp: Icmp,
    buffer: RefCell<Box<[u8]>>,
    /// Wakes the sweep: there is a flow again.
    first_flow: Notify,
    ceiling: Ceiling,
    counters: Arc<UdpCounters>,
    started: Instant,
}

/// A socket on which clients ask a VIP.
#[derive(Debug)]
struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
    owner: Arc<Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddr,
    /// The listener's own, by its place in memory: it lives as long as its flows.
    listener: usize,
}

#[derive(Debug)]
struct Flow {
    /// Connected to the endpoint, so that its errors come here and nobody else's datagrams do.
    socket: std::net::UdpSocket,
    listener: Rc<Listener>,
    /// The owner of the address when the client first asked.
    vip: Arc<VipState>,
    client: SocketAddr,
    in_flight: InFlight,
}

impl AsFd for Flow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What became of a datagram that a flow was given.
enum Sent {
    Yes,
    /// The flow is of no use: its endpoint is gone, drains, or refused something.
    Unusable,
}

impl Relay {
    /// Needs the runtime's IO driver.
    pub(crate) fn new(max_flows: usize, ceiling: Ceiling, counters: Arc<UdpCounters>) -> io::Result<Self> {
        Ok(Self {
            flows: RefCell::new(Flows::new(max_flows)),
            poller: Poller::new()?,
            icmp: Icmp::open(),
            buffer: RefCell::new(vec![0; BUFFER_BYTES].into()),
            first_flow: Notify::new(),
            ceiling,
            counters,
            started: Instant::now(),
        })
    }

    /// Serves one address of a VIP until told to stop. Its flows end with it.
    pub(crate) async fn serve(
        &self,
        socket: std::net::UdpSocket,
        owner: Arc<Owner>,
        stop: CancellationToken,
    ) {
        let listener = match (socket.local_addr(), UdpSocket::from_std(socket)) {
            (Ok(address), Ok(socket)) => Rc::new(Listener { socket, address, owner }),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, vip = %owner.now.load().key.target, "cannot watch a VIP's socket");
                return;
            }
        };
        loop {
            let ready = tokio::select! {
                ready = listener.socket.readable() => ready,
                () = stop.cancelled() => break,
            };
            if let Err(error) = ready {
                tracing::error!(%error, vip = %listener.owner.now.load().key.target, "cannot read from a VIP's socket");
                break;
            }
            self.read_clients(&listener);
            tokio::task::yield_now().await;
        }
        let own = number_of(&listener);
        self.flows.borrow_mut().retain(Duration::ZERO, |key, _, _| key.listener != own);
    }

    fn read_clients(&self, listener: &Rc<Listener>) {
        let mut buffer = self.buffer.borrow_mut();
        for _ in 0..BATCH {
            match listener.socket.try_recv_from(&mut buffer) {
                Ok((n, client)) => self.take_datagram(listener, client, &buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // An error of an earlier send, told here: that answer is lost, nothing else.
                Err(_) => {}
            }
        }
    }

    fn take_datagram(&self, listener: &Rc<Listener>, client: SocketAddr, datagram: &[u8]) {
        let key = Key { client, listener: number_of(listener) };
        let known = self.flows.borrow().find(&key);
        if let Some(id) = known {
            match self.send_on(id, datagram) {
                Sent::Yes => return,
                Sent::Unusable => drop(self.flows.borrow_mut().remove(id)),
            }
        }
        if !self.open(listener, key, datagram) {
            self.refuse(listener, client, datagram.len());
        }
    }

    fn send_on(&self, id: FlowId, datagram: &[u8]) -> Sent {
        let mut flows = self.flows.borrow_mut();
        let now = self.now();
        let (Some(flow), Some(idle)) = (flows.get(id), flows.idle(id, now)) else { return Sent::Unusable };
        let endpoint = flow.in_flight.endpoint();
        let stays = match endpoint.rotation() {
            Rotation::In => true,
            Rotation::Draining => idle < DRAIN_IDLE,
            Rotation::Out => false,
        };
        if !stays {
            return Sent::Unusable;
        }
        match flow.socket.send(datagram) {
            Ok(n) => {
                endpoint.add_bytes_in(n as u64);
                flow.vip.counters.bytes_in.add(n as u64);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.counters.n_dropped.add(1),
            Err(e) => {
                flow.count_failure(&e);
                return Sent::Unusable;
            }
        }
        flows.touch(id, now);
        Sent::Yes
    }

    /// Gives a client an endpoint and sends its first datagram there. An endpoint that refuses it at once is left for
    /// the next.
    fn open(&self, listener: &Rc<Listener>, key: Key, datagram: &[u8]) -> bool {
        let vip = listener.owner.now.load_full();
        let (pool, counters) = (vip.pool(key.client.ip()).load(), &vip.counters);
        counters.n_connections.add(1);
        let mut tried = false;
        for choice in pool.choose(key.client.ip()).take(MAX_TRIES) {
            tried = true;
            let in_flight = choice.endpoint.begin();
            let sent = self.connect(choice.endpoint.address).and_then(|socket| {
                socket.send(datagram)?;
                // An endpoint on this host, or a router that is near, has already answered that it refuses.
                match socket.take_error()? {
                    Some(error) => Err(error),
                    None => Ok(socket),
                }
            });
            match sent {
                Ok(socket) => {
                    pool.keep(key.client.ip(), choice.endpoint);
                    choice.endpoint.add_bytes_in(datagram.len() as u64);
                    counters.bytes_in.add(datagram.len() as u64);
                    let (client, listener, vip) = (key.client, Rc::clone(listener), Arc::clone(&vip));
                    self.add(key, Flow { socket, listener, vip, client, in_flight });
                    return true;
                }
                Err(e) if is_local(&e) => counters.n_local_failures.add(1),
                Err(_) => {
                    counters.n_connect_failures.add(1);
                    choice.endpoint.connect_failed();
                }
            }
        }
        if tried { &counters.n_unreachable } else { &counters.n_no_endpoint }.add(1);
        false
    }

    fn connect(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let socket = loop {
            let opened = socket2::Socket::new(
                Domain::for_address(address),
                Type::DGRAM.nonblocking().cloexec(),
                Some(Protocol::UDP),
            );
            match opened {
                Ok(socket) if !self.ceiling.is_reached_by(&socket) => break socket,
                Err(e) if !is_local(&e) => return Err(e),
                // The oldest flow's descriptor is free then.
                scarce => {
                    if self.flows.borrow_mut().remove_oldest().is_none() {
                        return scarce.and(Err(io::Error::from_raw_os_error(libc::EMFILE)));
                    }
                    self.counters.n_evicted.add(1);
                }
            }
        };
        socket.connect(&address.into())?;
        Ok(socket.into())
    }

    fn add(&self, key: Key, flow: Flow) {
        let mut flows = self.flows.borrow_mut();
        if flows.len() == 0 {
            self.first_flow.notify_one();
        }
        let (id, displaced) = flows.insert(key, flow, self.now());
        if displaced.is_some() {
            self.counters.n_evicted.add(1);
        }
        let watched = flows.get(id).map(|flow| self.poller.watch(flow, id.into()));
        if let Some(Err(error)) = watched {
            // It has sent, but its answers would not be noticed.
            tracing::warn!(%error, "cannot watch the socket of a flow");
            flows.remove(id);
        }
    }

    /// Moves answers to clients. Runs as long as the worker.
    pub(crate) async fn answer(&self) {
        let mut ready = Vec::new();
        loop {
            if let Err(error) = self.poller.ready(&mut ready).await {
                tracing::error!(%error, "cannot wait for the endpoints of UDP flows");
                return;
            }
            for token in &ready {
                self.read_endpoint(FlowId::from(*token));
            }
            tokio::task::yield_now().await;
        }
    }

    fn read_endpoint(&self, id: FlowId) {
        let mut buffer = self.buffer.borrow_mut();
        let mut flows = self.flows.borrow_mut();
        let Some(flow) = flows.get(id) else { return };
        let mut n_answers = 0;
        for _ in 0..BATCH {
            match flow.socket.recv(&mut buffer) {
                Ok(n) => {
                    n_answers += 1;
                    flow.pass_on(&buffer[..n], &self.counters);
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(e) => {
                    flow.count_failure(&e);
                    let (listener, client) = (Rc::clone(&flow.listener), flow.client);
                    flows.remove(id);
                    self.refuse(&listener, client, 0);
                    return;
                }
            }
        }
        if n_answers > 0 {
            flow.in_flight.endpoint().connect_succeeded();
            flows.touch(id, self.now());
        }
    }

    fn refuse(&self, listener: &Listener, client: SocketAddr, n_bytes: usize) {
        if self.icmp.unreachable(client, listener.address, n_bytes) {
            self.counters.n_refused.add(1);
        }
    }

    /// Ends flows that have been silent too long or must leave their endpoint. Runs as long as the worker.
    pub(crate) async fn sweep(&self) {
        loop {
            if self.flows.borrow().len() == 0 {
                self.first_flow.notified().await;
            }
            tokio::time::sleep(SWEEP).await;
            self.icmp.refill();
            self.flows.borrow_mut().retain(self.now(), |_, flow, idle| {
                idle < flow.vip.udp_idle()
                    && flow.listener.owner.keeps(&flow.vip)
                    && match flow.in_flight.endpoint().rotation() {
                        Rotation::In => true,
                        Rotation::Draining => idle < DRAIN_IDLE,
                        Rotation::Out => false,
                    }
            });
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Flow {
    fn pass_on(&self, answer: &[u8], counters: &UdpCounters) {
        match self.listener.socket.try_send_to(answer, self.client) {
            Ok(n) => {
                self.in_flight.endpoint().add_bytes_out(n as u64);
                self.vip.counters.bytes_out.add(n as u64);
            }
            Err(_) => counters.n_dropped.add(1),
        }
    }

    fn count_failure(&self, error: &io::Error) {
        let counters = &self.vip.counters;
        if is_local(error) {
            counters.n_local_failures.add(1);
        } else {
            counters.n_connect_failures.add(1);
            self.in_flight.endpoint().connect_failed();
        }
    }
}

fn number_of(listener: &Rc<Listener>) -> usize {
    Rc::as_ptr(listener).addr()
}
