//! The two sides of an exchange as bodies see them: something to read from and to write to, and who counts the bytes.
//!
//! A client's stream is any that can be read and written. One that is a socket as it is (no TLS) says so, and large
//! bodies then pass through the kernel.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use l4_vip::proxy_protocol::Ends;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::buffer::{Buffer, Spare};
use super::socket::{self, Departure};
use crate::stats::{Series, Shard};

/// What a client's connection is made of.
pub(crate) trait ClientStream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// The socket, when what is written to it is what the client reads and nothing of it has been waited for: it is not
    /// watched yet, and need not be as long as there is something to read and room to write.
    fn unwatched(&self) -> Option<RawFd> {
        None
    }

    /// What is written is what the client reads.
    fn is_plain(&self) -> bool {
        self.plain().is_some()
    }

    /// The socket, when it is plain.
    fn plain(&self) -> Option<&TcpStream>;

    /// Makes the close a reset, so that the client sees that something is missing.
    fn cut(&self);
}

impl ClientStream for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn cut(&self) {
        // Without it the connection still ends, only less visibly.
        let _ = socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO));
    }
}

/// One side of an exchange.
pub(crate) trait Side {
    fn input(&mut self) -> &mut Buffer;

    /// Reads into the input. 0: the other side has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>, spare: &Spare) -> Poll<io::Result<usize>>;

    /// Never `Ok(0)`.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says that nothing more will be written.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Lines that followed a body that has been read to its end, each with its CR LF, where they are no part of it.
    fn trailer(&self) -> &[u8] {
        b""
    }

    fn is_plain(&self) -> bool;
    /// For moving bytes within the kernel, whose number is then told.
    fn plain(&self) -> Option<&TcpStream>;
    fn count_read(&self, n: usize);
    fn count_written(&self, n: usize);
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct ClientSide<S> {
    pub(crate) stream: S,
    pub(crate) input: Buffer,
    pub(crate) client: SocketAddr,
    /// The port that the client connected to.
    pub(crate) local_port: u16,
    pub(crate) frontend: Arc<Series>,
    pub(crate) worker: usize,
    /// It has said that it will send nothing more.
    pub(crate) has_ended: bool,
    pub(crate) n_written: Cell<u64>,
    /// Of what is written from now on.
    pub(crate) departure: Departure,
}

impl<S> ClientSide<S> {
    pub(crate) fn shard(&self) -> &Shard {
        self.frontend.of_worker(self.worker)
    }
}

impl<S: ClientStream> ClientSide<S> {
    pub(super) fn ends(&self) -> Ends {
        ends(self.client, self.local_port, self.stream.plain())
    }
}

/// Where a client's connection comes from and where it came to. When it is no socket as it is, the latter's port is
/// known.
pub(crate) fn ends(client: SocketAddr, local_port: u16, socket: Option<&TcpStream>) -> Ends {
    let destination = socket.and_then(|socket| socket.local_addr().ok());
    let destination = destination.unwrap_or_else(|| match client.ip().to_canonical() {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, local_port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, local_port).into(),
    });
    Ends { source: client, destination }
}

impl<S: ClientStream> Side for ClientSide<S> {
    fn input(&mut self) -> &mut Buffer {
        &mut self.input
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, spare: &Spare) -> Poll<io::Result<usize>> {
        let at_once = self.stream.unwatched().and_then(|fd| self.input.receive(fd, spare));
        let n = match at_once {
            Some(n) => n?,
            None => ready!(match self.stream.plain() {
                Some(socket) => self.input.poll_receive(cx, socket, spare),
                None => self.input.poll_fill(cx, &mut self.stream, spare),
            })?,
        };
        self.has_ended |= n == 0;
        self.count_read(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let at_once = self.stream.unwatched().and_then(|fd| socket::send(fd, bytes, self.departure));
        let n = match at_once {
            Some(n) => n?,
            None => ready!(match self.stream.plain() {
                Some(socket) => socket::poll_send(cx, socket, bytes, self.departure),
                None => Pin::new(&mut self.stream).poll_write(cx, bytes),
            })?,
        };
        self.count_written(n);
        Poll::Ready(some(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.unwatched() {
            Some(fd) => Poll::Ready(socket::end(fd)),
            None => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }

    fn is_plain(&self) -> bool {
        self.stream.is_plain()
    }

    fn plain(&self) -> Option<&TcpStream> {
        self.stream.plain()
    }

    fn count_read(&self, n: usize) {
        self.shard().bytes_in.add(n as u64);
    }

    fn count_written(&self, n: usize) {
        self.n_written.set(self.n_written.get() + n as u64);
        self.shard().bytes_out.add(n as u64);
    }
}

pub(crate) fn some(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}
