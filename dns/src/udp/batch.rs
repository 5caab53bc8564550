//! The packets of one system call: buffers and message headers that are made once and point to each other for good.
//!
//! It reads no packet and waits for nothing.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

/// Packets a system call. More would only make the other tasks of the worker wait longer.
pub(super) const BATCH: usize = 64;
/// Queries are below 512 bytes; with EDNS options they may be somewhat longer. What is cut here is malformed.
const QUERY_BYTES: usize = 2048;
/// Room for one IP_PKTINFO or IPV6_PKTINFO message.
const CONTROL_BYTES: usize = 64;
const ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_storage>() as _;

/// Whether the kernel says to which address of ours a packet was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// The socket has only one.
    Known,
    Told,
}

/// Where a packet came from, and (on a socket of all addresses) to which address of ours it was sent.
#[derive(Clone)]
pub(super) struct Peer {
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
            address_bytes: ADDRESS_BYTES,
            control: Control([0; CONTROL_BYTES]),
            control_bytes: 0,
        }
    }

    /// The client's address; `None` when it cannot be answered.
    pub fn client(&self) -> Option<IpAddr> {
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

    pub fn send(&self, socket: RawFd, reply: &[u8]) -> io::Result<()> {
        let mut peer = self.clone();
        let mut data = libc::iovec { iov_base: reply.as_ptr().cast_mut().cast(), iov_len: reply.len() };
        let header = header(&mut peer, &mut data);
        // SAFETY: the header points to `peer`, `data` and `reply`, which outlive the call; sendmsg only reads them.
        let sent = unsafe { libc::sendmsg(socket, &header.msg_hdr, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A message header that points to a peer and to the data from or for it.
fn header(peer: &mut Peer, data: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and pointers, for which all zeros are a value.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = (&raw mut peer.address).cast();
    header.msg_hdr.msg_namelen = peer.address_bytes;
    header.msg_hdr.msg_iov = data;
    header.msg_hdr.msg_iovlen = 1;
    // Sent back as it came, a packet's destination becomes the reply's source.
    header.msg_hdr.msg_control = peer.control.0.as_mut_ptr().cast();
    header.msg_hdr.msg_controllen = peer.control_bytes;
    header
}

/// What one packet and its reply take.
struct Slot {
    query: [u8; QUERY_BYTES],
    peer: Peer,
    reply: Vec<u8>,
}

/// The packets of one system call, and their replies for another.
///
/// Slots are reached through raw pointers that the headers hold too; they are allocated once and never move.
pub(super) struct Batch {
    slots: Box<[Slot]>,
    /// For receiving: each points to its slot's buffers. The array of what they point to.
    received: Box<[libc::mmsghdr]>,
    _query_data: Box<[libc::iovec]>,
    /// For sending: the first so many are filled with each batch.
    replies: Box<[libc::mmsghdr]>,
    reply_data: Box<[libc::iovec]>,
    n_received: usize,
    n_replies: usize,
    control_bytes: usize,
}

impl Batch {
    pub fn new(destination: Destination) -> Self {
        let control_bytes = match destination {
            Destination::Known => 0,
            Destination::Told => CONTROL_BYTES,
        };
        let slot = || Slot {
            query: [0; QUERY_BYTES],
            peer: Peer { control_bytes, ..Peer::new() },
            reply: Vec::with_capacity(512),
        };
        let mut slots: Box<[Slot]> = (0..BATCH).map(|_| slot()).collect();
        let query =
            |slot: &mut Slot| libc::iovec { iov_base: slot.query.as_mut_ptr().cast(), iov_len: QUERY_BYTES };
        let mut query_data: Box<[libc::iovec]> = slots.iter_mut().map(query).collect();
        let both = slots.iter_mut().zip(&mut query_data);
        let received = both.map(|(slot, data)| header(&mut slot.peer, data)).collect();
        // SAFETY: iovec and mmsghdr are integers and pointers, for which all zeros are a value.
        let (reply_data, replies) = unsafe { (mem::zeroed::<[_; BATCH]>(), mem::zeroed::<[_; BATCH]>()) };
        Self {
            slots,
            received,
            _query_data: query_data,
            replies: replies.into(),
            reply_data: reply_data.into(),
            n_received: 0,
            n_replies: 0,
            control_bytes,
        }
    }

    /// Takes what has arrived, up to [`BATCH`] packets, without waiting.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        // The kernel has written the lengths of what it gave; all else is as it was.
        for used in &mut self.received[..self.n_received] {
            used.msg_hdr.msg_namelen = ADDRESS_BYTES;
            used.msg_hdr.msg_controllen = self.control_bytes;
        }
        (self.n_received, self.n_replies) = (0, 0);
        let headers = self.received.as_mut_ptr();
        // SAFETY: the headers point to buffers of the stated sizes, which `self` owns and nobody else uses.
        let n = unsafe { libc::recvmmsg(socket, headers, BATCH as _, 0, std::ptr::null_mut()) };
        self.n_received = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok(self.n_received)
    }

    /// One of the packets that were received last.
    pub fn query(&self, at: usize) -> &[u8] {
        &self.slots[at].query[..(self.received[at].msg_len as usize).min(QUERY_BYTES)]
    }

    /// One of the packets that were received last: who sent it, what it is, and room for a reply.
    pub fn packet(&mut self, at: usize) -> (&Peer, &[u8], &mut Vec<u8>) {
        let slot = &mut self.slots[at];
        let header = &self.received[at];
        slot.peer.address_bytes = header.msg_hdr.msg_namelen;
        slot.peer.control_bytes = header.msg_hdr.msg_controllen;
        slot.reply.clear();
        (&slot.peer, &slot.query[..(header.msg_len as usize).min(QUERY_BYTES)], &mut slot.reply)
    }

    /// Queues the reply of one packet.
    pub fn reply(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let data = &mut self.reply_data[self.n_replies];
        *data = libc::iovec { iov_base: slot.reply.as_mut_ptr().cast(), iov_len: slot.reply.len() };
        self.replies[self.n_replies] = header(&mut slot.peer, data);
        self.n_replies += 1;
    }

    pub fn n_replies(&self) -> usize {
        self.n_replies
    }

    /// Sends the queued replies from `first` on and tells how many were sent.
    pub fn send(&mut self, socket: RawFd, first: usize) -> io::Result<usize> {
        let headers = &mut self.replies[first..self.n_replies];
        // SAFETY: `reply` pointed the headers to replies and peers of the slots, unchanged since.
        let n = unsafe { libc::sendmmsg(socket, headers.as_mut_ptr(), headers.len() as _, 0) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
