//! Finds the end of a head as its bytes arrive, within limits, without looking at a byte twice.
//!
//! It knows lines, not what they say: a head is parsed once it is whole. A first line that can be no request is
//! refused by whoever scans as soon as it is there.

use super::grammar;
use super::refusal::Refusal;
use super::response::BadResponse;

/// How much a head may hold.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Of the first line.
    pub line_bytes: usize,
    /// Of all lines after it together.
    pub field_bytes: usize,
    pub n_fields: usize,
}

impl HeadLimits {
    /// A head that is not whole within this many bytes breaks one of the limits.
    pub fn head_bytes(&self) -> usize {
        self.line_bytes + self.field_bytes + 4
    }

    /// For a head that was not scanned.
    pub fn admit(&self, extent: &Extent) -> bool {
        extent.line_bytes <= self.line_bytes
            && extent.head_bytes - extent.line_bytes <= self.field_bytes + 4
            && extent.n_fields <= self.n_fields
    }
}

/// What a head that has been parsed holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Of the first line, without its end.
    pub line_bytes: usize,
    /// Of all of it, with the empty line.
    pub head_bytes: usize,
    pub n_fields: usize,
}

/// How far a head has been looked through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Bytes that have been searched for the end of a line.
    searched: u32,
    /// Where the line begins that is not whole yet.
    line_start: u32,
    /// Where the line after the first begins; 0: the first is not whole.
    second_line: u32,
    n_lines: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    Partial,
    /// The first line is whole and has so many bytes, with its end; said once.
    FirstLine(usize),
    /// The head is whole and has so many bytes, with the empty line.
    Head(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// A line feed without one carriage return before it.
    LineEnd,
    LongLine,
    LongFields,
    ManyFields,
}

impl From<ScanError> for Refusal {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::LineEnd => Self::LineEnd,
            ScanError::LongLine => Self::LongTarget,
            ScanError::LongFields => Self::LongHead,
            ScanError::ManyFields => Self::ManyFields,
        }
    }
}

impl From<ScanError> for BadResponse {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::LineEnd => Self::LineEnd,
            ScanError::LongLine | ScanError::LongFields | ScanError::ManyFields => Self::TooLong,
        }
    }
}

impl Scan {
    /// Nothing has been looked through.
    pub(crate) fn is_new(&self) -> bool {
        self.searched == 0
    }

    /// Goes on over `bytes`, which begin at the head's first byte and are at least those of the last call.
    pub fn advance(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Scanned, ScanError> {
        while let Some(at) = grammar::find(&bytes[self.searched as usize..], b'\n') {
            let end = self.searched as usize + at + 1;
            let line = &bytes[self.line_start as usize..end];
            if !line.ends_with(b"\r\n") || line.ends_with(b"\r\r\n") {
                return Err(ScanError::LineEnd);
            }
            self.searched = end as u32;
            self.line_start = end as u32;
            if self.second_line == 0 {
                if line.len() - 2 > limits.line_bytes {
                    return Err(ScanError::LongLine);
                }
                self.second_line = end as u32;
                return Ok(Scanned::FirstLine(end));
            }
            self.check_fields(end, limits)?;
            if line.len() == 2 {
                return Ok(Scanned::Head(end));
            }
            self.n_lines += 1;
            if self.n_lines as usize > limits.n_fields {
                return Err(ScanError::ManyFields);
            }
        }
        self.searched = bytes.len() as u32;
        if self.second_line > 0 {
            self.check_fields(bytes.len(), limits)?;
        } else if bytes.len() > limits.line_bytes + 2 {
            return Err(ScanError::LongLine);
        }
        Ok(Scanned::Partial)
    }

    fn check_fields(&self, end: usize, limits: &HeadLimits) -> Result<(), ScanError> {
        let n_bytes = end - self.second_line as usize;
        if n_bytes > limits.field_bytes + 2 { Err(ScanError::LongFields) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { line_bytes: 20, field_bytes: 20, n_fields: 3 };

    fn scan(bytes: &[u8]) -> Result<Option<usize>, ScanError> {
        let mut scan = Scan::default();
        loop {
            match scan.advance(bytes, &LIMITS)? {
                Scanned::FirstLine(_) => {}
                Scanned::Head(n) => return Ok(Some(n)),
                Scanned::Partial => return Ok(None),
            }
        }
    }

    #[test]
    fn heads_end_where_they_end_however_they_arrive() {
        for (head, expect) in [
            ("GET / HTTP/1.1\r\n\r\nrest", Ok(Some(18))),
            ("GET / HTTP/1.1\r\na: b\r\n\r\n", Ok(Some(24))),
            ("GET / HTTP/1.1\r\na: b\r\n\r", Ok(None)),
            ("GET / HTTP/1.1\n\r\n", Err(ScanError::LineEnd)),
            ("GET / HTTP/1.1\r\na: b\r\n\r\r\n", Err(ScanError::LineEnd)),
            ("GET / HTTP/1.1\r\na: b\n\r\n", Err(ScanError::LineEnd)),
            ("GET / HTTP/1.1\r\na: b\r\n\n", Err(ScanError::LineEnd)),
            ("GET /9012345 HTTP/1.1\r\n\r\n", Err(ScanError::LongLine)),
            ("GET /901234 HTTP/1.1\r\n\r\n", Ok(Some(24))),
            ("GET /90123456789012345", Ok(None)),
            ("GET /901234567890123456", Err(ScanError::LongLine)),
            ("GET / HTTP/1.1\r\na: 3456789012345678901", Ok(None)),
            ("GET / HTTP/1.1\r\na: 34567890123456789012", Err(ScanError::LongFields)),
            ("GET / HTTP/1.1\r\na: 345678901234567\r\n\r\n", Ok(Some(38))),
            ("GET / HTTP/1.1\r\na: 3456789012345678\r\n\r\n", Err(ScanError::LongFields)),
            ("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\n\r\n", Ok(Some(30))),
            ("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\n\r\n", Err(ScanError::ManyFields)),
        ] {
            let bytes = head.as_bytes();
            assert_eq!(scan(bytes), expect, "{head:?}");
            let mut byte_by_byte = Scan::default();
            let mut n = 0;
            let found = loop {
                match byte_by_byte.advance(&bytes[..n], &LIMITS) {
                    Ok(Scanned::FirstLine(_)) => {}
                    Ok(Scanned::Partial) if n < bytes.len() => n += 1,
                    Ok(Scanned::Partial) => break Ok(None),
                    Ok(Scanned::Head(n)) => break Ok(Some(n)),
                    Err(error) => break Err(error),
                }
            };
            assert_eq!(found, expect, "{head:?} byte by byte");
        }
    }
}
