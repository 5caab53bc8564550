//! Which TLS connections are passed on to a service in mode tcp: by the server name that the client asks for.
//!
//! The most exact name decides, whether a service in mode tcp or one in mode http has it. Only who may have a name is
//! decided here; rules of paths are for requests.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use event_watcher::catalog::Problem;
use foldhash::HashMap;
use imbl::Vector;

use super::{conflict, ends, without_port};
use crate::labels::{HostExpression, HostPattern, Mode};
use crate::table::Backend;

/// Empty unless some service in mode tcp has a host.
#[derive(Debug, Default)]
pub(super) struct ServerNames {
    exact: HashMap<Box<str>, Way>,
    /// By the end of a name, from a dot on.
    suffixes: HashMap<Box<str>, Way>,
    expressions: Vec<(HostExpression, Way)>,
    any: Option<Way>,
    listing: Vec<(HostPattern, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its TLS is ended here.
    Ended,
    /// To the backend of this index.
    Passed(usize),
}

impl ServerNames {
    pub(super) fn is_empty(&self) -> bool {
        self.listing.is_empty()
    }

    /// Every name that is passed on, with its backend.
    pub(super) fn listing(&self) -> &[(HostPattern, usize)] {
        &self.listing
    }

    /// The backend that a connection is passed on to; `None`: its TLS is ended here. `name` is in lower case.
    pub(super) fn find(&self, name: Option<&str>) -> Option<usize> {
        let of_name = name.and_then(|name| {
            let name = name.strip_suffix('.').unwrap_or(name);
            let exact = self.exact.get(name).copied();
            let by_end = || ends(name).find_map(|end| self.suffixes.get(end).copied());
            let by_expression = || self.expressions.iter().find(|(e, _)| e.fits(name)).map(|(_, way)| *way);
            exact.or_else(by_end).or_else(by_expression)
        });
        match of_name.or(self.any)? {
            Way::Ended => None,
            Way::Passed(index) => Some(index),
        }
    }

    /// `by_age`: whose claim comes first. An app's own port in mode tcp goes before its ports in mode http.
    #[expect(
        clippy::mutable_key_type,
        reason = "an expression is ordered by its text; what changes in it is a cache"
    )]
    pub(super) fn compile(
        backends: &Vector<Arc<Backend>>,
        by_age: &[usize],
        problems: &mut Vec<(usize, Problem)>,
    ) -> Self {
        let mut names = Self::default();
        if !backends.iter().any(|b| b.labels.mode == Mode::Tcp && !b.labels.vhosts.is_empty()) {
            return names;
        }
        let mut claims: BTreeMap<HostPattern, usize> = BTreeMap::new();
        for i in by_age {
            for host in &backends[*i].labels.vhosts {
                match claims.entry(portless(host)) {
                    Entry::Vacant(free) => drop(free.insert(*i)),
                    Entry::Occupied(mut taken) => {
                        let (own, holder) = (&backends[*i], &backends[*taken.get()]);
                        let is_one_app = own.service.app == holder.service.app;
                        match (own.labels.mode, holder.labels.mode) {
                            (Mode::Http, Mode::Http) => {}
                            (Mode::Http, Mode::Tcp) if is_one_app => {}
                            (Mode::Tcp, Mode::Http) if is_one_app => drop(taken.insert(*i)),
                            _ => {
                                let what = format!("TLS of the virtual host {host}");
                                let hint = "give it another host; one of mode tcp has the TLS of its hosts passed on";
                                problems.push((*i, conflict(own, holder, what, hint)));
                            }
                        }
                    }
                }
            }
        }
        for (host, index) in claims {
            let way = match backends[index].labels.mode {
                Mode::Http => Way::Ended,
                Mode::Tcp => {
                    names.listing.push((host.clone(), index));
                    Way::Passed(index)
                }
            };
            match host {
                HostPattern::Exact(host) => drop(names.exact.insert((*host).into(), way)),
                HostPattern::Suffix(suffix) => drop(names.suffixes.insert((*suffix).into(), way)),
                HostPattern::Expression(expression) => names.expressions.push((expression, way)),
                HostPattern::Any => names.any = Some(way),
            }
        }
        names
    }
}

/// A server name has no port.
fn portless(host: &HostPattern) -> HostPattern {
    match host {
        HostPattern::Exact(host) => HostPattern::Exact(without_port(host).into()),
        other => other.clone(),
    }
}
