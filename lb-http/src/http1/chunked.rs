//! Decodes the chunked coding, as strictly as it is defined (RFC 9112 section 7.1), and writes it anew.
//!
//! Every line ends with CR LF, a size has hexadecimal digits only and no needless zeros, extensions are read and
//! forgotten within a limit, and of a trailer only fields go on that frame, route and authenticate nothing.

use memchr::memchr;

use super::fields::Field;
use super::grammar;

/// All extensions of a message together, unless a [`Decoder`] is told another limit.
pub(crate) const MOST_EXTENSION_BYTES: usize = 16 * 1024;
const MOST_TRAILER_BYTES: usize = 8 * 1024;
/// 2^60 bytes and more are nobody's chunk.
const MOST_SIZE_DIGITS: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    #[error("the chunked coding is malformed")]
    Malformed,
    #[error("too many bytes of chunk extensions")]
    LongExtension,
    #[error("the trailer is too long")]
    LongTrailer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many digits of a size have been read.
    Size {
        n_digits: u8,
    },
    Extension,
    QuotedExtension,
    /// After a backslash within quotes.
    EscapedExtension,
    /// The line feed after a size or its extensions.
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    Trailer,
    End,
}

/// How much of the input has been understood, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes that are not the body's: to be dropped.
    Framing(usize),
    /// So many bytes of the body.
    Data(usize),
    /// A whole line of the trailer with its CR LF, that may be forwarded.
    TrailerLine(usize),
    /// These bytes and the body have ended.
    End(usize),
    /// Nothing more can be said before more comes.
    Partial,
}

#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    /// Of the present chunk, still to come.
    left: u64,
    n_extension_bytes: usize,
    most_extension_bytes: usize,
    n_trailer_bytes: usize,
    hop_names: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MOST_EXTENSION_BYTES, Vec::new())
    }
}

impl Decoder {
    /// So many bytes of extensions may come in all. `hop_names` is what the head's Connection lines say: lines of the
    /// trailer that they name do not go on (RFC 9110 section 7.6.1).
    pub fn new(most_extension_bytes: usize, hop_names: Vec<u8>) -> Self {
        let state = State::Size { n_digits: 0 };
        Self { state, left: 0, n_extension_bytes: 0, most_extension_bytes, n_trailer_bytes: 0, hop_names }
    }

    /// Looks at the beginning of `input`, whose earlier bytes have been taken away as the last piece said.
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, BadChunk> {
        match self.state {
            State::Data if input.is_empty() => Ok(Piece::Partial),
            State::Data => {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                Ok(Piece::Data(n))
            }
            State::Trailer => self.trailer_line(input),
            State::End => Ok(Piece::End(0)),
            _ => self.framing(input),
        }
    }

    fn framing(&mut self, input: &[u8]) -> Result<Piece, BadChunk> {
        for (i, byte) in input.iter().enumerate() {
            self.state = self.after(*byte)?;
            if matches!(self.state, State::Data | State::Trailer) {
                return Ok(Piece::Framing(i + 1));
            }
        }
        Ok(if input.is_empty() { Piece::Partial } else { Piece::Framing(input.len()) })
    }

    fn after(&mut self, byte: u8) -> Result<State, BadChunk> {
        let is_extension =
            matches!(self.state, State::Extension | State::QuotedExtension | State::EscapedExtension);
        if is_extension {
            self.n_extension_bytes += 1;
            if self.n_extension_bytes > self.most_extension_bytes {
                return Err(BadChunk::LongExtension);
            }
        }
        let is_text = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
        match (self.state, byte) {
            (State::Size { n_digits }, _) if byte.is_ascii_hexdigit() => {
                if usize::from(n_digits) == MOST_SIZE_DIGITS {
                    return Err(BadChunk::Malformed);
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Ok(State::Size { n_digits: n_digits + 1 })
            }
            (State::Size { n_digits: 1.. }, b';') => Ok(State::Extension),
            (State::Size { n_digits: 1.. } | State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Extension, b'"') => Ok(State::QuotedExtension),
            (State::Extension, _) if is_text => Ok(State::Extension),
            (State::QuotedExtension, b'"') => Ok(State::Extension),
            (State::QuotedExtension, b'\\') => Ok(State::EscapedExtension),
            (State::QuotedExtension | State::EscapedExtension, _) if is_text => Ok(State::QuotedExtension),
            (State::SizeEnd, b'\n') if self.left == 0 => Ok(State::Trailer),
            (State::SizeEnd, b'\n') => Ok(State::Data),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { n_digits: 0 }),
            _ => Err(BadChunk::Malformed),
        }
    }

    fn trailer_line(&mut self, input: &[u8]) -> Result<Piece, BadChunk> {
        let Some(end) = memchr(b'\n', input) else {
            // The whole line must be seen at once, and it may be long.
            self.fits_trailer(input.len())?;
            // What is no line's beginning is told from the end of the body at once.
            let is_bad = matches!(input, [b'\r', other, ..] if *other != b'\n');
            return if is_bad { Err(BadChunk::Malformed) } else { Ok(Piece::Partial) };
        };
        let n = end + 1;
        self.fits_trailer(n)?;
        self.n_trailer_bytes += n;
        if end == 0 || input[end - 1] != b'\r' {
            return Err(BadChunk::Malformed);
        }
        if end == 1 {
            self.state = State::End;
            return Ok(Piece::End(n));
        }
        let (field, _) = Field::parse(input, 0).ok_or(BadChunk::Malformed)?;
        let goes_on = field.name.may_follow_body() && !self.names(field.name_in(input));
        Ok(if goes_on { Piece::TrailerLine(n) } else { Piece::Framing(n) })
    }

    fn fits_trailer(&self, n_bytes: usize) -> Result<(), BadChunk> {
        if self.n_trailer_bytes + n_bytes > MOST_TRAILER_BYTES { Err(BadChunk::LongTrailer) } else { Ok(()) }
    }

    fn names(&self, field: &[u8]) -> bool {
        grammar::elements(&self.hop_names).any(|name| name.eq_ignore_ascii_case(field))
    }
}

/// Room that [`open`] wants beside the data.
pub(crate) const OVERHEAD: usize = 16 + 2 + 2;

/// Begins a chunk of `n` bytes, not 0.
pub(crate) fn open(out: &mut Vec<u8>, n: usize) {
    let n_digits = (usize::BITS - n.leading_zeros()).div_ceil(4);
    for i in (0..n_digits).rev() {
        out.push(b"0123456789abcdef"[n >> (4 * i) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
