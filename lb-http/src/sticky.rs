//! Session affinity with Marathon-LB's cookie: HAProxy's `cookie mesosphere_server_id insert indirect nocache`.
//!
//! The endpoint never sees the cookie; the client gets one only when it had no valid one. The value names a server of
//! the table and nothing else: it can never lead to an address of the client's choice.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use http::{Method, StatusCode};

use crate::headers::Seen;

/// Marathon-LB's name.
const COOKIE_NAME: &str = "mesosphere_server_id";

/// How a service's cookie is called, and what stands behind its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    name: Arc<str>,
    attributes: Arc<str>,
}

impl Default for Cookie {
    /// A session cookie for the whole site.
    fn default() -> Self {
        Self { name: COOKIE_NAME.into(), attributes: "; path=/".into() }
    }
}

impl Cookie {
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

    /// The `Set-Cookie` line of a server.
    pub(crate) fn set(&self, value: &str) -> HeaderValue {
        let line = format!("{}={value}{}", self.name, self.attributes);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(line))
            .expect("names and attributes are graphic ASCII")
    }
}

/// Takes the cookie of this name out of a request's headers. `None`: it had none. Of several the first counts.
pub(crate) fn take_cookie(headers: &mut HeaderMap, name: &str) -> Option<Vec<u8>> {
    let is_in = |line: &HeaderValue| line.as_bytes().windows(name.len()).any(|w| w == name.as_bytes());
    if !headers.get_all(COOKIE).iter().any(is_in) {
        return None;
    }
    let mut found = None;
    let mut kept: Vec<HeaderValue> = Vec::new();
    for line in headers.get_all(COOKIE) {
        if !is_in(line) {
            kept.push(line.clone());
            continue;
        }
        let mut rest: Vec<u8> = Vec::with_capacity(line.len());
        for pair in line.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii) {
            match value_of(pair, name) {
                Some(value) => {
                    found.get_or_insert_with(|| value.to_vec());
                }
                None if pair.is_empty() => {}
                None => {
                    if !rest.is_empty() {
                        rest.extend_from_slice(b"; ");
                    }
                    rest.extend_from_slice(pair);
                }
            }
        }
        if !rest.is_empty() {
            // Every byte was in a valid value before.
            kept.extend(HeaderValue::from_bytes(&rest));
        }
    }
    headers.remove(COOKIE);
    for line in kept {
        headers.append(COOKIE, line);
    }
    found
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = pair.strip_prefix(name.as_bytes())?.trim_ascii_start();
    let value = rest.strip_prefix(b"=")?.trim_ascii_start();
    Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
}

/// Sets the cookie on a response; one that a shared cache could keep is made private, or the cookie would be, too.
pub(crate) fn insert(
    headers: &mut HeaderMap,
    set_cookie: &HeaderValue,
    seen: Seen,
    method: &Method,
    status: StatusCode,
) {
    if seen.has(Seen::CACHING) && may_be_cached(headers, method, status) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    headers.append(SET_COOKIE, set_cookie.clone());
}

/// Whether a response that says something about caching may be kept by a shared cache.
fn may_be_cached(headers: &HeaderMap, method: &Method, status: StatusCode) -> bool {
    // Cacheable by default: RFC 9110 section 15.1.
    let by_status =
        matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 404 | 405 | 410 | 414 | 501);
    let mut directives = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(|d| d.trim_ascii().split(|b| *b == b'=').next().unwrap_or_default().to_ascii_lowercase());
    let is_forbidden = |d: Vec<u8>| matches!(&*d, b"private" | b"no-store" | b"no-cache");
    by_status && (method == Method::GET || method == Method::HEAD) && !directives.any(is_forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_taken_out_and_the_others_stay() {
        for (lines, found, left) in [
            (&["a=1; mesosphere_server_id=0123456789; b=2"][..], Some("0123456789"), &["a=1; b=2"][..]),
            (&["mesosphere_server_id=x"], Some("x"), &[]),
            (&["mesosphere_server_id=\"x\"; c=3"], Some("x"), &["c=3"]),
            (&["a=1", "mesosphere_server_id=x", "b=2"], Some("x"), &["a=1", "b=2"]),
            (&["mesosphere_server_id=x;mesosphere_server_id=y"], Some("x"), &[]),
            (&["a=mesosphere_server_id"], None, &["a=mesosphere_server_id"]),
            (&["not_mesosphere_server_id=x"], None, &["not_mesosphere_server_id=x"]),
            (&["a=1"], None, &["a=1"]),
            (&[], None, &[]),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_static(line));
            }
            let taken = take_cookie(&mut headers, COOKIE_NAME);
            assert_eq!(taken.as_deref(), found.map(str::as_bytes), "{lines:?}");
            let kept: Vec<_> = headers.get_all(COOKIE).iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!(kept, left, "{lines:?}");
        }
    }

    #[test]
    fn a_cookie_has_the_name_and_attributes_that_it_is_given() {
        let cookie =
            Cookie::named("srv").and_then(|c| c.with("HttpOnly")).and_then(|c| c.with("Secure")).unwrap();
        assert_eq!(cookie.set("0a"), "srv=0a; path=/; HttpOnly; Secure");
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("mesosphere_server_id=x; srv=y"));
        assert_eq!(take_cookie(&mut headers, cookie.name()).as_deref(), Some(&b"y"[..]));
        assert_eq!(headers[COOKIE], "mesosphere_server_id=x");
        for name in ["", "a b", "a;b", "a=b", "é"] {
            assert_eq!(Cookie::named(name), None, "{name:?}");
        }
        assert_eq!(Cookie::default().with("x; Domain=evil"), None);
    }

    #[test]
    fn only_a_response_that_caches_may_keep_is_made_private() {
        for (status, header, expect) in [
            (200, ("etag", "\"1\""), 1),
            (200, ("cache-control", "public, max-age=60"), 2),
            (200, ("cache-control", "No-Store"), 1),
            (200, ("cache-control", "private"), 1),
            (200, ("x-other", "1"), 0),
            (500, ("etag", "\"1\""), 0),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header.0, HeaderValue::from_static(header.1));
            let seen = Seen::in_all(&headers);
            insert(
                &mut headers,
                &Cookie::default().set("0a"),
                seen,
                &Method::GET,
                StatusCode::from_u16(status).unwrap(),
            );
            assert_eq!(headers.get_all(CACHE_CONTROL).iter().count(), expect, "{status} {header:?}");
            assert_eq!(headers[SET_COOKIE], "mesosphere_server_id=0a; path=/");
        }
    }
}
