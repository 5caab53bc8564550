//! Serves one UDP socket: receives what has arrived with one system call, answers, sends all replies with another.
//!
//! Nothing is queued: what is not received waits in the socket's buffer, and the kernel drops what that cannot hold.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket as StdUdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::handler::Outcome;
use crate::server::Context;
use crate::stats::{Silence, Transport};

/// Packets a system call. More would only make the other tasks of the worker wait longer.
const BATCH: usize = 32;
/// Queries are below 512 bytes; with EDNS options they may be somewhat longer. What is cut here is malformed.
const QUERY_BYTES: usize = 2048;
/// Room for one IP_PKTINFO or IPV6_PKTINFO message.
const CONTROL_BYTES: usize = 64;

pub(crate) async fn serve(socket: StdUdpSocket, context: Rc<Context>) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Rc::new(socket),
        Err(error) => {
            tracing::error!(%error, "cannot watch a DNS socket");
            return;
        }
    };
    let mut responder = context.responder();
    let mut batch = Batch::new();
    let mut cancelled = pin!(context.cancel.cancelled());
    loop {
        let stopping = tokio::select! {
            biased;
            () = &mut cancelled => true,
            readable = socket.readable() => {
                if let Err(error) = readable {
                    tracing::error!(%error, "cannot wait for DNS packets");
                    return;
                }
                false
            }
        };
        let n = receive(&socket, &mut batch);
        for slot in 0..n {
            let Some(client) = batch.slots[slot].peer.client() else {
                responder.silent(Silence::PortZero);
                continue;
            };
            let (packet, reply) = batch.packet_and_reply(slot);
            if let Outcome::Forward(foreign) = responder.respond(packet, Transport::Udp, client, reply)
                && let Some(pending) = context.forwarder.begin(&foreign, &context.counters, reply)
            {
                let (socket, context, peer) =
                    (Rc::clone(&socket), Rc::clone(&context), batch.slots[slot].peer.clone());
                context.tasks.clone().spawn_local(async move {
                    let mut reply = Vec::new();
                    context.forwarder.finish(pending, &foreign, &context.counters, &mut reply).await;
                    send_one(&socket, &context, &peer, &reply).await;
                });
            }
        }
        send(&socket, &context, &mut batch, n).await;
        if stopping && n == 0 {
            return;
        }
        if n == BATCH {
            // There is probably more; the connections that share this worker come first.
            tokio::task::yield_now().await;
        }
    }
}

/// Fills the batch with what has arrived, if anything.
fn receive(socket: &UdpSocket, batch: &mut Batch) -> usize {
    let mut n = 0;
    let result = socket.try_io(Interest::READABLE, || {
        n = batch.receive(socket.as_raw_fd())?;
        // A batch that is not full has emptied the socket: say so, which saves the call that would find it empty.
        if n < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if let Err(error) = result
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::debug!(%error, "cannot receive DNS packets");
    }
    n
}

async fn send(socket: &UdpSocket, context: &Context, batch: &mut Batch, n: usize) {
    let n = batch.prepare_replies(n);
    let mut sent = 0;
    while sent < n {
        match socket.try_io(Interest::WRITABLE, || batch.send(socket.as_raw_fd(), sent, n)) {
            Ok(more) => sent += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.writable().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // The first reply cannot be sent (to nowhere, say); the others may.
                tracing::debug!(%error, "cannot send a DNS reply");
                context.counters.silent(Silence::SendFailed);
                sent += 1;
            }
        }
    }
}

async fn send_one(socket: &UdpSocket, context: &Context, peer: &Peer, reply: &[u8]) {
    loop {
        match socket.try_io(Interest::WRITABLE, || peer.send(socket.as_raw_fd(), reply)) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.writable().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot send a DNS reply");
                context.counters.silent(Silence::SendFailed);
                return;
            }
        }
    }
}

/// Where a packet came from, and (on a socket of all addresses) to which address of ours it was sent.
#[derive(Clone)]
struct Peer {
    address: libc::sockaddr_storage,
    address_bytes: libc::socklen_t,
    control: Control,
    control_bytes: usize,
}

