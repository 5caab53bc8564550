//! Which backend a request is for: by service port, by host and path, by app id.
//!
//! Rules of one host are tried by weight, then longest path first, then app id: the first whose prefix fits wins. Two
//! services that claim the same are a problem: who has it keeps it, and of two newcomers the older version wins, then
//! the lower id. (A version alone would not do: scaling an app gives it a new one.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use event_watcher::catalog::{Problem, ServiceId};
use foldhash::fast::RandomState;
use imbl::Vector;

use crate::labels::{Case, Mode, PathPrefix};
use crate::table::Backend;

#[derive(Debug, Default)]
pub struct Routes {
    ports: HashMap<u16, usize, RandomState>,
    hosts: HashMap<Box<str>, Box<[Rule]>, RandomState>,
    /// By lower-case app id.
    apps: HashMap<Box<str>, usize, RandomState>,
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

    pub fn hosts(&self) -> impl Iterator<Item = (&str, &[Rule])> {
        self.hosts.iter().map(|(host, rules)| (&**host, &**rules))
    }

    pub fn apps(&self) -> impl Iterator<Item = (&str, usize)> {
        self.apps.iter().map(|(app, backend)| (&**app, *backend))
    }

    /// `host` may be of any case and have a port.
    pub fn of_host(&self, host: &str, path: &str) -> Option<usize> {
        let host = without_port(host);
        let rules = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            self.hosts.get(host.to_ascii_lowercase().as_str())
        } else {
            self.hosts.get(host)
        };
        rules?.iter().find(|rule| rule.fits(path)).map(|rule| rule.backend)
    }

    /// The app's service of mode http with the lowest port.
    pub fn of_app(&self, app: &str) -> Option<usize> {
        if app.bytes().any(|b| b.is_ascii_uppercase()) {
            self.apps.get(app.to_ascii_lowercase().as_str()).copied()
        } else {
            self.apps.get(app).copied()
        }
    }

    pub(crate) fn compile(backends: &Vector<Arc<Backend>>, before: &Self) -> Self {
        let mut routes = Self::default();
        let mut by_age: Vec<usize> = (0..backends.len()).collect();
        by_age.sort_by_key(|i| {
            let backend = &backends[*i];
            (!before.settled.contains(&backend.service), &backend.app_version, &backend.service)
        });
        let mut problems = Vec::new();
        for i in &by_age {
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
        routes.compile_hosts(backends, &by_age, &mut problems);
        routes.settled = backends.iter().map(|backend| backend.service.clone()).collect();
        for (loser, _) in &problems {
            routes.settled.remove(&backends[*loser].service);
        }
        routes.problems = problems.into_iter().map(|(_, problem)| problem).collect();
        routes.problems.sort();
        routes
    }

    fn compile_hosts(
        &mut self,
        backends: &Vector<Arc<Backend>>,
        by_age: &[usize],
        problems: &mut Vec<(usize, Problem)>,
    ) {
        let mut rules: HashMap<&str, Vec<Rule>> = HashMap::new();
        for i in by_age.iter().filter(|i| backends[**i].labels.mode == Mode::Http) {
            let labels = &backends[*i].labels;
            let paths: Vec<Option<PathPrefix>> = match &labels.paths[..] {
                [] => vec![None],
                paths => paths.iter().cloned().map(Some).collect(),
            };
            for (host, path) in labels.vhosts.iter().flat_map(|h| paths.iter().map(move |p| (h, p))) {
                let of_host = rules.entry(host).or_default();
                let same = |r: &&Rule| {
                    r.path == *path && backends[r.backend].labels.weight == labels.weight && r.backend != *i
                };
                if let Some(winner) = of_host.iter().find(same) {
                    let path = path.as_ref().map_or("", |p| &p.prefix);
                    let problem = conflict(
                        &backends[*i],
                        &backends[winner.backend],
                        format!("virtual host {host}{path}"),
                        "give it another host or path, or a higher BACKEND_WEIGHT",
                    );
                    problems.push((*i, problem));
                } else {
                    of_host.push(Rule { path: path.clone(), backend: *i });
                }
            }
        }
        for (host, mut of_host) in rules {
            of_host.sort_by_key(|rule| {
                let path_length = rule.path.as_ref().map_or(0, |p| p.prefix.len());
                let backend = &backends[rule.backend];
                (std::cmp::Reverse((backend.labels.weight, path_length)), rule.backend)
            });
            self.hosts.insert(host.into(), of_host.into());
        }
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
        let rule =
            |prefix: &str, case| Rule { path: Some(PathPrefix { prefix: prefix.into(), case }), backend: 0 };
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
