//! One direction of a connection: from the socket that is read to the socket that is written.
//!
//! It holds memory or a pipe only while bytes are in it: short pieces go through one buffer that all connections of
//! a worker share, what the other side does not take at once is set aside, and long transfers are spliced. It does
//! not know which direction it is, nor what the end of it means for the connection.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::{Pipe, Pipes};

/// Small enough to stay in the cache: larger buffers cost more per byte (spec of the measured proxies: 8 KiB copies
/// 350 ms/GB, 64 KiB 625).
const BUFFER_BYTES: usize = 16 * 1024;

/// Splicing begins when this much came in pieces of at least `LONG_PIECE_BYTES` without a shorter one between them.
/// Counting pieces keeps a connection of many short exchanges on the copying path, where those are cheaper.
const SPLICE_AFTER_BYTES: usize = 256 * 1024;
const LONG_PIECE_BYTES: usize = 4 * 1024;

/// What the connections of one worker share.
#[derive(Debug)]
pub(super) struct Shared {
    buffer: RefCell<Box<[u8]>>,
    pipes: Pipes,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { buffer: RefCell::new(vec![0; BUFFER_BYTES].into()), pipes: Pipes::default() }
    }
}

/// Which of the two sockets failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

#[derive(Debug)]
enum State {
    /// Nothing is held.
    Clear,
    /// Read, but not yet taken by the sink: the bytes from the index on.
    Held(Box<[u8]>, usize),
    Spliced(Pipe),
}

#[derive(Debug)]
pub(super) struct Direction {
    state: State,
    /// Bytes that came in long pieces without a shorter one between them.
    n_streamed: usize,
    /// Bytes moved since they were last taken note of.
    n_moved: u64,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self { state: State::Clear, n_streamed: 0, n_moved: 0 }
    }

    /// Bytes that the sink took since the last call.
    pub(super) fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.n_moved)
    }

    /// Moves what can be moved. Ready when the source has ended and everything before its end is written.
    pub(super) fn poll(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        shared: &Shared,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match &mut self.state {
                State::Held(bytes, written) => match write(sink, &bytes[*written..]) {
                    Ok(n) => {
                        self.n_moved += n as u64;
                        *written += n;
                        if *written == bytes.len() {
                            self.state = State::Clear;
                        }
                    }
                    Err(e) if is_passing(&e) => {
                        ready!(sink.poll_write_ready(cx)).map_err(|_| Broken::Sink)?
                    }
                    Err(_) => return Poll::Ready(Err(Broken::Sink)),
                },
                State::Spliced(pipe) if !pipe.is_empty() => {
                    match sink.try_io(Interest::WRITABLE, || pipe.empty(sink.as_fd())) {
                        Ok(n) => self.n_moved += n as u64,
                        Err(e) if is_passing(&e) => {
                            ready!(sink.poll_write_ready(cx)).map_err(|_| Broken::Sink)?;
                        }
                        Err(_) => return Poll::Ready(Err(Broken::Sink)),
                    }
                }
                State::Clear | State::Spliced(_) => {
                    match source.poll_read_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(|_| Broken::Source)?,
                        Poll::Pending => {
                            self.let_go(shared);
                            return Poll::Pending;
                        }
                    }
                    if self.fill(source, sink, shared)? == Filled::End {
                        self.let_go(shared);
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Reads one piece and passes on what the sink takes of it.
    fn fill(&mut self, source: &TcpStream, sink: &TcpStream, shared: &Shared) -> Result<Filled, Broken> {
        if self.n_streamed >= SPLICE_AFTER_BYTES && matches!(self.state, State::Clear) {
            match shared.pipes.take() {
                Ok(pipe) => self.state = State::Spliced(pipe),
                // Copying goes on; asked again after as much as before.
                Err(_) => self.n_streamed = 0,
            }
        }
        let mut buffer = shared.buffer.borrow_mut();
        let got = match &mut self.state {
            State::Spliced(pipe) => source.try_io(Interest::READABLE, || pipe.fill(source.as_fd())),
            _ => read(source, &mut buffer),
        };
        let n = match got {
            Ok(0) => return Ok(Filled::End),
            Ok(n) => n,
            Err(e) if is_passing(&e) => return Ok(Filled::Nothing),
            Err(_) => return Err(Broken::Source),
        };
        self.n_streamed = if n < LONG_PIECE_BYTES { 0 } else { self.n_streamed.saturating_add(n) };
        if matches!(self.state, State::Clear) {
            let written = match write(sink, &buffer[..n]) {
                Ok(written) => written,
                Err(e) if is_passing(&e) => 0,
                Err(_) => return Err(Broken::Sink),
            };
            self.n_moved += written as u64;
            if written < n {
                self.state = State::Held(buffer[written..n].into(), 0);
            }
        }
        Ok(Filled::Some)
    }

    /// Gives the pipe back while there is nothing to move: an idle connection holds none.
    fn let_go(&mut self, shared: &Shared) {
        if let State::Spliced(pipe) = std::mem::replace(&mut self.state, State::Clear) {
            shared.pipes.give_back(pipe);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Filled {
    Some,
    Nothing,
    End,
}

/// Try again, now or when the socket is ready.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Reads once. A piece shorter than the buffer means that the socket is empty, so its readiness is cleared at once
/// instead of by one more call that finds nothing.
fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let n_wanted = buffer.len();
    once(socket, Interest::READABLE, n_wanted, |s| (&*s).read(buffer))
}

/// Writes once; a short write means that the socket is full.
fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    once(socket, Interest::WRITABLE, bytes.len(), |s| (&*s).write(bytes))
}

fn once(
    socket: &TcpStream,
    interest: Interest,
    n_wanted: usize,
    call: impl FnOnce(SockRef<'_>) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut short = None;
    let whole = socket.try_io(interest, || {
        let n = call(SockRef::from(socket))?;
        if (1..n_wanted).contains(&n) {
            short = Some(n);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(whole, Ok)
}
