//! A body on its way from one side of an exchange to the other: read, framed anew, written; never held.
//!
//! A flow reads only when everything before has been written, so a slow reader slows the sender down. It ends a body
//! towards its sink only when the source has ended it: a body that breaks off stays visibly incomplete.

use std::io;
use std::task::{Context, Poll, ready};

use super::Framing;
use super::buffer::{Buffer, OUTPUT_BYTES, Spare};
use super::chunked::{self, BadChunk, Decoder, Piece};
use super::side::Side;
use super::splice::{Pipe, Pipes, WORTH_BYTES};
use crate::wait::Wait;

/// How the sink learns of the body's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// By a length that it was told, or by the end of the connection.
    Plain,
    Chunked,
}

#[derive(Debug)]
enum Source {
    Ended,
    Length(u64),
    /// Boxed, because most flows are moved without one.
    Chunked(Box<Decoder>),
    UntilClose,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FlowError {
    #[error("reading failed: {0}")]
    Read(#[source] io::Error),
    #[error("the body ended early")]
    Cut,
    #[error(transparent)]
    BadChunk(#[from] BadChunk),
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
}

/// What flows of one worker share.
#[derive(Debug, Default)]
pub(crate) struct Means {
    pub(crate) spare: Spare,
    pub(crate) pipes: Pipes,
}

#[derive(Debug)]
pub(crate) struct Flow {
    source: Source,
    coding: Coding,
    /// Begins with the head, which is written together with what there is of the body.
    out: Vec<u8>,
    n_written: usize,
    /// The last chunk's line is in `out`, its trailer perhaps not.
    in_trailer: bool,
    /// Lines after a body that is not chunked for its sink, which may be told them in another way.
    trailer: Vec<u8>,
    /// All that was taken from the source is in `out`.
    is_whole: bool,
    pipe: Option<Box<Pipe>>,
}

impl Flow {
    /// `out` holds the head of the message.
    pub(crate) fn new(framing: Framing, coding: Coding, out: Vec<u8>) -> Self {
        let source = match framing {
            Framing::None | Framing::Length(0) => Source::Ended,
            Framing::Length(length) => Source::Length(length),
            Framing::Chunked => Source::Chunked(Box::default()),
            Framing::UntilClose => Source::UntilClose,
        };
        let trailer = Vec::new();
        Self { source, coding, out, n_written: 0, in_trailer: false, trailer, is_whole: true, pipe: None }
    }

    /// Of a flow that has not begun: how its source is decoded, if it is chunked.
    pub(crate) fn decode_with(&mut self, decoder: impl FnOnce() -> Decoder) {
        if let Source::Chunked(present) = &mut self.source {
            **present = decoder();
        }
    }

    /// The source has said everything.
    pub(crate) fn has_source_ended(&self) -> bool {
        matches!(self.source, Source::Ended)
    }

    /// The sink has all of it.
    pub(crate) fn is_written(&self) -> bool {
        self.has_source_ended() && self.n_written == self.out.len()
    }

    /// Everything that was written is still here: it can be written again from its begin.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Of a flow that is whole: begins again, towards another sink.
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_whole);
        self.n_written = 0;
    }

    /// What is missing must come from the source.
    pub(crate) fn lacks_source(&self, input: &Buffer) -> bool {
        let holds_piped = self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty());
        let holds_plain = self.coding == Coding::Plain && !input.is_empty();
        !self.has_source_ended() && self.n_written == self.out.len() && !holds_piped && !holds_plain
    }

    /// Takes along with the head what has come of the body already.
    pub(crate) fn take_along(&mut self, input: &mut Buffer) -> Result<(), BadChunk> {
        while !self.has_source_ended() && self.pump(input)? {}
        Ok(())
    }

    /// The same of all that the source says at once, as far as it fits.
    pub(crate) fn poll_along(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        wait: &Wait,
        spare: &Spare,
    ) -> Result<(), FlowError> {
        while !self.has_source_ended() {
            let is_all = !self.pump(from.input())?;
            if is_all && (!from.input().is_empty() || self.poll_fill(cx, from, wait, spare)?.is_pending()) {
                break;
            }
        }
        Ok(())
    }

