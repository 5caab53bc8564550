//! Bytes that have been read and not yet used, and where the memory for them comes from.
//!
//! A connection has memory only while it has bytes: an idle one gives it back to its worker's [`Spare`].

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::socket;

/// Of a buffer; enough for nearly every head, and for a piece of a body that is worth a system call.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// Of what is to be written: what one read brings, and a head before it, so that they go in one call.
pub(crate) const OUTPUT_BYTES: usize = BUFFER_BYTES + 4096;
/// What a worker keeps for the next: more were only wanted in a burst.
const MOST_SPARE: usize = 64;
/// A head that is still incomplete keeps its bytes in memory of its own size, when it is at most this long.
const SMALL_BYTES: usize = 1024;

/// Memory of one worker that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    inputs: RefCell<Vec<Box<[u8]>>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

impl Spare {
    fn input(&self) -> Box<[u8]> {
        self.inputs.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into())
    }

    fn put_input(&self, memory: Box<[u8]>) {
        let mut inputs = self.inputs.borrow_mut();
        if memory.len() == BUFFER_BYTES && inputs.len() < MOST_SPARE {
            inputs.push(memory);
        }
    }

    /// Empty, with room for [`OUTPUT_BYTES`].
    pub(crate) fn output(&self) -> Vec<u8> {
        self.outputs.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(OUTPUT_BYTES))
    }

    pub(crate) fn put_output(&self, mut memory: Vec<u8>) {
        let mut outputs = self.outputs.borrow_mut();
        let is_usual = (OUTPUT_BYTES..=4 * OUTPUT_BYTES).contains(&memory.capacity());
        if is_usual && outputs.len() < MOST_SPARE {
            memory.clear();
            outputs.push(memory);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Empty when there are no bytes to hold.
    memory: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last read took all that there was room for: there is more, perhaps without end.
    is_flooded: bool,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. 0: the other side has ended, or there is no room (see [`Buffer::is_full`]).
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        spare: &Spare,
    ) -> Poll<io::Result<usize>> {
        self.make_room(spare);
        let mut room = ReadBuf::new(&mut self.memory[self.end..]);
        let polled = Pin::new(stream).poll_read(cx, &mut room);
        let n = room.filled().len();
        self.end += n;
        if n == 0 {
            self.shrink(spare);
        }
        polled.map_ok(|()| n)
    }

    /// The same of a socket that nobody watches. `None`: there is nothing to read.
    pub(crate) fn receive(&mut self, fd: RawFd, spare: &Spare) -> Option<io::Result<usize>> {
        self.make_room(spare);
        let received = socket::receive_unwatched(fd, &mut self.memory[self.end..]);
        match received {
            Some(Ok(n @ 1..)) => self.end += n,
            _ => self.shrink(spare),
        }
        received
    }

    /// The same of a socket as it is, which takes memory only when there is something to read.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        socket: &TcpStream,
        spare: &Spare,
    ) -> Poll<io::Result<usize>> {
        // A task is woken because there is something, so it is tried before it is waited for. Of what floods it the
        // runtime must be asked, which sees to it that others have their turn.
        let mut is_asked = std::mem::take(&mut self.is_flooded);
        loop {
            if is_asked {
                match socket.poll_read_ready(cx) {
                    Poll::Ready(readiness) => readiness?,
                    Poll::Pending => {
                        self.shrink(spare);
                        return Poll::Pending;
                    }
                }
            }
            let received = socket::receive(socket, || {
                self.make_room(spare);
                &mut self.memory[self.end..]
            });
            match received {
                Ok(n @ 1..) => {
                    self.end += n;
                    self.is_flooded = self.end == self.memory.len();
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => is_asked = true,
                ended => {
                    self.shrink(spare);
                    return Poll::Ready(ended);
                }
            }
        }
    }

    /// As much as fits of bytes that were read elsewhere.
    pub(crate) fn take(&mut self, bytes: &[u8], spare: &Spare) -> usize {
        self.make_room(spare);
        let n = bytes.len().min(self.memory.len() - self.end);
        self.memory[self.end..self.end + n].copy_from_slice(&bytes[..n]);
        self.end += n;
        n
    }

    /// Nothing more fits; [`Buffer::grow`] or consume.
    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.memory.len() && !self.memory.is_empty()
    }

    /// Doubles, up to `most` bytes in all.
    pub(crate) fn grow(&mut self, most: usize, spare: &Spare) {
        let n = (self.memory.len() * 2).clamp(BUFFER_BYTES, most.max(BUFFER_BYTES));
        self.move_to(vec![0; n].into(), spare);
    }

    fn make_room(&mut self, spare: &Spare) {
        if self.end < self.memory.len() {
            return;
        }
        if self.memory.is_empty() {
            self.memory = spare.input();
        } else if self.memory.len() < BUFFER_BYTES {
            let memory = spare.input();
            self.move_to(memory, spare);
        } else if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Gives memory back that is not needed while nothing comes.
    fn shrink(&mut self, spare: &Spare) {
        if self.memory.is_empty() {
            return;
        }
        if self.is_empty() {
            spare.put_input(std::mem::take(&mut self.memory));
        } else if self.len() <= SMALL_BYTES && self.memory.len() >= BUFFER_BYTES {
            self.move_to(self.filled().into(), spare);
        }
    }

    fn move_to(&mut self, mut memory: Box<[u8]>, spare: &Spare) {
        let n = self.len();
        memory[..n].copy_from_slice(self.filled());
        spare.put_input(std::mem::replace(&mut self.memory, memory));
        (self.start, self.end) = (0, n);
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, spare: &Spare) {
        (self.start, self.end) = (0, 0);
        spare.put_input(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out so many bytes at most in one read, then nothing for now.
    struct Source<'a>(&'a [u8]);

    impl AsyncRead for Source<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            room: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let n = self.0.len().min(room.remaining());
            if n == 0 {
                return Poll::Pending;
            }
            let (now, later) = self.0.split_at(n);
            room.put_slice(now);
            self.0 = later;
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn memory_is_held_only_for_bytes() {
        let (spare, mut buffer) = (Spare::default(), Buffer::default());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut fill =
            |buffer: &mut Buffer, bytes: &[u8]| buffer.poll_fill(&mut cx, &mut Source(bytes), &spare);
        assert!(fill(&mut buffer, b"").is_pending());
        assert_eq!((buffer.memory.len(), spare.inputs.borrow().len()), (0, 1), "nothing came");
        assert!(fill(&mut buffer, b"begin").is_ready());
        assert!(fill(&mut buffer, b"").is_pending());
        assert_eq!((buffer.memory.len(), buffer.filled()), (5, &b"begin"[..]), "a slow one");
        assert!(fill(&mut buffer, b" end").is_ready());
        assert_eq!((buffer.memory.len(), buffer.filled()), (BUFFER_BYTES, &b"begin end"[..]));
        buffer.consume(6);
        let many = vec![b'x'; BUFFER_BYTES];
        assert!(fill(&mut buffer, &many).is_ready());
        assert!(fill(&mut buffer, &many).is_ready(), "the place of what was used is used again");
        assert!(buffer.is_full() && buffer.filled().starts_with(b"endxxx"));
        buffer.grow(3 * BUFFER_BYTES, &spare);
        assert_eq!((buffer.memory.len(), buffer.len()), (2 * BUFFER_BYTES, BUFFER_BYTES));
        buffer.grow(3 * BUFFER_BYTES, &spare);
        assert_eq!(buffer.memory.len(), 3 * BUFFER_BYTES);
    }
}
