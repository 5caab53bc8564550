//! A request head, from bytes to what may be routed: a method, a target, one Host, one framing; or a refusal.
//!
//! There is no way to have a [`Request`] that breaks these rules, and nothing else can be serialized (RFC 9112
//! sections 3, 5 and 6, RFC 9110 sections 7.6, 7.8 and 10.1.1). Routes, limits of size and time are not looked at here.

use std::ops::Range;

use memchr::memchr;

use super::Framing;
use super::fields::{Field, Name, Seen};
use super::grammar::{self, TargetKind};
use super::refusal::Refusal;
use super::scan::Extent;

/// Longer than any registered method.
const LONGEST_METHOD: usize = 32;
/// Elements of all Connection lines: each field of the head is compared with each of them.
pub(super) const MOST_OPTIONS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Options,
    /// PUT and DELETE, which may be sent again.
    OtherIdempotent,
    Other,
}

impl Method {
    fn of(token: &[u8]) -> Result<Self, Refusal> {
        Ok(match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"OPTIONS" => Self::Options,
            b"PUT" | b"DELETE" => Self::OtherIdempotent,
            b"CONNECT" | b"TRACE" => return Err(Refusal::Method),
            _ => Self::Other,
        })
    }

    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::OtherIdempotent)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    /// Of what was written down as HTTP/1.1 for the guard.
    Http2,
}

/// Whether the client wants another exchange on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    #[default]
    Close,
    Keep,
}

/// What the first line says.
#[derive(Clone, Debug)]
struct RequestLine {
    /// Without its CR LF.
    end: usize,
    method_end: usize,
    kind: Method,
    target: Target,
    version: Version,
}

#[derive(Clone, Debug)]
struct Target {
    /// Empty unless the target is in absolute form.
    authority: Range<usize>,
    /// In origin form or `*`; may lack its first slash after an authority.
    path: Range<usize>,
}

/// A request that may be routed. Borrows the buffer that its head came in.
#[derive(Debug)]
pub struct Request<'b> {
    head: &'b [u8],
    line: RequestLine,
    host: Option<Range<usize>>,
    fields: &'b [Field],
    seen: Seen,
    pub framing: Framing,
    pub persistence: Persistence,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// Asks for a WebSocket, the only upgrade that is passed on; never of HTTP/1.0.
    pub wants_websocket: bool,
    /// Of OPTIONS only.
    pub max_forwards: Option<u32>,
    /// Connection names fields that are to be left out.
    names_fields: bool,
}

impl Target {
    /// Path and query, and nothing else.
    fn path(whole: Range<usize>) -> Self {
        Self { authority: whole.start..whole.start, path: whole }
    }
}

impl<'b> Request<'b> {
    /// `bytes` begin with a whole head; the empty line at its end is looked for, none before its begin. What comes
    /// after it is not looked at.
    pub fn parse(bytes: &'b [u8], fields: &'b mut Vec<Field>) -> Result<Self, Refusal> {
        let line_end =
            grammar::find(bytes, b'\n').and_then(|feed| feed.checked_sub(1)).ok_or(Refusal::RequestLine)?;
        if bytes[line_end] != b'\r' {
            return Err(Refusal::LineEnd);
        }
        let line = request_line(bytes, line_end)?;
        let mut found = Found::default();
        fields.clear();
        let mut start = line_end + 2;
        while !bytes[start..].starts_with(b"\r\n") {
            let (field, next) = Field::parse(bytes, start).ok_or(Refusal::Field)?;
            found.add(bytes, &field, line.version)?;
            fields.push(field);
            start = next;
        }
        found.request(&bytes[..start + 2], line, fields)
    }

    /// A request that came by HTTP/2.
    pub(crate) fn of_http2(mut self) -> Self {
        self.line.version = Version::Http2;
        self
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent { line_bytes: self.line.end, head_bytes: self.head.len(), n_fields: self.fields.len() }
    }

    pub fn method(&self) -> Method {
        self.line.kind
    }

