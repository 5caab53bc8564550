//! A client's socket that the runtime watches from the first time on that something of it has to be waited for.
//!
//! A connection for a single request mostly has it when it is accepted: it is served and closed without the two system
//! calls that watching costs. Whatever waits, or hands the socket on, has it watched first.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::side::ClientStream;

#[derive(Debug)]
pub(crate) struct ClientSocket {
    fd: RawFd,
    unwatched: RefCell<Option<std::net::TcpStream>>,
    is_unwatched: Cell<bool>,
    watched: OnceCell<TcpStream>,
}

impl ClientSocket {
    /// `socket` does not block.
    pub(crate) fn new(socket: std::net::TcpStream) -> Self {
        Self {
            fd: socket.as_raw_fd(),
            unwatched: RefCell::new(Some(socket)),
            is_unwatched: Cell::new(true),
            watched: OnceCell::new(),
        }
    }

    pub(crate) fn into_watched(self) -> io::Result<TcpStream> {
        self.watch()?;
        self.watched.into_inner().ok_or_else(closed)
    }

    /// An error closes it.
    fn watch(&self) -> io::Result<&TcpStream> {
        if let Some(socket) = self.unwatched.take() {
            self.is_unwatched.set(false);
            let socket = TcpStream::from_std(socket)?;
            return Ok(self.watched.get_or_init(|| socket));
        }
        self.watched.get().ok_or_else(closed)
    }

    fn watch_mut(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.watch()?;
        self.watched.get_mut().map(Pin::new).ok_or_else(closed)
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl From<TcpStream> for ClientSocket {
    fn from(socket: TcpStream) -> Self {
        Self {
            fd: socket.as_raw_fd(),
            unwatched: RefCell::new(None),
            is_unwatched: Cell::new(false),
            watched: OnceCell::from(socket),
        }
    }
}

impl ClientStream for ClientSocket {
    fn unwatched(&self) -> Option<RawFd> {
        self.is_unwatched.get().then_some(self.fd)
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn plain(&self) -> Option<&TcpStream> {
        self.watch().ok()
    }

    fn cut(&self) {
        if let Ok(socket) = self.watch() {
            socket.cut();
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watch_mut()?.poll_read(cx, room)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.watch_mut()?.poll_write(cx, bytes)
    }

    /// A socket holds nothing back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch_mut()?.poll_shutdown(cx)
    }
}