#[derive(Clone)]
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Peer {
    fn new() -> Self {
        Self {
            // SAFETY: sockaddr_storage is plain integers, for which all zeros are a value.
            address: unsafe { mem::zeroed() },
            address_bytes: 0,
            control: Control([0; CONTROL_BYTES]),
            control_bytes: 0,
        }
    }

    /// The client's address; `None` when it cannot be answered.
    fn client(&self) -> Option<IpAddr> {
        let storage = &raw const self.address;
        match libc::c_int::from(self.address.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that the storage, which is large enough and aligned, holds a sockaddr_in.
                let address = unsafe { &*storage.cast::<libc::sockaddr_in>() };
                (address.sin_port != 0).then(|| Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above, of a sockaddr_in6.
                let address = unsafe { &*storage.cast::<libc::sockaddr_in6>() };
                (address.sin6_port != 0).then(|| Ipv6Addr::from(address.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }

    /// A message header that points to this peer.
    fn header(&mut self, data: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: msghdr is integers and pointers, for which all zeros are a value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = (&raw mut self.address).cast();
        header.msg_namelen = self.address_bytes;
        header.msg_iov = data;
        header.msg_iovlen = 1;
        if self.control_bytes > 0 {
            // Sent back as it came, the packet's destination becomes the reply's source.
            header.msg_control = self.control.0.as_mut_ptr().cast();
            header.msg_controllen = self.control_bytes;
        }
        header
    }

    fn send(&self, socket: RawFd, reply: &[u8]) -> io::Result<()> {
        let mut peer = self.clone();
        let mut data = libc::iovec { iov_base: reply.as_ptr().cast_mut().cast(), iov_len: reply.len() };
        let header = peer.header(&mut data);
        // SAFETY: the header points to `peer`, `data` and `reply`, which outlive the call; sendmsg only reads them.
        let sent = unsafe { libc::sendmsg(socket, &header, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

struct Slot {
    query: [u8; QUERY_BYTES],
    query_bytes: usize,
    peer: Peer,
    reply: Vec<u8>,
}

/// The packets of one system call and their replies. Header arrays point into the slots, which never move.
struct Batch {
    slots: Box<[Slot]>,
    data: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Batch {
    fn new() -> Self {
        let slot = || Slot { query: [0; QUERY_BYTES], query_bytes: 0, peer: Peer::new(), reply: Vec::new() };
        // SAFETY: iovec and mmsghdr are integers and pointers, for which all zeros are a value.
        let (data, headers) = unsafe { (mem::zeroed::<[_; BATCH]>(), mem::zeroed::<[_; BATCH]>()) };
        Self { slots: (0..BATCH).map(|_| slot()).collect(), data: data.into(), headers: headers.into() }
    }

    fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        for ((slot, data), header) in self.slots.iter_mut().zip(&mut self.data).zip(&mut self.headers) {
            *data = libc::iovec { iov_base: slot.query.as_mut_ptr().cast(), iov_len: QUERY_BYTES };
            slot.peer.address_bytes = mem::size_of::<libc::sockaddr_storage>() as _;
            slot.peer.control_bytes = CONTROL_BYTES;
            *header = libc::mmsghdr { msg_hdr: slot.peer.header(data), msg_len: 0 };
        }
        // SAFETY: the headers were just pointed to buffers of the stated sizes, which `self` owns and nobody else uses.
        let n =
            unsafe { libc::recvmmsg(socket, self.headers.as_mut_ptr(), BATCH as _, 0, std::ptr::null_mut()) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        for (slot, header) in self.slots.iter_mut().zip(&self.headers).take(n) {
            slot.query_bytes = header.msg_len as usize;
            slot.peer.address_bytes = header.msg_hdr.msg_namelen;
            slot.peer.control_bytes = header.msg_hdr.msg_controllen;
            slot.reply.clear();
        }
        Ok(n)
    }

    fn packet_and_reply(&mut self, slot: usize) -> (&[u8], &mut Vec<u8>) {
        let slot = &mut self.slots[slot];
        (&slot.query[..slot.query_bytes], &mut slot.reply)
    }

    /// Points the first headers to the replies of the first `n` slots and tells how many replies there are.
    fn prepare_replies(&mut self, n: usize) -> usize {
        let mut n_replies = 0;
        for slot in self.slots[..n].iter_mut().filter(|slot| !slot.reply.is_empty()) {
            let data = &mut self.data[n_replies];
            *data = libc::iovec { iov_base: slot.reply.as_mut_ptr().cast(), iov_len: slot.reply.len() };
            self.headers[n_replies] = libc::mmsghdr { msg_hdr: slot.peer.header(data), msg_len: 0 };
            n_replies += 1;
        }
        n_replies
    }

    /// Sends the prepared replies from `first` up to `end` and tells how many were sent.
    fn send(&mut self, socket: RawFd, first: usize, end: usize) -> io::Result<usize> {
        let headers = &mut self.headers[first..end];
        // SAFETY: `prepare_replies` pointed the headers to replies and peers of the slots, unchanged since.
        let n = unsafe { libc::sendmmsg(socket, headers.as_mut_ptr(), headers.len() as _, 0) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