    /// What is to be written and has not been: the whole message, when its source has ended and nothing was written.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.out[self.n_written..]
    }

    /// Lines, each with its CR LF; complete when the source has ended.
    pub(crate) fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    /// Writes the head and what was taken along, which stay here for another attempt; then the rest, which does not.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        wait: &Wait,
        means: &Means,
    ) -> Poll<Result<(), FlowError>> {
        loop {
            while self.n_written < self.out.len() {
                let n = ready!(to.poll_write(cx, &self.out[self.n_written..])).map_err(FlowError::Write)?;
                self.n_written += n;
                wait.touch();
            }
            if self.has_source_ended() {
                return to.poll_flush(cx).map_err(FlowError::Write);
            }
            self.out.clear();
            (self.n_written, self.is_whole) = (0, false);
            if self.coding == Coding::Plain && !matches!(self.source, Source::Chunked(_)) {
                ready!(self.poll_plain(cx, from, to, wait, means))?;
            } else if !self.pump(from.input())? {
                ready!(to.poll_flush(cx)).map_err(FlowError::Write)?;
                ready!(self.poll_fill(cx, from, wait, &means.spare))?;
            }
        }
    }

    /// Bytes that are passed on as they are: no copy of them is made.
    fn poll_plain(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        wait: &Wait,
        means: &Means,
    ) -> Poll<Result<(), FlowError>> {
        let left = match self.source {
            Source::Length(left) => left,
            _ => u64::MAX,
        };
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(from.input().len());
        if there > 0 {
            let n = ready!(to.poll_write(cx, &from.input().filled()[..there])).map_err(FlowError::Write)?;
            from.input().consume(n);
            self.passed(n, wait);
            return Poll::Ready(Ok(()));
        }
        let is_large = matches!(self.source, Source::Length(left) if left >= WORTH_BYTES);
        if self.pipe.is_none() && is_large && from.is_plain() && to.is_plain() {
            from.input().release(&means.spare);
            self.pipe = means.pipes.take().ok();
        }
        let ends = if self.pipe.is_some() { from.plain().zip(to.plain()) } else { None };
        match (&mut self.pipe, ends) {
            (Some(pipe), Some((source, sink))) => {
                if pipe.is_empty() {
                    let n = ready!(pipe.poll_fill(cx, source, left, wait)).map_err(FlowError::Read)?;
                    if n == 0 {
                        return Poll::Ready(Err(FlowError::Cut));
                    }
                    from.count_read(n);
                    wait.touch();
                }
                let n = ready!(pipe.poll_drain(cx, sink)).map_err(FlowError::Write)?;
                to.count_written(n);
                self.passed(n, wait);
                if self.has_source_ended()
                    && let Some(mut pipe) = self.pipe.take()
                {
                    pipe.end(source);
                    means.pipes.put(*pipe);
                }
                Poll::Ready(Ok(()))
            }
            _ => {
                ready!(to.poll_flush(cx)).map_err(FlowError::Write)?;
                self.poll_fill(cx, from, wait, &means.spare)
            }
        }
    }

    fn passed(&mut self, n: usize, wait: &Wait) {
        wait.touch();
        if let Source::Length(left) = &mut self.source {
            *left -= n as u64;
            if *left == 0 {
                self.source = Source::Ended;
            }
        }
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        wait: &Wait,
        spare: &Spare,
    ) -> Poll<Result<(), FlowError>> {
        let n = ready!(from.poll_fill(cx, spare)).map_err(FlowError::Read)?;
        if n > 0 {
            wait.touch();
        } else if matches!(self.source, Source::UntilClose) {
            self.source = Source::Ended;
            self.end_chunks(from.trailer());
        } else {
            return Poll::Ready(Err(FlowError::Cut));
        }
        Poll::Ready(Ok(()))
    }

    /// Moves a piece from the input into `out`. False: nothing is there, or nothing fits.
    fn pump(&mut self, input: &mut Buffer) -> Result<bool, BadChunk> {
        let room = OUTPUT_BYTES.saturating_sub(self.out.len() + chunked::OVERHEAD);
        let n = input.len().min(room);
        if n == 0 {
            return Ok(false);
        }
        match &mut self.source {
            Source::Ended => return Ok(false),
            Source::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(n);
                self.out.extend_from_slice(&input.filled()[..n]);
                input.consume(n);
                *left -= n as u64;
                if *left == 0 {
                    self.source = Source::Ended;
                }
            }
            Source::UntilClose => self.copy(input, n),
            Source::Chunked(decoder) => match decoder.next(&input.filled()[..n])? {
                Piece::Partial => return Ok(false),
                Piece::Framing(n) => input.consume(n),
                Piece::Data(n) => self.copy(input, n),
                Piece::TrailerLine(n) => {
                    let line = &input.filled()[..n];
                    if self.coding == Coding::Chunked {
                        self.last_chunk();
                        self.out.extend_from_slice(line);
                    } else {
                        self.trailer.extend_from_slice(line);
                    }
                    input.consume(n);
                }
                Piece::End(n) => {
                    input.consume(n);
                    self.source = Source::Ended;
                    self.end_chunks(b"");
                }
            },
        }
        Ok(true)
    }

    fn copy(&mut self, input: &mut Buffer, n: usize) {
        let bytes = &input.filled()[..n];
        if self.coding == Coding::Chunked {
            chunked::open(&mut self.out, n);
            self.out.extend_from_slice(bytes);
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.out.extend_from_slice(bytes);
        }
        input.consume(n);
    }

    fn last_chunk(&mut self) {
        if !std::mem::replace(&mut self.in_trailer, true) {
            self.out.extend_from_slice(b"0\r\n");
        }
    }

    /// `trailer`: lines that are not in `out` yet.
    fn end_chunks(&mut self, trailer: &[u8]) {
        if self.coding == Coding::Chunked {
            self.last_chunk();
            self.out.extend_from_slice(trailer);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// Gives memory back for the next.
    pub(crate) fn release(&mut self, means: &Means) {
        means.spare.put_output(std::mem::take(&mut self.out));
        if let Some(pipe) = self.pipe.take() {
            means.pipes.put(*pipe);
        }
    }
}
