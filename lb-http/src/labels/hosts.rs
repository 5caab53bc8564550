//! Virtual hosts and paths as labels name them: exact hosts, wildcards, expressions, prefixes.
//!
//! Which of several that fit a request wins is decided in `route`.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

use super::Compat;
use super::reader::Reader;

/// A host, or several. Lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `a.test`, or `a.test:8080` for requests that name this port.
    Exact(Arc<str>),
    /// `*.a.test`: every host that ends in the text, which begins with a dot.
    Suffix(Arc<str>),
    /// An expression that some part of the host matches.
    Expression(HostExpression),
    /// Every host.
    Any,
}

#[derive(Clone, Debug)]
pub struct HostExpression {
    text: Arc<str>,
    regex: Regex,
}

/// A compiled expression may take this much memory.
const MOST_EXPRESSION_BYTES: usize = 256 * 1024;

impl HostExpression {
    pub fn new(text: &str) -> Option<Self> {
        let mut builder = RegexBuilder::new(text);
        let regex = builder.case_insensitive(true).size_limit(MOST_EXPRESSION_BYTES).build().ok()?;
        Some(Self { text: text.into(), regex })
    }

    pub fn fits(&self, host: &str) -> bool {
        self.regex.is_match(host.as_bytes())
    }
}

impl PartialEq for HostExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for HostExpression {}

impl std::hash::Hash for HostExpression {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for HostExpression {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostExpression {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Expression(expression) => write!(f, "~{}", expression.text),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl HostPattern {
    /// Reads `a.test`, `a.test:8080`, `*.a.test`, `.a.test`, `*`. The ports of HTTP and HTTPS are no part of a name.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.trim().to_ascii_lowercase();
        if lower == "*" {
            return Some(Self::Any);
        }
        if let Some(suffix) = lower.strip_prefix('*').or(lower.starts_with('.').then_some(&*lower)) {
            let name = suffix.strip_prefix('.')?;
            return is_host(name).then(|| Self::Suffix(suffix.into()));
        }
        let host = crate::route::without_port(&lower);
        let port = &lower[host.len()..];
        let is_port = port.is_empty() || port[1..].parse::<u16>().is_ok_and(|p| p > 0);
        if !is_host(host) || !is_port {
            return None;
        }
        Some(Self::Exact(if matches!(port, ":80" | ":443") { host.into() } else { lower.into() }))
    }

    /// The host alone, for patterns that are one.
    pub fn exact_host(&self) -> Option<&str> {
        match self {
            Self::Exact(host) => Some(crate::route::without_port(host)),
            _ => None,
        }
    }
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
        }
    }
}

/// A `path_beg` prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PathPrefix {
    pub prefix: Arc<str>,
    pub case: Case,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Case {
    Heeded,
    Ignored,
}

impl Reader<'_> {
    /// `VHOST`, separated by commas; each once.
    pub(super) fn hosts(&mut self) -> Vec<HostPattern> {
        let Some(text) = self.text("VHOST") else { return Vec::new() };
        let mut hosts: Vec<HostPattern> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let is_literal = self.compat() == Compat::MarathonLb && part.starts_with(['*', '.']);
            match HostPattern::parse(part) {
                Some(_) if is_literal => self.problem(
                    "VHOST",
                    format!("{part:?} is no wildcard to Marathon-LB and fits no request"),
                    "it is left out",
                ),
                Some(host) if hosts.contains(&host) => {}
                Some(host) => hosts.push(host),
                None => {
                    self.problem("VHOST", format!("{part:?} is not a host name"), "it is left out");
                }
            }
        }
        hosts
    }

    /// `PATH`, separated by blanks; `-i` in front: whatever the case.
    pub(super) fn paths(&mut self) -> Vec<PathPrefix> {
        let Some(text) = self.text("PATH") else { return Vec::new() };
        let (paths, refused) = parse_paths(text);
        for word in refused {
            self.problem("PATH", format!("{word:?} does not begin with a slash"), "it is left out");
        }
        paths
    }
}

pub(super) fn parse_paths(text: &str) -> (Vec<PathPrefix>, Vec<&str>) {
    let mut case = Case::Heeded;
    let (mut paths, mut refused) = (Vec::new(), Vec::new());
    for word in text.split_whitespace() {
        if word == "-i" {
            case = Case::Ignored;
        } else if word.starts_with('/') {
            paths.push(PathPrefix { prefix: word.into(), case });
        } else {
            refused.push(word);
        }
    }
    (paths, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        for (text, expect) in [
            ("A.Test", Some("a.test")),
            (" a.test ", Some("a.test")),
            ("a.test:80", Some("a.test")),
            ("a.test:443", Some("a.test")),
            ("a.test:8080", Some("a.test:8080")),
            ("[FD00::1]", Some("[fd00::1]")),
            ("[fd00::1]:8080", Some("[fd00::1]:8080")),
            ("*.A.test", Some("*.a.test")),
            (".a.test", Some("*.a.test")),
            ("*", Some("*")),
            ("", None),
            ("*a.test", None),
            ("*.", None),
            ("a.*.test", None),
            ("a.test:", None),
            ("a.test:x", None),
            ("a.test:0", None),
            ("<script>", None),
            ("[::g]", None),
        ] {
            let read = HostPattern::parse(text).map(|p| p.to_string());
            assert_eq!(read.as_deref(), expect, "{text:?}");
        }
    }

    #[test]
    fn expressions_match_whatever_the_case() {
        let expression = HostExpression::new(r"^(a|b)[0-9]+\.test$").unwrap();
        assert!(expression.fits("A12.test") && !expression.fits("c1.test"));
        assert!(HostExpression::new("(").is_none());
        assert!(HostExpression::new("(a{1000}){1000}").is_none(), "too large");
    }
}
