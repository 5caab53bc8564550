//! Which backend a request is for: by service port, by host and path, by app id; a TLS connection by server name.
//!
//! Rules are tried by weight, then the most exact host, then the longest path, then app id: the first that fits wins.
//! Two services that claim the same are a problem: who has it keeps it, and of two newcomers the older version wins,
//! then the lower id. (A version alone would not do: scaling an app gives it a new one.)

mod server_names;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use event_watcher::catalog::{Problem, ServiceId};
use foldhash::fast::RandomState;
use imbl::Vector;

use crate::labels::{Case, Compat, HostExpression, HostPattern, Listens, Mode, PathPrefix};
use crate::table::Backend;
use server_names::ServerNames;

#[derive(Debug, Default)]
pub struct Routes {
    ports: HashMap<u16, usize, RandomState>,
    /// By exact host: every rule that fits it, those of wildcards too, in order.
    hosts: HashMap<Box<str>, Box<[Rule]>, RandomState>,
    /// By the end of a host, from a dot on: the rules of this and of all shorter ones, in order.
    suffixes: HashMap<Box<str>, Box<[Rule]>, RandomState>,
    /// The rules of every host, in order.
    any: Box<[Rule]>,
    /// In order.
    expressions: Vec<(HostExpression, Rule)>,
    /// By lower-case app id.
    apps: HashMap<Box<str>, usize, RandomState>,
    /// Of services in mode tcp.
    server_names: ServerNames,
    /// Every rule once, in order.
    listing: Vec<(HostPattern, Rule)>,
    pub(crate) problems: Vec<Problem>,
    /// Services that have all that they claim.
    settled: HashSet<ServiceId, RandomState>,
}

/// Leads to a backend by its index in the table.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `None`: every path.
    pub path: Option<PathPrefix>,
    pub backend: usize,
    pub weight: i32,
    /// Among all rules: lower ones are tried first.
    order: u32,
}

impl Rule {
    fn fits(&self, path: &str) -> bool {
        let Some(PathPrefix { prefix, case }) = &self.path else { return true };
        match (path.as_bytes().get(..prefix.len()), case) {
            (Some(begin), Case::Heeded) => begin == prefix.as_bytes(),
            (Some(begin), Case::Ignored) => begin.eq_ignore_ascii_case(prefix.as_bytes()),
            (None, _) => false,
        }
    }
}

impl Routes {
    pub fn of_port(&self, port: u16) -> Option<usize> {
        self.ports.get(&port).copied()
    }

    /// Ports that some service claims, in no order.
    pub fn ports(&self) -> impl Iterator<Item = (u16, usize)> {
        self.ports.iter().map(|(port, backend)| (*port, *backend))
    }

    /// Every rule with the hosts that it is for, in the order in which they are tried.
    pub fn rules(&self) -> &[(HostPattern, Rule)] {
        &self.listing
    }

    pub fn apps(&self) -> impl Iterator<Item = (&str, usize)> {
        self.apps.iter().map(|(app, backend)| (&**app, *backend))
    }

    /// `host` may be of any case and have a port.
    pub fn of_host(&self, host: &str, path: &str) -> Option<usize> {
        self.rule_of_host(host, path).map(|rule| rule.backend)
    }

