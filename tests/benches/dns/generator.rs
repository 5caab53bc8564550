//! A load that one core makes faster than any of the servers answers on another, so that it is the server that is
//! measured: dnsperf, with a system call for each packet, is busy before they are.
//!
//! Clients ask in turn as many questions as they may have open, in one system call, and more when all are answered.

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;

const N_CLIENTS: usize = 20;
/// Of each client; all of them fit into the smallest receive buffer that the servers have.
const N_OPEN: usize = 10;
/// What is not answered by then is lost.
const PATIENCE: Duration = Duration::from_secs(1);
const HEADER: usize = 12;

#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub n_answered: u64,
    pub n_lost: u64,
    pub elapsed: Duration,
}

/// Asks the questions over and over.
pub fn saturate(server: SocketAddr, questions: &[Vec<u8>], time: Duration) -> anyhow::Result<Asked> {
    let mut clients = (0..N_CLIENTS).map(|_| Client::new(server)).collect::<io::Result<Vec<_>>>()?;
    let mut questions = questions.iter().cycle();
    let mut asked = Asked { n_answered: 0, n_lost: 0, elapsed: Duration::ZERO };
    let began = Instant::now();
    while asked.elapsed < time {
        for client in &mut clients {
            asked.n_answered += client.receive().context("a question was not answered as it should be")?;
            if client.n_open > 0 && client.asked_at.elapsed() < PATIENCE {
                continue;
            }
            asked.n_lost += client.n_open as u64;
            client.ask(&mut questions)?;
        }
        asked.elapsed = began.elapsed();
    }
    Ok(asked)
}

struct Client {
    socket: UdpSocket,
    /// Of its questions now, so that late answers to earlier ones do not count.
    id: u16,
    n_open: usize,
    asked_at: Instant,
}

impl Client {
    fn new(server: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, id: 0, n_open: 0, asked_at: Instant::now() })
    }

    fn ask<'q>(&mut self, questions: &mut impl Iterator<Item = &'q Vec<u8>>) -> io::Result<()> {
        self.id = self.id.wrapping_add(1);
        let mut packets: [Vec<u8>; N_OPEN] = Default::default();
        for (packet, question) in packets.iter_mut().zip(questions) {
            packet.clone_from(question);
            packet[..2].copy_from_slice(&self.id.to_be_bytes());
        }
        let mut parts = packets.each_mut().map(|packet| part(packet));
        let mut headers = parts.each_mut().map(header);
        // SAFETY: the headers point to `parts`, and these to `packets`; the call reads them.
        let n = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), N_OPEN as _, 0) };
        self.n_open = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        self.asked_at = Instant::now();
        Ok(())
    }

    /// Takes the answers that are there, and tells how many.
    fn receive(&mut self) -> anyhow::Result<u64> {
        let mut replies = [[0; HEADER]; N_OPEN];
        let mut parts = replies.each_mut().map(|reply| part(reply));
        let mut headers = parts.each_mut().map(header);
        let (socket, nothing) = (self.socket.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: as above; the call writes into `replies`, of whose sizes `parts` tell.
        let n = unsafe { libc::recvmmsg(socket, headers.as_mut_ptr(), N_OPEN as _, 0, nothing) };
        let Ok(n) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error.into()) };
        };
        let is_current = |reply: &&[u8; HEADER]| reply[..2] == self.id.to_be_bytes();
        let mut n_answered = 0;
        for reply in replies[..n].iter().filter(is_current) {
            anyhow::ensure!(reply[3] & 0x0f == 0 && reply[7] > 0, "its header is {reply:?}");
            n_answered += 1;
        }
        self.n_open = self.n_open.saturating_sub(n_answered);
        Ok(n_answered as u64)
    }
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

fn header(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and pointers, for which all zeros are a value.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    header
}
