//! Finds a request's head in what has come.

use crate::http1::buffer::Buffer;
use crate::http1::grammar;
use crate::http1::refusal::Refusal;
use crate::http1::request;
use crate::http1::scan::{HeadLimits, Scan, Scanned};

/// RFC 9112 section 2.2 wants one to be ignored; more than a few are no accident.
const MOST_EMPTY_LINES: u32 = 4;

#[derive(Default)]
pub(super) struct HeadReader {
    scan: Scan,
    n_empty_lines: u32,
    /// Its length, while it has not been looked at.
    first_line: Option<usize>,
}

impl HeadReader {
    pub(super) fn look(&mut self, input: &mut Buffer, limits: &HeadLimits) -> Result<Option<usize>, Refusal> {
        while self.scan.is_new() {
            match input.filled() {
                [b'\r', b'\n', ..] if self.n_empty_lines < MOST_EMPTY_LINES => {
                    self.n_empty_lines += 1;
                    input.consume(2);
                }
                [] | [b'\r'] => return Ok(None),
                [first, ..] if grammar::is_token_byte(*first) => break,
                _ => return Err(Refusal::RequestLine),
            }
        }
        loop {
            match self.scan.advance(input.filled(), limits)? {
                Scanned::FirstLine(n) => self.first_line = Some(n),
                Scanned::Head(n) => return Ok(Some(n)),
                Scanned::Partial => {
                    if let Some(n) = self.first_line.take() {
                        request::check_first_line(&input.filled()[..n])?;
                    }
                    return Ok(None);
                }
            }
        }
    }
}
