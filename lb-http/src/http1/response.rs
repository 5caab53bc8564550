//! A response head, from bytes to what may be passed on: a status, one framing; or an error that becomes a 502.
//!
//! As strict as for requests, because what an endpoint says next on the connection may be for another client (RFC 9112
//! sections 4 to 6). Statuses beyond 599 are no statuses (RFC 9110 section 15).

use super::Framing;
use super::fields::{Field, Name, Seen};
use super::grammar;
use super::request::{MOST_OPTIONS, Method, Options, Persistence, Version};
use super::scan::Extent;
use crate::reason::reasons;

reasons! {
    BadResponse
    StatusLine = "status-line", "the status line is malformed";
    Field = "field", "a header line is malformed";
    LineEnd = "line-end", "a line does not end with CR LF";
    TooLong = "head-length", "the head is too long";
    Framing = "framing", "its body is framed twice or in a way that is not known";
    Switch = "switch", "it switches protocols unasked";
    ManyInterim = "interim-count", "too many interim responses";
    Chunk = "chunk", "a chunk of its body is malformed";
}

/// A response that may be passed on. Offsets of `fields` are into the head's bytes.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    pub framing: Framing,
    /// Whether the endpoint takes another request on its connection.
    pub persistence: Persistence,
    /// Of the whole head, with its empty line.
    pub head_bytes: usize,
    pub fields: Vec<Field>,
    seen: Seen,
    /// Where the first line ends, without its CR LF.
    line_end: usize,
    is_11: bool,
    switches_to_websocket: bool,
    names_fields: bool,
}

impl Response {
    /// `bytes` begin with a whole head; the empty line at its end is looked for. `method` is the request's. `fields` is
    /// used again.
    pub fn parse(bytes: &[u8], method: Method, mut fields: Vec<Field>) -> Result<Self, BadResponse> {
        let line_end = grammar::value_len(bytes);
        if !bytes[line_end..].starts_with(b"\r\n") {
            return Err(BadResponse::StatusLine);
        }
        let (version, status) = status_line(&bytes[..line_end])?;
        let mut found = Found::default();
        fields.clear();
        let mut start = line_end + 2;
        while !bytes[start..].starts_with(b"\r\n") {
            let (field, next) = Field::parse(bytes, start).ok_or(BadResponse::Field)?;
            found.add(bytes, &field)?;
            fields.push(field);
            start = next;
        }
        let framing = found.framing(version, status, method)?;
        let is_11 = version == Version::Http11;
        let keeps = match framing {
            Framing::UntilClose => false,
            _ => !found.close && (is_11 || found.keep_alive),
        };
        Ok(Self {
            status,
            framing,
            persistence: if keeps { Persistence::Keep } else { Persistence::Close },
            head_bytes: start + 2,
            fields,
            seen: found.seen,
            line_end,
            is_11,
            switches_to_websocket: status == 101 && is_11 && found.upgrade && found.is_websocket,
            names_fields: found.names_fields,
        })
    }

    /// 1xx: the response proper follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    pub(crate) fn extent(&self) -> Extent {
        let (line_bytes, head_bytes) = (self.line_end, self.head_bytes);
        Extent { line_bytes, head_bytes, n_fields: self.fields.len() }
    }

    pub fn switches_to_websocket(&self) -> bool {
        self.switches_to_websocket
    }

    pub fn has(&self, name: Name) -> bool {
        self.seen.has(name)
    }

    /// The values of all lines of that name in the response's own `head`.
    pub fn values<'b>(&'b self, head: &'b [u8], name: Name) -> impl Iterator<Item = &'b [u8]> {
        self.fields.iter().filter(move |field| field.name == name).map(move |field| field.value_in(head))
    }

    /// How long the first line is, without its end, when a client gets it as it came.
    pub(super) fn plain_line(&self) -> Option<usize> {
        (self.is_11 && self.line_end > b"HTTP/1.1 200".len()).then_some(self.line_end)
    }

    /// Status and reason as they came.
    pub(super) fn status_and_reason<'b>(&self, head: &'b [u8]) -> &'b [u8] {
        &head[b"HTTP/1.1 ".len()..self.line_end]
    }

    pub(super) fn options<'b>(&'b self, head: &'b [u8]) -> Option<Options<'b>> {
        self.names_fields.then_some(Options { head, fields: &self.fields })
    }

    /// The names in the Connection lines of its `head`.
    pub(crate) fn hop_names(&self, head: &[u8]) -> Vec<u8> {
        self.options(head).map_or_else(Vec::new, |options| options.names())
    }
}

/// `line` has no control characters.
fn status_line(line: &[u8]) -> Result<(Version, u16), BadResponse> {
    let (version, rest) = line.split_at_checked(b"HTTP/1.1".len()).ok_or(BadResponse::StatusLine)?;
    let version = super::request::version(version).map_err(|_| BadResponse::StatusLine)?;
    // Servers exist that leave out the space before an empty reason.
    let status = match rest {
        [b' ', a, b, c] | [b' ', a, b, c, b' ', ..] => [*a, *b, *c],
        _ => return Err(BadResponse::StatusLine),
    };
    let number = grammar::length(&status).map(|n| n as u16).filter(|n| (100..600).contains(n));
    Ok((version, number.ok_or(BadResponse::StatusLine)?))
}

#[derive(Default)]
struct Found {
    seen: Seen,
    length: Option<u64>,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    is_websocket: bool,
    names_fields: bool,
    n_options: usize,
}

