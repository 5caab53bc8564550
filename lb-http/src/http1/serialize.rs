//! Heads as they are sent on: runs of the lines that came, without those that end here, with those that begin here.
//!
//! Only typed heads are taken, and what frames a message is written from its type, never copied.

use std::net::IpAddr;

use super::Framing;
use super::fields::{Field, Name};
use super::flow::Coding;
use super::request::{Options, Request, Version};
use super::response::Response;
use crate::request_id::RequestId;

/// What a service wants changed in a head. To set a field is to remove it and to add it.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Names of fields to leave out, in any case.
    pub remove: Vec<Box<[u8]>>,
    /// Whole lines, each with its CR LF.
    pub add: Vec<u8>,
}

impl Edits {
    pub(crate) const NONE: &'static Self = &Self { remove: Vec::new(), add: Vec::new() };

    fn removes(&self, head: &[u8], field: &Field) -> bool {
        self.remove.iter().any(|name| name.eq_ignore_ascii_case(field.name_in(head)))
    }
}

/// What the balancer itself says in the head of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarding<'a> {
    /// Lines for every request of the connection.
    pub(crate) lines: &'a [u8],
    pub(crate) proto: Proto,
    /// For a request that has none.
    pub(crate) request_id: &'a RequestId,
    /// The Cookie lines without the balancer's own cookie. `None`: as they came.
    pub(crate) cookies: Option<&'a [u8]>,
    /// Path and query instead of those that came.
    pub(crate) target: Option<&'a [u8]>,
    pub(crate) edits: &'a Edits,
}

/// Who says what protocol the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    /// The client, which may be a balancer that has ended TLS; plain HTTP when it is silent.
    OfClient,
    /// It is among the lines of the connection.
    Ours,
}

/// Fields that are dropped or written anew.
fn is_ours_in_requests(name: Name) -> bool {
    name.is_hop_by_hop()
        || matches!(
            name,
            Name::Underscored
                | Name::ContentLength
                | Name::TransferEncoding
                | Name::Forwarded
                | Name::XForwardedPort
        )
}