    pub fn method_name(&self) -> &'b [u8] {
        &self.head[..self.line.method_end]
    }

    pub fn version(&self) -> Version {
        self.line.version
    }

    /// How long the first line is, without its end, when an endpoint gets it as it came.
    pub(super) fn plain_line(&self) -> Option<usize> {
        let RequestLine { end, method_end, target, version, .. } = &self.line;
        let is_path = target.path.start == method_end + 1 && !target.path.is_empty();
        (is_path && *version == Version::Http11).then_some(*end)
    }

    /// Path and query; `*` for the server as a whole. `None` for the path of a URI that has none.
    pub(crate) fn path_and_query(&self) -> (Option<u8>, &'b [u8]) {
        let path = &self.head[self.line.target.path.clone()];
        match path {
            [] if self.line.kind == Method::Options => (Some(b'*'), path),
            [] | [b'?', ..] => (Some(b'/'), path),
            _ => (None, path),
        }
    }

    /// Without the query.
    pub fn path(&self) -> &'b [u8] {
        let target = &self.head[self.line.target.path.clone()];
        let path = &target[..memchr(b'?', target).unwrap_or(target.len())];
        if path.is_empty() { b"/" } else { path }
    }

    /// Valid, or empty when the client named none.
    pub fn host(&self) -> &'b [u8] {
        self.host.clone().map_or(b"", |host| &self.head[host])
    }

    pub(crate) fn has_host(&self) -> bool {
        self.host.is_some()
    }

    pub fn has(&self, name: Name) -> bool {
        self.seen.has(name)
    }

    /// The values of all lines of that name, in order. `name` is not [`Name::Other`].
    pub fn values(&self, name: Name) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b> {
        let (head, fields) = (self.head, self.fields);
        fields.iter().filter(move |field| field.name == name).map(|field| field.value_in(head))
    }

    /// The value of the first line of any name, in any case.
    pub fn value_of(&self, name: &[u8]) -> Option<&'b [u8]> {
        let mut fields = self.fields.iter();
        let found = fields.find(|field| field.name_in(self.head).eq_ignore_ascii_case(name));
        found.map(|field| field.value_in(self.head))
    }

    pub(super) fn head(&self) -> &'b [u8] {
        self.head
    }

    pub(super) fn fields(&self) -> &'b [Field] {
        self.fields
    }

    pub(super) fn options(&self) -> Option<Options<'b>> {
        self.names_fields.then_some(Options { head: self.head, fields: self.fields })
    }

    /// The names in its Connection lines.
    pub(crate) fn hop_names(&self) -> Vec<u8> {
        self.options().map_or_else(Vec::new, |options| options.names())
    }
}

/// The elements of the Connection lines of a head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options<'b> {
    pub(super) head: &'b [u8],
    pub(super) fields: &'b [Field],
}

impl Options<'_> {
    /// Whether the field is named as one for the next hop only (RFC 9110 section 7.6.1). What frames, routes or vouches
    /// for a message cannot be made to vanish that way.
    pub(super) fn name(&self, field: &Field) -> bool {
        let name = field.name_in(self.head);
        field.name.may_be_for_next_hop()
            && self.lines().flat_map(grammar::elements).any(|option| option.eq_ignore_ascii_case(name))
    }

    /// All of them as one line.
    pub(super) fn names(&self) -> Vec<u8> {
        self.lines().collect::<Vec<_>>().join(&b","[..])
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.fields
            .iter()
            .filter(|field| field.name == Name::Connection)
            .map(|field| field.value_in(self.head))
    }
}

/// Judges a first line before the rest of the head is there. `line` ends with CR LF.
pub fn check_first_line(line: &[u8]) -> Result<(), Refusal> {
    request_line(line, line.len().saturating_sub(2)).map(|_| ())
}

fn request_line(head: &[u8], end: usize) -> Result<RequestLine, Refusal> {
    let line = &head[..end];
    let method_end = grammar::find(line, b' ').ok_or(Refusal::RequestLine)?;
    if !grammar::is_token(&line[..method_end]) {
        return Err(Refusal::RequestLine);
    }
    let (target_end, version) = match line.strip_suffix(b" HTTP/1.1") {
        Some(before) => (before.len(), Version::Http11),
        None => {
            let last = line.iter().rposition(|b| *b == b' ').ok_or(Refusal::RequestLine)?;
            (last, version(&line[last + 1..])?)
        }
    };
    let Some(target) = line.get(method_end + 1..target_end) else { return Err(Refusal::RequestLine) };
    if method_end > LONGEST_METHOD {
        return Err(Refusal::MethodLength);
    }
    let kind = Method::of(&line[..method_end])?;
    let of_bytes = grammar::target_kind(target).ok_or(Refusal::Target)?;
    let target = match (target, of_bytes) {
        ([b'/', ..], TargetKind::Plain) => Target::path(method_end + 1..target_end),
        _ => parse_target(target, kind, method_end + 1)?,
    };
    Ok(RequestLine { end, method_end, kind, target, version })
}

pub(super) fn version(text: &[u8]) -> Result<Version, Refusal> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::RequestLine),
    }
}

