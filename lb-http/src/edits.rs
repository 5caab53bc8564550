//! What a service changes in the heads of its requests and responses: headers set, added, removed; paths and locations
//! rewritten.
//!
//! Values are compiled once; applying an edit copies a counted reference. What every request gets whatever its labels
//! say (hop-by-hop, forwarded headers) is not here.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, LOCATION};

use crate::access::Scheme;

/// Empty: heads stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadEdits {
    pub forwarding: Forwarding,
    pub request: Vec<Edit>,
    pub response: Vec<Edit>,
    /// Cut off request paths (`HTTP_BACKEND_PROXYPASS_PATH`).
    pub strip_prefix: Option<Arc<str>>,
    /// The `Host` that endpoints are told.
    pub host: Option<HeaderValue>,
    pub location: Option<LocationRewrite>,
}

/// Who says `X-Forwarded-For`, `-Port` and `-Proto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// The balancer, all three.
    #[default]
    Standard,
    /// Only the edits.
    ByEdits,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    pub change: Change,
    pub name: HeaderName,
    pub when: When,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Set(Value),
    Add(Value),
    Remove,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(HeaderValue),
    ClientAddress,
    /// The port that the client connected to.
    LocalPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// The client came over TLS.
    Tls,
    Plain,
}

/// Absolute locations on one of these hosts, and paths, are moved below a path (`HTTP_BACKEND_REVPROXY_PATH`).
#[derive(Clone, Debug, PartialEq)]
pub struct LocationRewrite {
    pub path: Arc<str>,
    /// Lower case, without port.
    pub hosts: Vec<Arc<str>>,
    pub tail: Tail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Kept,
    /// As Marathon-LB's template, which loses it.
    Dropped,
}

/// What values depend on.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub scheme: Scheme,
    pub client: IpAddr,
    pub local_port: u16,
}

impl HeadEdits {
    /// Heads stay as every service has them.
    pub fn is_plain(&self) -> bool {
        self.forwarding == Forwarding::Standard
            && self.request.is_empty()
            && self.response.is_empty()
            && self.strip_prefix.is_none()
            && self.host.is_none()
            && self.location.is_none()
    }

    pub fn edit_request(&self, headers: &mut HeaderMap, connection: &Connection) {
        if let Some(host) = &self.host {
            headers.insert(HOST, host.clone());
        }
        apply(&self.request, headers, connection);
    }

    pub fn edit_response(&self, headers: &mut HeaderMap, connection: &Connection) {
        if let Some(rewrite) = &self.location
            && let Some(location) = headers.get(LOCATION).and_then(|l| rewrite.of(l))
        {
            headers.insert(LOCATION, location);
        }
        apply(&self.response, headers, connection);
    }

    /// The target (path and query) that the endpoint is asked for, when it is another one. The prefix is found
    /// whatever its case, and one slash is left, as with Marathon-LB's `reqirep`.
    pub fn rewrite_target(&self, target: &str) -> Option<String> {
        let prefix = self.strip_prefix.as_deref()?;
        let (begin, rest) = target.split_at_checked(prefix.len())?;
        if !begin.eq_ignore_ascii_case(prefix) {
            return None;
        }
        Some(format!("/{}", rest.strip_prefix('/').unwrap_or(rest)))
    }
}

fn apply(edits: &[Edit], headers: &mut HeaderMap, connection: &Connection) {
    for edit in edits {
        let holds = match edit.when {
            When::Always => true,
            When::Tls => connection.scheme == Scheme::Https,
            When::Plain => connection.scheme == Scheme::Http,
        };
        if !holds {
            continue;
        }
        match &edit.change {
            Change::Set(value) => {
                headers.insert(edit.name.clone(), value.of(connection));
            }
            Change::Add(value) => {
                headers.append(edit.name.clone(), value.of(connection));
            }
            Change::Remove => {
                headers.remove(&edit.name);
            }
        }
    }
}