/// Writes the head of `request` as an endpoint gets it.
pub(crate) fn request(out: &mut Vec<u8>, request: &Request<'_>, forwarding: &Forwarding<'_>) {
    let first_line = request.plain_line().filter(|_| forwarding.target.is_none() && request.has(Name::Host));
    if first_line.is_none() {
        request_line(out, request, forwarding.target);
    }
    let options = request.options();
    copy(out, request.head(), first_line, request.fields(), |field| {
        is_ours_in_requests(field.name)
            || (field.name == Name::Cookie && forwarding.cookies.is_some())
            || (field.name == Name::XForwardedProto && forwarding.proto == Proto::Ours)
            || (field.name == Name::MaxForwards && request.max_forwards.is_some())
            || (field.name == Name::Expect && !request.expects_continue)
            || options.is_some_and(|options| options.name(field))
            || forwarding.edits.removes(request.head(), field)
    });
    if let Some(cookies) = forwarding.cookies {
        out.extend_from_slice(cookies);
    }
    if let Some(left) = request.max_forwards {
        number_line(out, b"Max-Forwards", u64::from(left.saturating_sub(1)));
    }
    out.extend_from_slice(forwarding.lines);
    let version = match request.version() {
        Version::Http11 => &b"Via: 1.1 waymark\r\n"[..],
        Version::Http10 => b"Via: 1.0 waymark\r\n",
        Version::Http2 => b"Via: 2.0 waymark\r\n",
    };
    out.extend_from_slice(version);
    if forwarding.proto == Proto::OfClient && !request.has(Name::XForwardedProto) {
        out.extend_from_slice(b"X-Forwarded-Proto: http\r\n");
    }
    if !request.has(Name::XRequestId) {
        line(out, b"X-Request-Id", forwarding.request_id);
    }
    out.extend_from_slice(&forwarding.edits.add);
    if request.wants_websocket {
        out.extend_from_slice(b"Connection: upgrade\r\nUpgrade: websocket\r\n");
    }
    match request.framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => number_line(out, b"Content-Length", length),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

fn request_line(out: &mut Vec<u8>, request: &Request<'_>, target: Option<&[u8]>) {
    out.extend_from_slice(request.method_name());
    out.push(b' ');
    match target {
        Some(target) => out.extend_from_slice(target),
        None => {
            let (begin, rest) = request.path_and_query();
            out.extend(begin);
            out.extend_from_slice(rest);
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !request.has(Name::Host) {
        line(out, b"Host", if request.has_host() { request.host() } else { b"" });
    }
}

/// How a client gets a response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) coding: Coding,
    /// Said about the connection; nothing, when its version's default holds.
    pub(crate) connection: &'a [u8],
    /// Lines for this response, in pieces.
    pub(crate) lines: &'a [&'a [u8]],
    pub(crate) edits: &'a Edits,
}

/// Writes the head of `response`, whose bytes are `head`, as a client gets it.
pub(crate) fn response(out: &mut Vec<u8>, response: &Response, head: &[u8], delivery: &Delivery<'_>) {
    let first_line = response.plain_line();
    if first_line.is_none() {
        out.extend_from_slice(b"HTTP/1.1 ");
        let status = response.status_and_reason(head);
        out.extend_from_slice(status);
        // The space before an empty reason is no option (RFC 9112 section 4).
        out.extend_from_slice(if status.len() == 3 { b" \r\n" } else { b"\r\n" });
    }
    let options: Option<Options<'_>> = response.options(head);
    // To HEAD and with a 304 a length says what there would be; it frames nothing.
    let keeps_length = response.framing == Framing::None && response.status >= 200 && response.status != 204;
    let mut has_length = false;
    copy(out, head, first_line, &response.fields, |field| {
        let is_length = field.name == Name::ContentLength;
        let is_kept_length = is_length && keeps_length && !std::mem::replace(&mut has_length, true);
        field.name.is_hop_by_hop()
            || field.name == Name::TransferEncoding
            || (is_length && !is_kept_length)
            || options.is_some_and(|options| options.name(field))
            || delivery.edits.removes(head, field)
    });
    delivery.lines.iter().for_each(|piece| out.extend_from_slice(piece));
    out.extend_from_slice(&delivery.edits.add);
    out.extend_from_slice(delivery.connection);
    match (response.framing, delivery.coding) {
        (Framing::None, _) => {}
        (_, Coding::Chunked) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        (Framing::Length(length), Coding::Plain) => number_line(out, b"Content-Length", length),
        (_, Coding::Plain) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Copies the lines that are not left out, as few runs as there are; the first line, too, if its length is given.
fn copy(
    out: &mut Vec<u8>,
    head: &[u8],
    first_line: Option<usize>,
    fields: &[Field],
    mut is_left_out: impl FnMut(&Field) -> bool,
) {
    let mut run = 0..first_line.unwrap_or(0);
    for field in fields {
        if is_left_out(field) {
            continue;
        }
        let (start, end) = (field.start as usize, field.value_end as usize);
        if start == run.end + b"\r\n".len() && !run.is_empty() {
            run.end = end;
            continue;
        }
        if !run.is_empty() {
            out.extend_from_slice(&head[run]);
            out.extend_from_slice(b"\r\n");
        }
        run = start..end;
    }
    if !run.is_empty() {
        out.extend_from_slice(&head[run]);
        out.extend_from_slice(b"\r\n");
    }
}

/// Always inlined, because its name mostly is a constant.
#[inline(always)]
pub(crate) fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[inline(always)]
pub(crate) fn number_line(out: &mut Vec<u8>, name: &[u8], number: u64) {
    line(out, name, decimal(number, &mut [0; MOST_DIGITS]));
}

const MOST_DIGITS: usize = 20;

fn decimal(number: u64, room: &mut [u8; MOST_DIGITS]) -> &[u8] {
    let mut start = room.len();
    let mut rest = number;
    loop {
        start -= 1;
        room[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &room[start..];
        }
    }
}

/// A line whose value is an address. Every connection has one, so that of IPv4 is written by hand.
pub(crate) fn address_line(out: &mut Vec<u8>, name: &[u8], address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.extend_from_slice(name);
            for (separator, octet) in [": ", ".", ".", "."].iter().zip(address.octets()) {
                out.extend_from_slice(separator.as_bytes());
                out.extend_from_slice(decimal(octet.into(), &mut [0; MOST_DIGITS]));
            }
            out.extend_from_slice(b"\r\n");
        }
        IpAddr::V6(address) => line(out, name, address.to_string().as_bytes()),
    }
}

#[cfg(test)]
#[path = "serialize_tests.rs"]
mod tests;
