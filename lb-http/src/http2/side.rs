//! A stream as one side of an exchange: frames of DATA read and written under HTTP/2's flow control.
//!
//! The client may send more only when what it sent has been taken, and gets no more than it has room for.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};
use tokio::net::TcpStream;

use super::head;
use crate::http1::buffer::{Buffer, Spare};
use crate::http1::side::{Side, some};
use crate::stats::{Series, Shard};

pub(super) struct StreamSide {
    body: RecvStream,
    /// Of the last frame, what the input had no room for.
    rest: Bytes,
    pub(super) input: Buffer,
    trailer: Vec<u8>,
    out: Out,
    frontend: Arc<Series>,
    worker: usize,
    /// Bytes of heads count as they would in HTTP/1.1.
    pub(super) n_written: Cell<u64>,
}

enum Out {
    Head(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
}

/// Whether more of a message follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Some,
    Last,
}

impl StreamSide {
    pub(super) fn new(
        body: RecvStream,
        respond: SendResponse<Bytes>,
        frontend: Arc<Series>,
        worker: usize,
    ) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            input: Buffer::default(),
            trailer: Vec::new(),
            out: Out::Head(respond),
            frontend,
            worker,
            n_written: Cell::new(0),
        }
    }

    pub(super) fn shard(&self) -> &Shard {
        self.frontend.of_worker(self.worker)
    }

    /// The client has said everything, and all of it was looked at.
    pub(super) fn has_ended(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// Ready when the client has reset the stream, or is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.out {
            Out::Head(respond) => respond.poll_reset(cx).map(drop),
            Out::Body(stream) => stream.poll_reset(cx).map(drop),
        }
    }

    pub(super) fn send_interim(&mut self, response: Response<()>) -> Result<(), h2::Error> {
        match &mut self.out {
            Out::Head(respond) => respond.send_informational(response),
            Out::Body(_) => Ok(()),
        }
    }

    /// Once. `n_bytes` is how long it is in HTTP/1.1.
    pub(super) fn send_head(
        &mut self,
        response: Response<()>,
        n_bytes: usize,
        part: Part,
    ) -> Result<(), h2::Error> {
        if let Out::Head(respond) = &mut self.out {
            self.out = Out::Body(respond.send_response(response, part == Part::Last)?);
            self.count_written(n_bytes);
        }
        Ok(())
    }

    /// Sends as much as the client has room for, and waits while that is nothing.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        part: Part,
    ) -> Poll<io::Result<usize>> {
        let Out::Body(stream) = &mut self.out else { return Poll::Ready(Err(gone())) };
        if stream.capacity() == 0 {
            stream.reserve_capacity(bytes.len());
        }
        while stream.capacity() == 0 {
            ready!(stream.poll_capacity(cx)).ok_or_else(gone)?.map_err(io::Error::other)?;
        }
        let n = bytes.len().min(stream.capacity());
        let is_end = part == Part::Last && n == bytes.len();
        stream.send_data(Bytes::copy_from_slice(&bytes[..n]), is_end).map_err(io::Error::other)?;
        self.count_written(n);
        Poll::Ready(some(n))
    }

    /// Ends a message whose last part has not been sent; `trailer` are lines, maybe none.
    pub(super) fn end(&mut self, trailer: &[u8]) -> Result<(), h2::Error> {
        let Out::Body(stream) = &mut self.out else { return Ok(()) };
        match head::fields(&Bytes::copy_from_slice(trailer), 0) {
            Ok((fields, _)) if !fields.is_empty() => stream.send_trailers(fields),
            _ => stream.send_data(Bytes::new(), true),
        }
    }

    /// What was sent is not the whole message.
    pub(super) fn cut(&mut self) {
        match &mut self.out {
            Out::Head(respond) => respond.send_reset(Reason::INTERNAL_ERROR),
            Out::Body(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.body.poll_data(cx)) {
                Some(frame) => self.rest = frame.map_err(io::Error::other)?,
                None => {
                    let fields: Option<HeaderMap> =
                        ready!(self.body.poll_trailers(cx)).map_err(io::Error::other)?;
                    if let Some(fields) = fields {
                        self.trailer.clear();
                        head::write_trailer(&mut self.trailer, &fields);
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Drops what comes next of the body. 0: nothing more will.
    pub(super) fn poll_drop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.poll_frame(cx))?;
        let n = std::mem::take(&mut self.rest).len();
        self.taken(n)?;
        Poll::Ready(Ok(n))
    }

    /// The client may send so many bytes more.
    fn taken(&mut self, n: usize) -> io::Result<()> {
        self.count_read(n);
        if n == 0 {
            return Ok(());
        }
        self.body.flow_control().release_capacity(n).map_err(io::Error::other)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Side for StreamSide {
    fn input(&mut self) -> &mut Buffer {
        &mut self.input
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, spare: &Spare) -> Poll<io::Result<usize>> {
        ready!(self.poll_frame(cx))?;
        if self.rest.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = self.input.take(&self.rest, spare);
        self.rest.advance(n);
        self.taken(n)?;
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes, Part::Some)
    }

    /// The connection's task does.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end(b"").map_err(io::Error::other))
    }

    fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    fn count_read(&self, n: usize) {
        self.shard().bytes_in.add(n as u64);
    }

    fn count_written(&self, n: usize) {
        self.n_written.set(self.n_written.get() + n as u64);
        self.shard().bytes_out.add(n as u64);
    }
}
