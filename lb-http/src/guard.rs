//! What a request must be before it is routed: one valid Host, one framing, a target that a server understands.
//!
//! hyper has checked the syntax of lines; this holds what it lets pass (RFC 9112 sections 3.2 and 6.3, RFC 9110
//! sections 7.6.2 and 10.1.1). It never repairs a request.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, MAX_FORWARDS, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Version};

use crate::headers::Seen;

/// A request that may be routed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward(Seen),
    /// `OPTIONS` that may go no further.
    AnswerOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

pub(crate) fn check(parts: &Parts, request_line_bytes: usize) -> Result<Verdict, Refusal> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        let reason = "CONNECT and TRACE are not served";
        return Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, reason });
    }
    let fields = Fields::of(parts);
    check_host(parts, &fields)?;
    check_target(parts, request_line_bytes)?;
    check_framing(parts, &fields)?;
    if fields.expects_the_unknown {
        let reason = "an expectation that is not known";
        return Err(Refusal { status: StatusCode::EXPECTATION_FAILED, reason });
    }
    if parts.method == Method::OPTIONS && parts.headers.get(MAX_FORWARDS).is_some_and(|v| v == "0") {
        return Ok(Verdict::AnswerOptions);
    }
    Ok(Verdict::Forward(fields.seen))
}

/// What the checks need of the headers, gathered in one pass.
#[derive(Default)]
struct Fields<'a> {
    host: Once<'a>,
    transfer_encoding: Once<'a>,
    content_length: Once<'a>,
    expects_the_unknown: bool,
    /// `Connection` names what frames the message.
    disowns_framing: bool,
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
enum Once<'a> {
    #[default]
    Absent,
    Value(&'a HeaderValue),
    Repeated,
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::Absent => Self::Value(value),
            Self::Value(_) | Self::Repeated => Self::Repeated,
        };
    }
}

impl<'a> Fields<'a> {
    fn of(parts: &'a Parts) -> Self {
        let mut fields = Self::default();
        for (name, value) in &parts.headers {
            match name.as_str() {
                "host" => fields.host.add(value),
                "content-length" => fields.content_length.add(value),
                _ => {
                    let seen = Seen::of(name);
                    fields.seen = fields.seen.and(seen);
                    if seen == Seen::TRANSFER_ENCODING {
                        fields.transfer_encoding.add(value);
                    } else if seen == Seen::CONNECTION {
                        fields.disowns_framing |= names_framing(value);
                    } else if seen == Seen::EXPECT {
                        fields.expects_the_unknown |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
                    }
                }
            }
        }
        fields
    }
}

fn check_host(parts: &Parts, fields: &Fields<'_>) -> Result<(), Refusal> {
    let host = match fields.host {
        Once::Absent if parts.version == Version::HTTP_10 => return Ok(()),
        Once::Absent => return Err(bad("no Host")),
        Once::Repeated => return Err(bad("more than one Host")),
        Once::Value(host) => host.as_bytes(),
    };
    if !is_host(host) {
        return Err(bad("Host is not a valid host"));
    }
    match parts.uri.authority() {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            Err(bad("Host differs from the request target"))
        }
        _ => Ok(()),
    }
}

/// `uri-host [ ":" port ]`, not empty. Of reg-names the percent and sub-delims are let through, commas are not: they
/// come from joined lines.
fn is_host(host: &[u8]) -> bool {
    let is_port = |port: &[u8]| match port {
        [] => true,
        [b':', digits @ ..] => {
            std::str::from_utf8(digits).is_ok_and(|d| d.bytes().all(|b| b.is_ascii_digit()))
                && (digits.is_empty()
                    || std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u16>().ok()).is_some())
        }
        _ => false,
    };
    if let [b'[', rest @ ..] = host {
        let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
        let address = std::str::from_utf8(&rest[..end]).ok().and_then(|a| a.parse::<Ipv6Addr>().ok());
        return address.is_some() && is_port(&rest[end + 1..]);
    }
    let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    if name.is_empty() || !name.iter().all(|b| IN_NAMES[usize::from(*b)]) || !is_port(port) {
        return false;
    }
    // All digits and dots is an address or nothing (WHATWG URL, host parsing).
    let looks_numeric = name.iter().all(|b| b.is_ascii_digit() || *b == b'.') && name.contains(&b'.');
    !looks_numeric
        || std::str::from_utf8(name).is_ok_and(|n| n.trim_end_matches('.').parse::<Ipv4Addr>().is_ok())
}

/// The bytes of a reg-name.
const IN_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+;=%";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

fn check_target(parts: &Parts, request_line_bytes: usize) -> Result<(), Refusal> {
    let uri = &parts.uri;
    let path = uri.path();
    if path.len() + uri.query().map_or(0, str::len) > request_line_bytes {
        let reason = "the request target is too long";
        return Err(Refusal { status: StatusCode::URI_TOO_LONG, reason });
    }
    match uri.scheme_str() {
        Some("http" | "https") => return Ok(()),
        Some(_) => return Err(bad("a scheme that is not http")),
        None => {}
    }
    if path == "*" {
        return if parts.method == Method::OPTIONS { Ok(()) } else { Err(bad("* is only for OPTIONS")) };
    }
    // Without a scheme, an authority is the form of CONNECT.
    if uri.authority().is_some() || !path.starts_with('/') {
        return Err(bad("the request target is no path"));
    }
    Ok(())
}

fn names_framing(connection: &HeaderValue) -> bool {
    connection.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|token| {
        token.eq_ignore_ascii_case(b"transfer-encoding") || token.eq_ignore_ascii_case(b"content-length")
    })
}