    /// The rule that decides.
    pub fn rule_of_host(&self, host: &str, path: &str) -> Option<&Rule> {
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            self.rule_of_lower_host(&host.to_ascii_lowercase(), path)
        } else {
            self.rule_of_lower_host(host, path)
        }
    }

    fn rule_of_lower_host(&self, host: &str, path: &str) -> Option<&Rule> {
        let first = |rules: &'_ [Rule]| rules.iter().position(|rule| rule.fits(path));
        let name = without_port(host);
        let with_port = (name.len() != host.len()).then(|| self.hosts.get(host)).flatten();
        // A name that ends in a dot is the same name, fully qualified.
        if let Some(rules) = with_port.or_else(|| self.hosts.get(name.strip_suffix('.').unwrap_or(name))) {
            return first(rules).map(|i| &rules[i]);
        }
        let rules = self.suffix_rules(name).unwrap_or(&self.any);
        let by_name = first(rules).map(|i| &rules[i]);
        let by_expression =
            self.expressions.iter().find(|(e, rule)| e.fits(name) && rule.fits(path)).map(|(_, rule)| rule);
        by_name.into_iter().chain(by_expression).min_by_key(|rule| rule.order)
    }

    /// Of the longest end of the name that has rules.
    fn suffix_rules(&self, name: &str) -> Option<&[Rule]> {
        if self.suffixes.is_empty() {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        ends(name).find_map(|end| self.suffixes.get(end)).map(|rules| &**rules)
    }

    /// The app's service of mode http with the lowest port.
    pub fn of_app(&self, app: &str) -> Option<usize> {
        if app.bytes().any(|b| b.is_ascii_uppercase()) {
            self.apps.get(app.to_ascii_lowercase().as_str()).copied()
        } else {
            self.apps.get(app).copied()
        }
    }

    /// Whether some TLS connections are passed on as they are.
    pub(crate) fn passes_tls(&self) -> bool {
        !self.server_names.is_empty()
    }

    /// Hosts whose TLS is passed on as it is, with their backends.
    pub fn passed_hosts(&self) -> &[(HostPattern, usize)] {
        self.server_names.listing()
    }

    /// The service in mode tcp that a TLS connection is passed on to, by the name that its client asks for, in lower
    /// case. `None`: TLS is ended here.
    pub fn of_server_name(&self, name: Option<&str>) -> Option<usize> {
        self.server_names.find(name)
    }

    pub(crate) fn compile(backends: &Vector<Arc<Backend>>, before: &Self, compat: Compat) -> Self {
        let mut routes = Self::default();
        let mut by_age: Vec<usize> = (0..backends.len()).collect();
        by_age.sort_by_key(|i| {
            let backend = &backends[*i];
            (!before.settled.contains(&backend.service), &backend.app_version, &backend.service)
        });
        let mut problems = Vec::new();
        for i in by_age.iter().filter(|i| backends[**i].labels.listens == Listens::Yes) {
            let port = backends[*i].labels.port;
            let winner = *routes.ports.entry(port).or_insert(*i);
            if winner != *i {
                let problem = conflict(
                    &backends[*i],
                    &backends[winner],
                    format!("service port {port}"),
                    "its virtual hosts and its app id still lead to it; give it another port",
                );
                problems.push((*i, problem));
            }
        }
        for (i, backend) in backends.iter().enumerate().filter(|(_, b)| b.labels.mode == Mode::Http) {
            let app = backend.service.app.as_str().to_ascii_lowercase();
            routes.apps.entry(app.into()).or_insert(i);
        }
        routes.listing = rules(backends, &by_age, &mut problems, compat);
        routes.index_hosts();
        routes.server_names = ServerNames::compile(backends, &by_age, &mut problems);
        routes.settled = backends.iter().map(|backend| backend.service.clone()).collect();
        for (loser, _) in &problems {
            routes.settled.remove(&backends[*loser].service);
        }
        routes.problems = problems.into_iter().map(|(_, problem)| problem).collect();
        routes.problems.sort();
        routes
    }

    /// Puts the ordered rules where a lookup finds them.
    fn index_hosts(&mut self) {
        let mut hosts: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
        let mut suffixes: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
        let (mut any, mut expressions) = (Vec::new(), Vec::new());
        for (pattern, rule) in &self.listing {
            match pattern {
                HostPattern::Exact(host) => hosts.entry(host).or_default().push(rule),
                HostPattern::Suffix(suffix) => suffixes.entry(suffix).or_default().push(rule),
                HostPattern::Expression(expression) => expressions.push((expression.clone(), rule.clone())),
                HostPattern::Any => any.push(rule),
            }
        }
        let in_order = |mut rules: Vec<&Rule>| -> Box<[Rule]> {
            rules.sort_by_key(|rule| rule.order);
            rules.into_iter().cloned().collect()
        };
        let of_ends = |name: &str| -> Vec<&Rule> {
            ends(name).filter_map(|end| suffixes.get(end)).flatten().copied().collect()
        };
        let of_hosts = hosts.iter().map(|(host, own)| {
            let name = without_port(host);
            let of_name = (name.len() != host.len()).then(|| hosts.get(name)).flatten();
            let fitting = expressions.iter().filter(|(e, _)| e.fits(name)).map(|(_, rule)| rule);
            let all = own.iter().chain(of_name.into_iter().flatten()).chain(&any).copied();
            ((*host).into(), in_order(all.chain(of_ends(name)).chain(fitting).collect()))
        });
        let of_hosts = of_hosts.collect();
        let of_suffixes = suffixes.keys().map(|suffix| {
            let all = of_ends(suffix).into_iter().chain(any.iter().copied()).collect();
            ((*suffix).into(), in_order(all))
        });
        let of_suffixes = of_suffixes.collect();
        let of_any = in_order(any);
        (self.hosts, self.suffixes, self.any, self.expressions) =
            (of_hosts, of_suffixes, of_any, expressions);
    }
}

