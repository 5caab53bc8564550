//! A netlink socket: requests, dumps, batches that are taken as a whole or not at all, and events.
//!
//! It waits for nothing but the kernel's own answers, which are queued before a request's send call returns. It lives
//! in the network namespace of the thread that opened it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::message::{Attributes, Message, Messages, Writer, u32_at};

/// What a dump's reader offers to the kernel at a time; it fills up to 32 KiB of it.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Enough for the events of one full programming of 10,000 VIPs, and for one transaction of 100,000.
const SOCKET_BUFFER_BYTES: libc::c_int = 32 << 20;

#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Box<[u8]>,
}

/// What an event socket has to say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    Message(Message<'a>),
    /// The kernel could not queue them all.
    Lost,
}

impl Socket {
    /// `protocol`: NETLINK_NETFILTER, NETLINK_ROUTE or NETLINK_SOCK_DIAG.
    pub fn open(protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: a plain call; its result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an all-zero address is a valid one: the kernel chooses the port.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        let mut size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: `address` and `size` live for the calls and are as large as they say.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) == 0
                && libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut size) == 0
        };
        if !bound {
            return Err(io::Error::last_os_error());
        }
        let socket = Self { fd, port: address.nl_pid, sequence: 0, buffer: vec![0; RECEIVE_BYTES].into() };
        // Beyond the system's limit, which privileged processes may pass. Without it large batches fail by
        // themselves, with an error of their own.
        let _ = socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES);
        let _ = socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES);
        Ok(socket)
    }

    /// The name of this socket in the events that it causes.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as libc::c_int)
    }

    pub(crate) fn leave(&self, group: u32) -> io::Result<()> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group as libc::c_int)
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends one message that asks for an acknowledgement, and waits for it.
    pub fn request(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        family_header: &[u8],
        attributes: impl FnOnce(&mut Writer),
    ) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut writer = Writer::default();
        writer.message(kind, (flags | libc::NLM_F_ACK) as u16, sequence, family_header, attributes);
        self.send(writer.bytes())?;
        self.answers(sequence, |_| {})
    }

    /// Sends a question and gives every message of the answer to `each`. With NLM_F_DUMP among the flags the answer
    /// has an end of its own; otherwise an acknowledgement is asked for.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        family_header: &[u8],
        attributes: impl FnOnce(&mut Writer),
        each: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.next_sequence();
        let flags =
            if flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP { flags } else { flags | libc::NLM_F_ACK };
        let mut writer = Writer::default();
        writer.message(kind, flags as u16, sequence, family_header, attributes);
        self.send(writer.bytes())?;
        self.answers(sequence, each)
    }

    /// Sends a batch whose last message before the end mark asks for an acknowledgement. The kernel works on it
    /// within the call, so that all answers are there when it returns. The error names the message that failed by its
    /// sequence number.
    pub(crate) fn transact(&mut self, batch: &[u8]) -> Result<(), (Option<u32>, io::Error)> {
        self.send(batch).map_err(|error| (None, error))?;
        let mut failed = None;
        let mut n_answers = 0;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(n) => {
                    for message in Messages(&self.buffer[..n]) {
                        n_answers += 1;
                        if let Some(Err(error)) = verdict(message) {
                            failed.get_or_insert((Some(message.sequence), error));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // More messages failed than there is room to tell.
                Err(error) => {
                    failed.get_or_insert((None, error));
                }
            }
        }
        match failed {
            Some(failed) => Err(failed),
            None if n_answers == 0 => {
                Err((None, io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer")))
            }
            None => Ok(()),
        }
    }

    /// What arrived on an event socket since the last call.
    pub(crate) fn events(&mut self, mut each: impl FnMut(Event<'_>)) -> io::Result<()> {
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(n) => Messages(&self.buffer[..n]).for_each(|message| each(Event::Message(message))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(Event::Lost),
                Err(error) => return Err(error),
            }
        }
    }

    fn answers(&mut self, sequence: u32, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let mut is_torn = false;
        loop {
            let n = self.receive(0)?;
            for message in Messages(&self.buffer[..n]).filter(|m| m.sequence == sequence) {
                is_torn |= libc::c_int::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                match verdict(message) {
                    // What was dumped changed meanwhile, and may be neither the old nor the new.
                    Some(Ok(())) if is_torn => return Err(io::ErrorKind::Interrupted.into()),
                    Some(result) => return result,
                    None => each(message),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length are those of a slice that lives for the call.
        let n = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<usize> {
        loop {
            // SAFETY: the kernel writes at most as many bytes as the buffer has.
            let n = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    flags | libc::MSG_TRUNC,
                )
            };
            match usize::try_from(n) {
                Ok(n) if n > self.buffer.len() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message is too long"));
                }
                Ok(n) => return Ok(n),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }

    fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` lives for the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The end of an answer: success, or the kernel's error.
fn verdict(message: Message<'_>) -> Option<io::Result<()>> {
    match libc::c_int::from(message.kind) {
        libc::NLMSG_DONE | libc::NLMSG_ERROR => {
            let code = u32_at(message.body, 0).unwrap_or(0) as i32;
            Some(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) })
        }
        _ => None,
    }
}

/// The attributes of a message of a netfilter subsystem.
pub(crate) fn netfilter_attributes(message: Message<'_>) -> Attributes<'_> {
    message.attributes(NETFILTER_HEADER_BYTES)
}

/// `struct nfgenmsg`: family, version 0, and a resource that only batches name.
pub(crate) fn netfilter_header(family: libc::c_int) -> [u8; NETFILTER_HEADER_BYTES] {
    [family as u8, libc::NFNETLINK_V0 as u8, 0, 0]
}

const NETFILTER_HEADER_BYTES: usize = 4;