fn check_framing(parts: &Parts, fields: &Fields<'_>) -> Result<(), Refusal> {
    if fields.disowns_framing {
        return Err(bad("Connection names a header that frames the message"));
    }
    match fields.transfer_encoding {
        Once::Absent => {}
        Once::Value(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            if parts.version == Version::HTTP_10 {
                return Err(bad("Transfer-Encoding in HTTP/1.0"));
            }
            if !matches!(fields.content_length, Once::Absent) {
                return Err(bad("both Transfer-Encoding and Content-Length"));
            }
        }
        Once::Value(_) | Once::Repeated => return Err(bad("Transfer-Encoding is not exactly chunked")),
    }
    match fields.content_length {
        Once::Absent => Ok(()),
        Once::Value(length) if is_length(length) => Ok(()),
        Once::Value(_) | Once::Repeated => Err(bad("Content-Length is not one number")),
    }
}

/// 2^63 and above overflow in servers behind us.
fn is_length(value: &HeaderValue) -> bool {
    let is_digits = value.as_bytes().iter().all(u8::is_ascii_digit);
    is_digits && value.to_str().is_ok_and(|digits| digits.parse::<i64>().is_ok())
}

/// Of a response with a Transfer-Encoding: that is exactly `chunked`, and there is no Content-Length beside it.
pub(crate) fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = encodings.next().is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"chunked"));
    is_chunked && encodings.next().is_none() && !headers.contains_key(CONTENT_LENGTH)
}

/// A WebSocket handshake, the only upgrade that is passed on. Never for HTTP/1.0 (RFC 9110 section 7.8).
pub(crate) fn asks_for_upgrade(parts: &Parts, seen: Seen) -> bool {
    seen.has(Seen::UPGRADE)
        && parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && has_token(&parts.headers, b"upgrade")
        && parts.headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn has_token(headers: &HeaderMap, token: &[u8]) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Checked {
        Forwarded,
        Answered,
    }

    fn checked(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Result<Checked, u16> {
        let mut request = http::Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0, 100).map_err(|r| r.status.as_u16()).map(|verdict| {
            match verdict {
                Verdict::Forward(_) => Checked::Forwarded,
                Verdict::AnswerOptions => Checked::Answered,
            }
        })
    }

    #[test]
    fn requests() {
        const A: (&str, &str) = ("host", "a.test");
        let long = format!("/{}", "x".repeat(100));
        for (method, uri, headers, expect) in [
            ("GET", "/", &[A][..], Ok(Checked::Forwarded)),
            ("GET", "/", &[], Err(400)),
            ("GET", "/", &[A, A], Err(400)),
            ("GET", "http://a.test/", &[A], Ok(Checked::Forwarded)),
            ("GET", "http://A.Test/", &[A], Ok(Checked::Forwarded)),
            ("GET", "http://b.test/", &[A], Err(400)),
            ("GET", "ftp://a.test/", &[A], Err(400)),
            ("GET", "a.test", &[A], Err(400)),
            ("GET", "*", &[A], Err(400)),
            ("OPTIONS", "*", &[A], Ok(Checked::Forwarded)),
            ("OPTIONS", "/", &[A, ("max-forwards", "0")], Ok(Checked::Answered)),
            ("CONNECT", "a.test:443", &[A], Err(405)),
            ("TRACE", "/", &[A], Err(405)),
            ("GET", &long, &[A], Err(414)),
            ("POST", "/", &[A, ("transfer-encoding", "Chunked")], Ok(Checked::Forwarded)),
            ("POST", "/", &[A, ("transfer-encoding", "gzip, chunked")], Err(400)),
            ("POST", "/", &[A, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Err(400)),
            ("POST", "/", &[A, ("transfer-encoding", "chunked"), ("content-length", "1")], Err(400)),
            ("POST", "/", &[A, ("content-length", "9223372036854775808")], Err(400)),
            ("POST", "/", &[A, ("content-length", "+1")], Err(400)),
            ("POST", "/", &[A, ("connection", "close, Content-Length"), ("content-length", "1")], Err(400)),
            ("POST", "/", &[A, ("content-length", "1")], Ok(Checked::Forwarded)),
            ("POST", "/", &[A, ("expect", "100-continue")], Ok(Checked::Forwarded)),
            ("POST", "/", &[A, ("expect", "tea")], Err(417)),
        ] {
            assert_eq!(checked(method, uri, Version::HTTP_11, headers), expect, "{method} {uri} {headers:?}");
        }
        assert_eq!(checked("GET", "/", Version::HTTP_10, &[]), Ok(Checked::Forwarded));
        let chunked = [A, ("transfer-encoding", "chunked")];
        assert_eq!(checked("POST", "/", Version::HTTP_10, &chunked), Err(400));
    }

    #[test]
    fn hosts() {
        for (host, expect) in [
            ("a.test", true),
            ("a.test:80", true),
            ("a.test:", true),
            ("127.0.0.1:65535", true),
            ("[::1]:80", true),
            ("a_b", true),
            ("", false),
            (":80", false),
            ("a.test:65536", false),
            ("a.test:x", false),
            ("a.test:+1", false),
            ("a.test:80:80", false),
            ("u@a.test", false),
            ("a b", false),
            ("a,b", false),
            ("a/b", false),
            ("[::1", false),
            ("[::g]", false),
            ("[::1]x", false),
            ("1.2.3.400", false),
        ] {
            assert_eq!(is_host(host.as_bytes()), expect, "{host:?}");
        }
    }
}
