//! What a service changes in the heads of its requests and responses: headers set, added, removed; paths and locations
//! rewritten.
//!
//! Compiled once per service; a request of a service that edits nothing costs nothing here. What every request gets
//! whatever its labels say (hop-by-hop, forwarded headers) is not here.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};

use crate::access::Scheme;
use crate::http1::serialize::{self, Edits};

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

    /// What is left out of and added to the head of a request.
    pub(crate) fn of_request(&self, connection: &Connection) -> Edits {
        let mut edits = Edits::default();
        if let Some(host) = &self.host {
            edits.remove.push(b"host".as_slice().into());
            serialize::line(&mut edits.add, b"Host", host.as_bytes());
        }
        collect(&self.request, &mut edits, connection);
        edits
    }

    /// The same of a response. `location`: what it has there.
    pub(crate) fn of_response(&self, connection: &Connection, location: Option<&[u8]>) -> Edits {
        let mut edits = Edits::default();
        let moved = location.and_then(|location| self.location.as_ref()?.of(location));
        if let Some(location) = moved {
            edits.remove.push(b"location".as_slice().into());
            serialize::line(&mut edits.add, b"Location", location.as_bytes());
        }
        collect(&self.response, &mut edits, connection);
        edits
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

fn collect(edits: &[Edit], into: &mut Edits, connection: &Connection) {
    for edit in edits {
        let holds = match edit.when {
            When::Always => true,
            When::Tls => connection.scheme == Scheme::Https,
            When::Plain => connection.scheme == Scheme::Http,
        };
        if !holds {
            continue;
        }
        let name = edit.name.as_str().as_bytes();
        match &edit.change {
            Change::Set(value) => {
                into.remove.push(name.into());
                value.write(name, &mut into.add, connection);
            }
            Change::Add(value) => value.write(name, &mut into.add, connection),
            Change::Remove => into.remove.push(name.into()),
        }
    }
}

impl Value {
    fn write(&self, name: &[u8], out: &mut Vec<u8>, connection: &Connection) {
        match self {
            Self::Text(text) => serialize::line(out, name, text.as_bytes()),
            Self::ClientAddress => serialize::address_line(out, name, connection.client.to_canonical()),
            Self::LocalPort => serialize::number_line(out, name, connection.local_port.into()),
        }
    }
}

impl LocationRewrite {
    fn of(&self, location: &[u8]) -> Option<String> {
        let location = std::str::from_utf8(location).ok()?;
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
        Some(match self.tail {
            Tail::Dropped => (*self.path).to_owned(),
            Tail::Kept if is_there && !below.is_empty() => path.to_owned(),
            Tail::Kept => format!("{below}{path}"),
        })
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
        let compiled = edits.of_request(&CONNECTION);
        let removed: Vec<_> = compiled.remove.iter().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(removed, ["host", "x-set", "x-remove", "x-client", "x-port"]);
        assert_eq!(
            String::from_utf8_lossy(&compiled.add),
            "Host: b.test\r\nx-set: 2\r\nx-add: 2\r\nx-client: 10.0.0.1\r\nx-port: 10000\r\n"
        );
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
            let of = |tail| rewrite(tail).of(location.as_bytes());
            assert_eq!(of(Tail::Kept).as_deref(), kept, "{location}");
            assert_eq!(of(Tail::Dropped).as_deref(), dropped, "{location}");
        }
    }
}
