//! Session affinity with Marathon-LB's cookie: HAProxy's `cookie mesosphere_server_id insert indirect nocache`.
//!
//! The endpoint never sees the cookie; the client gets one only when it had no valid one. The value names a server of
//! the table and nothing else: it can never lead to an address of the client's choice.

use http::header::{CACHE_CONTROL, COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use http::{Method, StatusCode};

use crate::headers::Seen;

pub(crate) const COOKIE_NAME: &str = "mesosphere_server_id";

/// The `Set-Cookie` line of a server: a session cookie for the whole site.
pub(crate) fn set_cookie(value: &str) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(format!("{COOKIE_NAME}={value}; path=/")))
        .expect("cookie values are hexadecimal digits")
}

/// Takes the cookie out of a request's headers. `None`: it had none. Of several the first counts.
pub(crate) fn take_cookie(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let is_in =
        |line: &HeaderValue| line.as_bytes().windows(COOKIE_NAME.len()).any(|w| w == COOKIE_NAME.as_bytes());
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
            match value_of(pair) {
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

fn value_of(pair: &[u8]) -> Option<&[u8]> {
    let rest = pair.strip_prefix(COOKIE_NAME.as_bytes())?.trim_ascii_start();
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
            let taken = take_cookie(&mut headers);
            assert_eq!(taken.as_deref(), found.map(str::as_bytes), "{lines:?}");
            let kept: Vec<_> = headers.get_all(COOKIE).iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!(kept, left, "{lines:?}");
        }
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
                &set_cookie("0a"),
                seen,
                &Method::GET,
                StatusCode::from_u16(status).unwrap(),
            );
            assert_eq!(headers.get_all(CACHE_CONTROL).iter().count(), expect, "{status} {header:?}");
            assert_eq!(headers[SET_COOKIE], "mesosphere_server_id=0a; path=/");
        }
    }
}
