//! What a snapshot compiles to: backends with their servers, and the routes that lead to them.
//!
//! A table never changes; live state (requests in flight, ejection, counters) is shared with the table before it.
//! Reading order: this file (the table), `backend` (one service and its servers), `compile` (from one snapshot to the
//! next: what changed is compiled anew), `compile_backend` (one service). Who listens where is not decided here.

mod backend;
mod compile;
mod compile_backend;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use event_watcher::catalog::{Generation, Problem, ServiceId};
use imbl::Vector;

pub use backend::{Backend, Server, ServerCookie, ServerStatus, TcpCounters};
pub use compile::Compiler;
pub(crate) use compile::UnitId;
pub use standing::Standing;

use crate::labels::{HostPattern, Mode};
use crate::route::Routes;
use crate::tls::{HostPolicy, Policies};

#[derive(Debug)]
pub struct Table {
    pub generation: Generation,
    /// By app id, then port. Routes hold indices into it.
    pub backends: Vector<Arc<Backend>>,
    pub routes: Arc<Routes>,
    /// What is wrong with labels and routes, by app.
    pub problems: Arc<[Problem]>,
    /// Backends whose servers the balancer probes itself.
    pub(crate) probed: Probed,
    /// Host names of static servers that nobody here knows: to be looked up.
    pub(crate) unknown_names: BTreeSet<Arc<str>>,
    /// Backends whose endpoints or maximum may be others than before, where requests may wait for them.
    pub(crate) awaited: Vec<Arc<Backend>>,
}

/// By unit and port index.
pub(crate) type Probed = imbl::OrdMap<(UnitId, usize), Arc<Backend>>;

/// Addresses of host names that were looked up.
pub(crate) type Names = BTreeMap<Arc<str>, IpAddr>;

impl Table {
    /// What virtual hosts and service ports ask of TLS, and what is asked of servers.
    pub(crate) fn tls_policies(&self) -> Policies {
        let mut policies = Policies::default();
        for (index, backend) in self.backends.iter().enumerate() {
            let labels = &backend.labels;
            policies.to_servers.extend(labels.server_tls.iter().map(|tls| tls.verify.clone()));
            if !labels.tls.certificates.is_empty() && self.routes.of_port(labels.port) == Some(index) {
                policies.of_ports.insert(labels.port, labels.tls.clone());
            }
            if labels.mode != Mode::Http || labels.tls == HostPolicy::default() {
                continue;
            }
            let hosts = labels.vhosts.iter().filter_map(|host| match host {
                HostPattern::Exact(host) => Some(Box::from(crate::route::without_port(host))),
                HostPattern::Suffix(suffix) => Some(format!("*{suffix}").into()),
                HostPattern::Expression(_) | HostPattern::Any => None,
            });
            for host in hosts {
                // Services may share a host by paths. The first one's policy holds, unless another asks its clients for
                // certificates: nobody gets around that by a neighbour.
                let policy = policies.of_hosts.entry(host).or_insert_with(|| labels.tls.clone());
                if policy.client_auth.is_none() && labels.tls.client_auth.is_some() {
                    policy.clone_from(&labels.tls);
                }
            }
        }
        policies
    }

    pub fn backend(&self, service: &ServiceId) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|b| b.service == *service)
    }
}

#[cfg(test)]
mod tests;