impl Found {
    fn add(&mut self, head: &[u8], field: &Field) -> Result<(), BadResponse> {
        let is_first = !self.seen.has(field.name);
        self.seen.add(field.name);
        let value = field.value_in(head);
        match field.name {
            Name::ContentLength => {
                let length = grammar::length(value).ok_or(BadResponse::Framing)?;
                // The same number twice is one number (RFC 9110 section 8.6).
                if self.length.replace(length).is_some_and(|before| before != length) {
                    return Err(BadResponse::Framing);
                }
            }
            Name::TransferEncoding if !is_first || !value.eq_ignore_ascii_case(b"chunked") => {
                return Err(BadResponse::Framing);
            }
            Name::Upgrade => self.is_websocket = is_first && value.eq_ignore_ascii_case(b"websocket"),
            Name::Connection => {
                for option in grammar::elements(value) {
                    self.n_options += 1;
                    if option.eq_ignore_ascii_case(b"keep-alive") {
                        self.keep_alive = true;
                    } else if option.eq_ignore_ascii_case(b"close") {
                        self.close = true;
                    } else if option.eq_ignore_ascii_case(b"upgrade") {
                        self.upgrade = true;
                    } else if !option.is_empty() {
                        self.names_fields = true;
                    }
                }
                if self.n_options > MOST_OPTIONS {
                    return Err(BadResponse::Field);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, version: Version, status: u16, method: Method) -> Result<Framing, BadResponse> {
        let is_chunked = self.seen.has(Name::TransferEncoding);
        if is_chunked && (self.length.is_some() || version == Version::Http10) {
            return Err(BadResponse::Framing);
        }
        Ok(match self.length {
            _ if method == Method::Head || status < 200 || status == 204 || status == 304 => Framing::None,
            _ if is_chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str, method: Method) -> Result<Response, BadResponse> {
        Response::parse(head.as_bytes(), method, Vec::new())
    }

    #[test]
    fn status_lines() {
        for (line, expect) in [
            ("HTTP/1.1 200 OK", Ok(200)),
            ("HTTP/1.1 200 ", Ok(200)),
            ("HTTP/1.1 200", Ok(200)),
            ("HTTP/1.0 599 \u{e9}", Ok(599)),
            ("HTTP/1.1 099 x", Err(BadResponse::StatusLine)),
            ("HTTP/1.1 600 x", Err(BadResponse::StatusLine)),
            ("HTTP/1.1 2000 x", Err(BadResponse::StatusLine)),
            ("HTTP/1.1 abc x", Err(BadResponse::StatusLine)),
            ("HTTP/1.1  200 x", Err(BadResponse::StatusLine)),
            ("HTTP/2.0 200 x", Err(BadResponse::StatusLine)),
            ("SSH-2.0-OpenSSH_9", Err(BadResponse::StatusLine)),
            ("HTTP/1.1 200 a\0", Err(BadResponse::StatusLine)),
        ] {
            let parsed = parse(&format!("{line}\r\n\r\n"), Method::Get).map(|r| r.status);
            assert_eq!(parsed, expect, "{line:?}");
        }
    }

    #[test]
    fn framings() {
        use Framing::{Chunked, Length, UntilClose};
        for (line, fields, method, expect) in [
            ("1.1 200", "", Method::Get, Ok(UntilClose)),
            ("1.1 200", "Content-Length: 5\r\n", Method::Get, Ok(Length(5))),
            ("1.1 200", "Content-Length: 5\r\nContent-Length: 5\r\n", Method::Get, Ok(Length(5))),
            ("1.1 200", "Content-Length: 5\r\nContent-Length: 6\r\n", Method::Get, Err(())),
            ("1.1 200", "Content-Length: 5, 5\r\n", Method::Get, Err(())),
            ("1.1 200", "Content-Length: x\r\n", Method::Head, Err(())),
            ("1.1 200", "Transfer-Encoding: chunked\r\n", Method::Get, Ok(Chunked)),
            ("1.0 200", "Transfer-Encoding: chunked\r\n", Method::Get, Err(())),
            ("1.1 200", "Transfer-Encoding: gzip\r\n", Method::Get, Err(())),
            ("1.1 200", "Transfer-Encoding: chunked, chunked\r\n", Method::Get, Err(())),
            ("1.1 200", "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", Method::Get, Err(())),
            ("1.1 200", "Content-Length: 5\r\n", Method::Head, Ok(Framing::None)),
            ("1.1 204", "Content-Length: 5\r\n", Method::Get, Ok(Framing::None)),
            ("1.1 304", "Content-Length: 5\r\n", Method::Get, Ok(Framing::None)),
            ("1.1 100", "", Method::Post, Ok(Framing::None)),
        ] {
            let parsed = parse(&format!("HTTP/{line} x\r\n{fields}\r\n"), method);
            assert_eq!(parsed.map(|r| r.framing).map_err(|_| ()), expect, "{line} {fields:?}");
        }
    }

    #[test]
    fn which_connections_serve_again() {
        use Persistence::{Close, Keep};
        for (line, fields, expect) in [
            ("1.1 200", "Content-Length: 0\r\n", Keep),
            ("1.1 200", "Content-Length: 0\r\nConnection: x, Close\r\n", Close),
            ("1.1 200", "", Close),
            ("1.0 200", "Content-Length: 0\r\n", Close),
            ("1.0 200", "Content-Length: 0\r\nConnection: keep-alive\r\n", Keep),
        ] {
            let parsed = parse(&format!("HTTP/{line} x\r\n{fields}\r\n"), Method::Get).unwrap();
            assert_eq!(parsed.persistence, expect, "{line} {fields:?}");
        }
    }
}
