//! What a request must be before it is routed: one valid Host, one framing, a target that a server understands.
//!
//! hyper has checked the syntax of lines; this holds what it lets pass (RFC 9112 sections 3.2 and 6.3, RFC 9110
//! sections 7.6.2 and 10.1.1). It never repairs a request.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, MAX_FORWARDS, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Version};

/// A request that may be routed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward,
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
    check_host(parts)?;
    check_target(parts, request_line_bytes)?;
    check_framing(parts)?;
    if parts.headers.get_all(EXPECT).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let reason = "an expectation that is not known";
        return Err(Refusal { status: StatusCode::EXPECTATION_FAILED, reason });
    }
    if parts.method == Method::OPTIONS && parts.headers.get(MAX_FORWARDS).is_some_and(|v| v == "0") {
        return Ok(Verdict::AnswerOptions);
    }
    Ok(Verdict::Forward)
}

fn check_host(parts: &Parts) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return if parts.version == Version::HTTP_10 { Ok(()) } else { Err(bad("no Host")) };
    };
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let host = host.as_bytes();
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
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(b);
    // All digits and dots is an address or nothing (WHATWG URL, host parsing).
    let looks_numeric = name.iter().all(|b| b.is_ascii_digit() || *b == b'.') && name.contains(&b'.');
    !name.is_empty()
        && name.iter().all(is_name)
        && (!looks_numeric
            || std::str::from_utf8(name).is_ok_and(|n| n.trim_end_matches('.').parse::<Ipv4Addr>().is_ok()))
        && is_port(port)
}

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

fn check_framing(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(bad("Transfer-Encoding is not exactly chunked"));
        }
        if parts.version == Version::HTTP_10 {
            return Err(bad("Transfer-Encoding in HTTP/1.0"));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(bad("both Transfer-Encoding and Content-Length"));
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.to_str().unwrap_or_default();
        let is_number = digits.bytes().all(|b| b.is_ascii_digit());
        // 2^63 and above overflow in servers behind us.
        if !is_number || digits.parse::<i64>().is_err() || lengths.next().is_some() {
            return Err(bad("Content-Length is not one number"));
        }
    }
    Ok(())
}

/// A WebSocket handshake, the only upgrade that is passed on. Never for HTTP/1.0 (RFC 9110 section 7.8).
pub(crate) fn asks_for_upgrade(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && parts.headers.contains_key(UPGRADE)
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

    fn checked(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Result<Verdict, u16> {
        let mut request = http::Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0, 100).map_err(|r| r.status.as_u16())
    }

    #[test]
    fn requests() {
        const A: (&str, &str) = ("host", "a.test");
        let long = format!("/{}", "x".repeat(100));
        for (method, uri, headers, expect) in [
            ("GET", "/", &[A][..], Ok(Verdict::Forward)),
            ("GET", "/", &[], Err(400)),
            ("GET", "/", &[A, A], Err(400)),
            ("GET", "http://a.test/", &[A], Ok(Verdict::Forward)),
            ("GET", "http://A.Test/", &[A], Ok(Verdict::Forward)),
            ("GET", "http://b.test/", &[A], Err(400)),
            ("GET", "ftp://a.test/", &[A], Err(400)),
            ("GET", "a.test", &[A], Err(400)),
            ("GET", "*", &[A], Err(400)),
            ("OPTIONS", "*", &[A], Ok(Verdict::Forward)),
            ("OPTIONS", "/", &[A, ("max-forwards", "0")], Ok(Verdict::AnswerOptions)),
            ("CONNECT", "a.test:443", &[A], Err(405)),
            ("TRACE", "/", &[A], Err(405)),
            ("GET", &long, &[A], Err(414)),
            ("POST", "/", &[A, ("transfer-encoding", "Chunked")], Ok(Verdict::Forward)),
            ("POST", "/", &[A, ("transfer-encoding", "gzip, chunked")], Err(400)),
            ("POST", "/", &[A, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Err(400)),
            ("POST", "/", &[A, ("transfer-encoding", "chunked"), ("content-length", "1")], Err(400)),
            ("POST", "/", &[A, ("content-length", "9223372036854775808")], Err(400)),
            ("POST", "/", &[A, ("content-length", "+1")], Err(400)),
            ("POST", "/", &[A, ("content-length", "1")], Ok(Verdict::Forward)),
            ("POST", "/", &[A, ("expect", "100-continue")], Ok(Verdict::Forward)),
            ("POST", "/", &[A, ("expect", "tea")], Err(417)),
        ] {
            assert_eq!(checked(method, uri, Version::HTTP_11, headers), expect, "{method} {uri} {headers:?}");
        }
        assert_eq!(checked("GET", "/", Version::HTTP_10, &[]), Ok(Verdict::Forward));
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
