//! Heads between HTTP/2 and the guard, which reads and writes those of HTTP/1.1.
//!
//! What a request may say is not decided here: whatever a client sent is written down for the guard as it is.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use memchr::memchr;

use crate::http1::fields::Name;
use crate::http1::response::BadResponse;
use crate::http1::serialize;

/// Whether DATA follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyOf {
    Nothing,
    Stream,
}

/// Writes the head of a request down: the target in its origin form and the authority in Host, if they agree.
pub(super) fn write_request(out: &mut Vec<u8>, head: &Parts, body: BodyOf) {
    let Parts { method, uri, headers, .. } = head;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    // A Host beside an authority that says the same is no second one (RFC 9113 section 8.3.1); two of them are.
    let (mut n_hosts, mut agrees, mut has_length) = (0, true, false);
    for (name, value) in headers {
        if name == HOST {
            n_hosts += 1;
            agrees = n_hosts == 1 && value.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
        }
        has_length |= name == CONTENT_LENGTH;
    }
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    if !authority.is_empty() && !agrees {
        out.extend_from_slice(b"http://");
        out.extend_from_slice(authority.as_bytes());
    }
    out.extend_from_slice(uri.path_and_query().map_or("", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if n_hosts == 0 && !authority.is_empty() {
        serialize::line(out, b"host", authority.as_bytes());
    }
    // The pieces of a cookie follow each other.
    let mut in_cookie = false;
    for (name, value) in headers {
        // RFC 9113 section 8.2.3: a client may send each pair by itself; HTTP/1.1 knows one line.
        if name == COOKIE && std::mem::replace(&mut in_cookie, true) {
            out.truncate(out.len() - b"\r\n".len());
            out.extend_from_slice(b"; ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        } else {
            serialize::line(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match body {
        _ if has_length => {}
        BodyOf::Stream => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110 section 8.6: a method that expects a body says that there is none.
        BodyOf::Nothing if [Method::POST, Method::PUT, Method::PATCH].contains(method) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        BodyOf::Nothing => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes down the fields of a trailer that may go on, as for HTTP/1.1 (see `chunked`).
pub(super) fn write_trailer(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        let name = name.as_str().as_bytes();
        if Name::of(name).is_some_and(Name::may_follow_body) {
            serialize::line(out, name, value.as_bytes());
        }
    }
}

/// A head of HTTP/1.1 that may be passed on, as HTTP/2 wants it; and where it ends.
pub(super) fn response(status: u16, text: &Bytes) -> Result<(Response<()>, usize), BadResponse> {
    let status = StatusCode::from_u16(status).map_err(|_| BadResponse::StatusLine)?;
    let first_line = memchr(b'\n', text).ok_or(BadResponse::StatusLine)?;
    let (headers, end) = fields(text, first_line + 1)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok((response, end))
}

/// The lines of a head from `start` on, up to its empty line or the end of the text, and where they end. Values share
/// the text's memory.
pub(super) fn fields(text: &Bytes, mut start: usize) -> Result<(HeaderMap, usize), BadResponse> {
    let mut headers = HeaderMap::with_capacity(12);
    while let Some(length) = memchr(b'\n', &text[start..]) {
        let line = &text[start..start + length];
        let line = line.strip_suffix(b"\r").ok_or(BadResponse::LineEnd)?;
        let next = start + length + 1;
        if line.is_empty() {
            return Ok((headers, next));
        }
        let colon = memchr(b':', line).ok_or(BadResponse::Field)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| BadResponse::Field)?;
        let value = text.slice_ref(line[colon + 1..].trim_ascii());
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadResponse::Field)?;
        headers.try_append(name, value).map_err(|_| BadResponse::TooLong)?;
        start = next;
    }
    Ok((headers, start))
}
