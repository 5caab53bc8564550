//! Session affinity with Marathon-LB's cookie: HAProxy's `cookie mesosphere_server_id insert indirect nocache`.
//!
//! The endpoint never sees the cookie; the client gets one only when it had no valid one. The value names a server of
//! the table and nothing else: it can never lead to an address of the client's choice.

use std::sync::Arc;

use http::HeaderValue;

use crate::http1::fields::Name;
use crate::http1::grammar;
use crate::http1::request::Method;
use crate::http1::response::Response;

/// Marathon-LB's name.
const COOKIE_NAME: &str = "mesosphere_server_id";

/// How a service's cookie is called, and what stands behind its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieStyle {
    name: Arc<str>,
    attributes: Arc<str>,
}

impl Default for CookieStyle {
    /// A session cookie for the whole site.
    fn default() -> Self {
        Self { name: COOKIE_NAME.into(), attributes: "; path=/".into() }
    }
}

impl CookieStyle {
    /// `None`: no name for a cookie (RFC 6265 section 4.1.1).
    pub(crate) fn named(name: &str) -> Option<Self> {
        let is_token = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b));
        is_token.then(|| Self { name: name.into(), ..Self::default() })
    }

    /// With one more attribute, e.g. `HttpOnly`. `None`: it would end the attribute or the header.
    pub(crate) fn with(self, attribute: &str) -> Option<Self> {
        let is_whole = attribute.bytes().all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b';');
        is_whole.then(|| Self { attributes: format!("{}; {attribute}", self.attributes).into(), ..self })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `Set-Cookie` value of a server.
    pub(crate) fn set(&self, value: &str) -> HeaderValue {
        let line = format!("{}={value}{}", self.name, self.attributes);
        HeaderValue::try_from(line).expect("names and attributes are graphic ASCII")
    }
}

/// Longer values are none of ours.
const LONGEST_VALUE: usize = 32;

/// The value of a client's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cookie {
    bytes: [u8; LONGEST_VALUE],
    n: u8,
}

impl Cookie {
    fn new(value: &[u8]) -> Self {
        let mut bytes = [0; LONGEST_VALUE];
        // What does not fit names no server, as does nothing.
        let n = if value.len() <= LONGEST_VALUE { value.len() } else { 0 };
        bytes[..n].copy_from_slice(&value[..n]);
        Self { bytes, n: n as u8 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.n)]
    }
}

/// Finds the cookie of this name in a request's Cookie lines and appends to `rest` what they are without it. `None`:
/// they have none, and `rest` is as it was. Of several the first counts.
pub(crate) fn take_cookie<'b>(
    lines: impl Iterator<Item = &'b [u8]> + Clone,
    name: &str,
    rest: &mut Vec<u8>,
) -> Option<Cookie> {
    let is_in = |line: &[u8]| memchr::memmem::find(line, name.as_bytes()).is_some();
    if !lines.clone().any(is_in) {
        return None;
    }
    let mut found = None;
    for line in lines {
        let begin = rest.len();
        for pair in line.split(|b| *b == b';').map(<[u8]>::trim_ascii) {
            match value_of(pair, name) {
                Some(value) => {
                    found.get_or_insert_with(|| Cookie::new(value));
                }
                None if pair.is_empty() => {}
                None => {
                    rest.extend_from_slice(if rest.len() == begin { b"Cookie: " } else { b"; " });
                    rest.extend_from_slice(pair);
                }
            }
        }
        if rest.len() > begin {
            rest.extend_from_slice(b"\r\n");
        }
    }
    found
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = pair.strip_prefix(name.as_bytes())?.trim_ascii_start();
    let value = rest.strip_prefix(b"=")?.trim_ascii_start();
    Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
}

/// Whether a response that is given the cookie must be made private, because a shared cache could keep it, and the
/// cookie with it.
pub(crate) fn must_be_private(response: &Response, head: &[u8], method: Method) -> bool {
    const CACHING: [Name; 4] = [Name::CacheControl, Name::ETag, Name::LastModified, Name::Expires];
    if !CACHING.iter().any(|name| response.has(*name)) {
        return false;
    }
    // Cacheable by default: RFC 9110 section 15.1.
    let by_status =
        matches!(response.status, 200 | 203 | 204 | 206 | 300 | 301 | 404 | 405 | 410 | 414 | 501);
    let mut directives = response
        .values(head, Name::CacheControl)
        .flat_map(grammar::elements)
        .map(|d| d.split(|b| *b == b'=').next().unwrap_or_default().to_ascii_lowercase());
    let is_forbidden = |d: Vec<u8>| matches!(&*d, b"private" | b"no-store" | b"no-cache");
    by_status && matches!(method, Method::Get | Method::Head) && !directives.any(is_forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_taken_out_and_the_others_stay() {
        for (lines, found, left) in [
            (&["a=1; mesosphere_server_id=0123456789; b=2"][..], Some("0123456789"), "Cookie: a=1; b=2\r\n"),
            (&["mesosphere_server_id=x"], Some("x"), ""),
            (&["mesosphere_server_id=\"x\"; c=3"], Some("x"), "Cookie: c=3\r\n"),
            (&["a=1", "mesosphere_server_id=x", "b=2"], Some("x"), "Cookie: a=1\r\nCookie: b=2\r\n"),
            (&["mesosphere_server_id=x;mesosphere_server_id=y"], Some("x"), ""),
            (&["mesosphere_server_id=0123456789012345678901234567890123"], Some(""), ""),
            (&["not_mesosphere_server_id=x"], None, "Cookie: not_mesosphere_server_id=x\r\n"),
            (&["a=1"], None, ""),
            (&[], None, ""),
        ] {
            let mut rest = Vec::new();
            let taken = take_cookie(lines.iter().map(|l| l.as_bytes()), COOKIE_NAME, &mut rest);
            assert_eq!(taken.as_ref().map(Cookie::as_bytes), found.map(str::as_bytes), "{lines:?}");
            assert_eq!(String::from_utf8(rest).unwrap(), left, "{lines:?}");
        }
    }

    #[test]
    fn only_a_response_that_caches_may_keep_is_made_private() {
        for (status, line, expect) in [
            (200, "ETag: 1", true),
            (200, "Cache-Control: public, max-age=60", true),
            (200, "Cache-Control: No-Store", false),
            (200, "Cache-Control: max-age=1, private=\"x\"", false),
            (200, "X-Other: 1", false),
            (500, "ETag: 1", false),
        ] {
            let head = format!("HTTP/1.1 {status} x\r\n{line}\r\n\r\n");
            let response = Response::parse(head.as_bytes(), Method::Get, Vec::new()).unwrap();
            assert_eq!(must_be_private(&response, head.as_bytes(), Method::Get), expect, "{status} {line}");
        }
    }
}