impl Value {
    fn of(&self, connection: &Connection) -> HeaderValue {
        match self {
            Self::Text(text) => text.clone(),
            Self::ClientAddress => HeaderValue::try_from(connection.client.to_canonical().to_string())
                .expect("an address is printable"),
            Self::LocalPort => HeaderValue::from(connection.local_port),
        }
    }
}

impl LocationRewrite {
    fn of(&self, location: &HeaderValue) -> Option<HeaderValue> {
        let location = location.to_str().ok()?;
        let path = match location.split_once("://") {
            Some(("http" | "https", rest)) => {
                let (authority, path) = rest.split_at(rest.find('/')?);
                let host = crate::route::without_port(authority);
                self.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)).then_some(path)?
            }
            // `//host/path` is another host's.
            _ if location.starts_with('/') && !location.starts_with("//") => location,
            _ => return None,
        };
        let below = self.path.trim_end_matches('/');
        let is_there = path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let moved = match self.tail {
            Tail::Dropped => (*self.path).to_owned(),
            Tail::Kept if is_there && !below.is_empty() => path.to_owned(),
            Tail::Kept => format!("{below}{path}"),
        };
        HeaderValue::try_from(moved).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTION: Connection = Connection {
        scheme: Scheme::Http,
        client: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        local_port: 10000,
    };

    #[test]
    fn headers_are_set_added_and_removed_on_their_condition() {
        let edit =
            |change, name: &'static str, when| Edit { change, name: HeaderName::from_static(name), when };
        let text = |t: &'static str| Value::Text(HeaderValue::from_static(t));
        let edits = HeadEdits {
            request: vec![
                edit(Change::Set(text("2")), "x-set", When::Always),
                edit(Change::Add(text("2")), "x-add", When::Plain),
                edit(Change::Add(text("3")), "x-add", When::Tls),
                edit(Change::Remove, "x-remove", When::Always),
                edit(Change::Set(Value::ClientAddress), "x-client", When::Always),
                edit(Change::Set(Value::LocalPort), "x-port", When::Always),
            ],
            host: Some(HeaderValue::from_static("b.test")),
            ..HeadEdits::default()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "a.test"), ("x-set", "1"), ("x-add", "1"), ("x-remove", "1")] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        edits.edit_request(&mut headers, &CONNECTION);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        for (name, expect) in [
            ("host", &["b.test"][..]),
            ("x-set", &["2"]),
            ("x-add", &["1", "2"]),
            ("x-remove", &[]),
            ("x-client", &["10.0.0.1"]),
            ("x-port", &["10000"]),
        ] {
            assert_eq!(all(name), expect, "{name}");
        }
    }

    #[test]
    fn prefixes_are_cut_off_targets() {
        let edits = HeadEdits { strip_prefix: Some("/api".into()), ..HeadEdits::default() };
        for (target, expect) in [
            ("/api/v1?x=/api", Some("/v1?x=/api")),
            ("/API", Some("/")),
            ("/apis", Some("/s")),
            ("/api?x", Some("/?x")),
            ("/ap", None),
            ("/x/api", None),
        ] {
            assert_eq!(edits.rewrite_target(target).as_deref(), expect, "{target}");
        }
    }

    #[test]
    fn locations_are_moved_below_a_path() {
        let rewrite = |tail| LocationRewrite { path: "/app/".into(), hosts: vec!["a.test".into()], tail };
        for (location, kept, dropped) in [
            ("/login?x", Some("/app/login?x"), Some("/app/")),
            ("http://A.test:8080/login", Some("/app/login"), Some("/app/")),
            ("https://b.test/login", None, None),
            ("/app/login", Some("/app/login"), Some("/app/")),
            ("/apple", Some("/app/apple"), Some("/app/")),
            ("//b.test/x", None, None),
            ("login", None, None),
            ("http://a.test", None, None),
        ] {
            let value = HeaderValue::from_static(location);
            let of = |tail| rewrite(tail).of(&value).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(of(Tail::Kept).as_deref(), kept, "{location}");
            assert_eq!(of(Tail::Dropped).as_deref(), dropped, "{location}");
        }
    }
}
