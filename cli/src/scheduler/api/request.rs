//! What a request addresses: the path made plain, the query, and whether this server is meant at all.
//!
//! Not here: which paths exist (`api`).

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN};

/// A path without its prefix, doubled, trailing and encoded slashes; query pairs in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub segments: Vec<String>,
    pub query: Vec<(String, String)>,
}

impl Target {
    pub fn of(uri: &http::Uri) -> Self {
        let path = decode(uri.path());
        let mut segments: Vec<String> =
            path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        if segments.len() >= 2 && segments[0] == "service" && segments[1] == "marathon" {
            segments.drain(..2);
        }
        let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Self { segments, query: query.into_owned().collect() }
    }

    pub fn first(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// A flag as clients write it: `true`, `True`, or the bare name.
    pub fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.first(key).map_or(default, |value| value.is_empty() || value.eq_ignore_ascii_case("true"))
    }
}

fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = bytes.get(index + 1..index + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[index] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Who can reach this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Loopback,
    Network,
}

/// Whether the request is addressed to this server by a name of its own. A page whose DNS name was turned to
/// this machine sends its own name instead; no page can make a browser send an address as the name.
pub fn is_addressed_to_us(headers: &HeaderMap, names: &[String], reach: Reach) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) => is_our_name(host, names, reach),
        _ => false,
    }
}

/// Whether a browser sent the request for a page of another origin.
pub fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let own = headers.get(HOST).and_then(|host| host.to_str().ok());
    let scheme_less = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
    scheme_less.is_none() || scheme_less != own
}

fn is_our_name(host: &str, names: &[String], reach: Reach) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| reach == Reach::Network || address.is_loopback())
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_clients_write_them() {
        for (uri, expect) in [
            ("/v2/apps//dcos-101/app2", "v2 apps dcos-101 app2"),
            ("/v2/apps/x/?force=true", "v2 apps x"),
            ("/service/marathon/v2/apps", "v2 apps"),
            ("/service/marathon//v2/apps/%2Fa%2Fb", "v2 apps a b"),
            ("/v2/apps/a%zz", "v2 apps a%zz"),
            ("/", ""),
        ] {
            let target = Target::of(&uri.parse().expect("a URI"));
            assert_eq!(target.segments.join(" "), expect, "{uri}");
        }
    }

    #[test]
    fn flags_as_clients_write_them() {
        for (query, expect) in
            [("force=True", true), ("force=true", true), ("force", true), ("force=False", false), ("", false)]
        {
            let target = Target::of(&format!("/x?{query}").parse().expect("a URI"));
            assert_eq!(target.flag("force"), expect, "{query}");
        }
    }

    #[test]
    fn only_own_names() {
        let names = ["marathon.mesos".to_owned()];
        for (host, expect) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("marathon.mesos:8080", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("192.168.0.1", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, host.parse().expect("a value"))]);
            assert_eq!(is_addressed_to_us(&headers, &names, Reach::Loopback), expect, "{host}");
            let is_address = host == "192.168.0.1";
            assert_eq!(is_addressed_to_us(&headers, &names, Reach::Network), expect || is_address, "{host}");
        }
        assert!(!is_addressed_to_us(&HeaderMap::new(), &names, Reach::Loopback));
    }

    #[test]
    fn foreign_origins() {
        for (origin, site, expect) in [
            (None, None, false),
            (Some("http://localhost:8080"), None, false),
            (Some("http://localhost:8080"), Some("same-origin"), false),
            (Some("http://localhost:9090"), None, true),
            (Some("https://localhost:8080"), None, true),
            (Some("http://evil.example"), None, true),
            (Some("null"), None, true),
            (None, Some("cross-site"), true),
            (None, Some("same-site"), true),
            (None, Some("none"), false),
        ] {
            let mut headers = HeaderMap::from_iter([(HOST, "localhost:8080".parse().expect("a value"))]);
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().expect("a value"));
            }
            if let Some(site) = site {
                headers.insert("sec-fetch-site", site.parse().expect("a value"));
            }
            assert_eq!(is_cross_site(&headers), expect, "{origin:?} {site:?}");
        }
    }
}