/// `a.b.test` → `.b.test`, `.test`; of `.b.test` itself, too.
fn ends(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[at..])
}

/// Every rule that has no better claim before it, in the order in which they are tried.
#[expect(
    clippy::mutable_key_type,
    reason = "an expression is ordered by its text; what changes in it is a cache"
)]
fn rules(
    backends: &Vector<Arc<Backend>>,
    by_age: &[usize],
    problems: &mut Vec<(usize, Problem)>,
    compat: Compat,
) -> Vec<(HostPattern, Rule)> {
    let mut claims: BTreeMap<(&HostPattern, Option<&PathPrefix>, i32), usize> = BTreeMap::new();
    for i in by_age.iter().filter(|i| backends[**i].labels.mode == Mode::Http) {
        let labels = &backends[*i].labels;
        let paths: Vec<Option<&PathPrefix>> = match &labels.paths[..] {
            [] => vec![None],
            paths => paths.iter().map(Some).collect(),
        };
        for (host, path) in labels.vhosts.iter().flat_map(|h| paths.iter().map(move |p| (h, *p))) {
            let winner = *claims.entry((host, path, labels.weight)).or_insert(*i);
            if winner != *i {
                let path = path.map_or("", |p| &p.prefix);
                let problem = conflict(
                    &backends[*i],
                    &backends[winner],
                    format!("virtual host {host}{path}"),
                    "give it another host or path, or a higher BACKEND_WEIGHT",
                );
                problems.push((*i, problem));
            }
        }
    }
    let mut claims: Vec<_> = claims.into_iter().collect();
    // Marathon-LB writes rules of one weight in the order of apps, whatever their paths.
    claims.sort_by_key(|((host, path, weight), backend)| match compat {
        Compat::None => (Reverse(*weight), rank(host), Reverse(path.map_or(0, |p| p.prefix.len())), *backend),
        Compat::MarathonLb => (Reverse(*weight), (0, Reverse(0)), Reverse(0), *backend),
    });
    let in_order = claims.into_iter().zip(0..).map(|(((host, path, weight), backend), order)| {
        (host.clone(), Rule { path: path.cloned(), backend, weight, order })
    });
    in_order.collect()
}

/// More exact hosts first; of wildcards the longer one.
fn rank(host: &HostPattern) -> (u8, Reverse<usize>) {
    match host {
        HostPattern::Exact(host) => (0, Reverse(host.len())),
        HostPattern::Suffix(suffix) => (1, Reverse(suffix.len())),
        HostPattern::Expression(_) => (2, Reverse(0)),
        HostPattern::Any => (3, Reverse(0)),
    }
}

fn conflict(loser: &Backend, winner: &Backend, what: String, hint: &str) -> Problem {
    Problem {
        app: Some(loser.service.app.clone()),
        at: format!("services[{}]", loser.service.port_index),
        what: format!("{what} is taken by {}", winner.service.app),
        hint: hint.to_owned(),
    }
}

/// The host of a `Host` field value: `[::1]:80` → `[::1]`.
pub fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_cut_off_hosts() {
        for (host, expect) in [
            ("a.test", "a.test"),
            ("a.test:80", "a.test"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), expect);
        }
    }

    #[test]
    fn prefixes_are_of_strings_as_path_beg() {
        let rule = |prefix: &str, case| Rule {
            path: Some(PathPrefix { prefix: prefix.into(), case }),
            backend: 0,
            weight: 0,
            order: 0,
        };
        for (prefix, case, path, expect) in [
            ("/a", Case::Heeded, "/a", true),
            ("/a", Case::Heeded, "/abc", true),
            ("/a", Case::Heeded, "/A", false),
            ("/a", Case::Ignored, "/ABC", true),
            ("/abc", Case::Heeded, "/a", false),
        ] {
            assert_eq!(rule(prefix, case).fits(path), expect, "{prefix} {path}");
        }
    }
}