/// One of the forms of RFC 9112 section 3.2; `start` is the target's place in the head.
fn parse_target(target: &[u8], method: Method, start: usize) -> Result<Target, Refusal> {
    let whole = start..start + target.len();
    match target {
        [b'/', ..] => check_path(target).map(|()| Target::path(whole)),
        b"*" if method == Method::Options => Ok(Target::path(whole)),
        _ => {
            let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
                target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
            });
            let authority = scheme.ok_or(Refusal::Target)?.len();
            let rest = &target[authority..];
            let length = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
            if !grammar::is_host(&rest[..length]) {
                return Err(Refusal::Target);
            }
            check_path(&rest[length..])?;
            let path = start + authority + length;
            Ok(Target { authority: start + authority..path, path: path..whole.end })
        }
    }
}

/// Queries are left alone: much that is old writes a bare `%` there.
fn check_path(target: &[u8]) -> Result<(), Refusal> {
    let path = &target[..memchr(b'?', target).unwrap_or(target.len())];
    if grammar::is_percent_encoded(path) { Ok(()) } else { Err(Refusal::Target) }
}

/// What the lines of a head have said so far.
#[derive(Default)]
struct Found {
    seen: Seen,
    host: Option<Range<usize>>,
    length: Option<u64>,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    names_fields: bool,
    n_options: usize,
    is_websocket: bool,
    max_forwards: Option<u32>,
}

impl Found {
    fn add(&mut self, head: &[u8], field: &Field, version: Version) -> Result<(), Refusal> {
        let is_first = !self.seen.has(field.name);
        self.seen.add(field.name);
        let value = field.value_in(head);
        match field.name {
            Name::Other => {}
            Name::Host => {
                if !is_first {
                    return Err(Refusal::ManyHosts);
                }
                if !value.is_empty() && !grammar::is_host(value) {
                    return Err(Refusal::Host);
                }
                self.host = Some(field.value_start as usize..field.value_end as usize);
            }
            Name::ContentLength => {
                let length = grammar::length(value).filter(|_| is_first);
                self.length = Some(length.ok_or(Refusal::ContentLength)?);
            }
            Name::TransferEncoding => {
                let is_good = is_first && version == Version::Http11;
                if !is_good || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::TransferEncoding);
                }
            }
            Name::Connection => self.add_options(value)?,
            Name::Upgrade => self.is_websocket = is_first && value.eq_ignore_ascii_case(b"websocket"),
            Name::Expect if !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal::Expectation);
            }
            Name::MaxForwards => {
                self.max_forwards = grammar::length(value).and_then(|n| u32::try_from(n).ok());
            }
            Name::Underscored => {
                let looks_like = |other: &[u8]| {
                    let name = field.name_in(head);
                    name.len() == other.len()
                        && name.iter().zip(other).all(|(a, b)| match a {
                            b'_' => *b == b'-',
                            _ => a.eq_ignore_ascii_case(b),
                        })
                };
                if looks_like(b"transfer-encoding") || looks_like(b"content-length") {
                    return Err(Refusal::Field);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add_options(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in grammar::elements(value) {
            self.n_options += 1;
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if option.eq_ignore_ascii_case(b"transfer-encoding") {
                return Err(Refusal::TransferEncoding);
            } else if !option.is_empty() {
                self.names_fields = true;
            }
        }
        if self.n_options > MOST_OPTIONS { Err(Refusal::Field) } else { Ok(()) }
    }

    fn request<'b>(
        self,
        head: &'b [u8],
        line: RequestLine,
        fields: &'b [Field],
    ) -> Result<Request<'b>, Refusal> {
        if self.host.is_none() && line.version == Version::Http11 {
            return Err(Refusal::NoHost);
        }
        let authority = &head[line.target.authority.clone()];
        if let Some(host) = self.host.clone().filter(|_| !authority.is_empty())
            && !authority.eq_ignore_ascii_case(&head[host])
        {
            return Err(Refusal::HostMismatch);
        }
        let framing = match (self.seen.has(Name::TransferEncoding), self.length) {
            (true, Some(_)) => return Err(Refusal::TwoFramings),
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        };
        let has_body = !matches!(framing, Framing::None | Framing::Length(0));
        let is_11 = line.version == Version::Http11;
        let persistence = match (is_11, self.close, self.keep_alive) {
            (_, true, _) | (false, _, false) => Persistence::Close,
            _ => Persistence::Keep,
        };
        let host = self
            .host
            .or_else(|| Some(line.target.authority.clone()).filter(|authority| !authority.is_empty()));
        Ok(Request {
            framing,
            persistence,
            expects_continue: is_11 && has_body && self.seen.has(Name::Expect),
            wants_websocket: is_11
                && line.kind == Method::Get
                && self.upgrade
                && self.is_websocket
                && !has_body,
            max_forwards: self.max_forwards.filter(|_| line.kind == Method::Options),
            names_fields: self.names_fields,
            seen: self.seen,
            head,
            host,
            fields,
            line,
        })
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
