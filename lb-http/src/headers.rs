//! What a proxy does to headers: hop-by-hop lines go, forwarded lines come.
//!
//! Framing (`Content-Length`, `Transfer-Encoding`) is the message path's; here it is only kept from being named in
//! `Connection`. RFC 9110 section 7.6.1.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, TE,
    TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Which headers a message has, of those that somebody here cares about: found in one pass, because looking each of
/// them up costs more than all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(u16);

impl Seen {
    pub(crate) const CONNECTION: Self = Self(1);
    /// `Keep-Alive`, `Proxy-Connection` or `TE`.
    pub(crate) const HOP: Self = Self(1 << 1);
    pub(crate) const UPGRADE: Self = Self(1 << 2);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 3);
    pub(crate) const COOKIE: Self = Self(1 << 4);
    pub(crate) const EXPECT: Self = Self(1 << 5);
    /// What says for how long a response may be kept, or how to ask whether it still may.
    pub(crate) const CACHING: Self = Self(1 << 6);

    pub(crate) fn of(name: &HeaderName) -> Self {
        match name.as_str() {
            "connection" => Self::CONNECTION,
            "keep-alive" | "proxy-connection" | "te" => Self::HOP,
            "upgrade" => Self::UPGRADE,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "cookie" => Self::COOKIE,
            "expect" => Self::EXPECT,
            "cache-control" | "etag" | "last-modified" | "expires" => Self::CACHING,
            _ => Self::default(),
        }
    }

    pub(crate) fn in_all(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |seen, name| seen.and(Self::of(name)))
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }
}

/// Removes what is meant for the next hop only, and what `Connection` names as such.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, seen: Seen) {
    if seen.has(Seen::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|b| *b == b','))
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            .filter(|name| !is_protected(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if seen.has(Seen::HOP) {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, TE] {
            headers.remove(name);
        }
    }
    if seen.has(Seen::UPGRADE) {
        headers.remove(UPGRADE);
    }
}

/// A peer must not make the proxy forget these by naming them in `Connection`.
fn is_protected(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, COOKIE, SET_COOKIE].contains(name)
        || name.as_str().starts_with("x-forwarded-")
}

/// What the endpoint is told about the client.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) client: HeaderValue,
    pub(crate) port: HeaderValue,
}

impl Forwarded {
    /// The port and the protocol are ours to say; the list of addresses is added to. `X-Forwarded-Proto` of a balancer
    /// before us that ended TLS stays, as with Marathon-LB.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        headers.append(X_FORWARDED_FOR, self.client.clone());
        headers.insert(X_FORWARDED_PORT, self.port.clone());
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_lines_go_and_protected_ones_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One , content-length,@"),
            ("connection", "x-two,cookie,x-forwarded-for"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("content-length", "4"),
            ("cookie", "a=1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let seen = Seen::in_all(&headers);
        remove_hop_by_hop(&mut headers, seen);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "cookie", "x-forwarded-for", "x-three"]);
    }

    #[test]
    fn forwarded_lines() {
        let mut headers = HeaderMap::new();
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("1.2.3.4"));
        headers.append(X_FORWARDED_PORT, HeaderValue::from_static("1"));
        let forwarded =
            Forwarded { client: HeaderValue::from_static("9.9.9.9"), port: HeaderValue::from_static("80") };
        forwarded.apply(&mut headers);
        let all: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(all, ["1.2.3.4", "9.9.9.9"]);
        assert_eq!(
            (&headers[X_FORWARDED_PORT], &headers[X_FORWARDED_PROTO]),
            (&"80".parse().unwrap(), &"http".parse().unwrap())
        );
    }
}
