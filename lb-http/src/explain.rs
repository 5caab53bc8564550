//! What a request would reach now, and why: the same decisions as on the request path, told in words.
//!
//! It sends nothing and counts nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use event_watcher::catalog::{AppId, InstanceId, Rotation};
use serde::Serialize;

use crate::access::Scheme;
use crate::labels::Mode;
use crate::table::{Backend, Table};

#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub scheme: Scheme,
    pub host: &'a str,
    pub port: Option<u16>,
    /// Path and query.
    pub target: &'a str,
    /// By this `X-Marathon-App-Id`.
    pub app: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// In the order in which they were taken.
    pub decisions: Vec<String>,
    /// `None`: the answer is 503.
    pub reached: Option<Reached>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reached {
    pub app: AppId,
    pub port_index: usize,
    pub backend: Arc<str>,
    pub balance: String,
    /// What the endpoint is asked for.
    pub target: String,
    pub endpoints: Vec<EndpointView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointView {
    pub instance: InstanceId,
    pub server: Arc<str>,
    pub address: SocketAddr,
    pub rotation: Rotation,
    pub ejected: bool,
}

pub(crate) fn explain(table: &Table, question: &Question<'_>) -> Explanation {
    let mut decisions = Vec::new();
    let index = find(table, question, &mut decisions);
    let reached = index.map(|index| reached(&table.backends[index], question, &mut decisions));
    Explanation { decisions, reached }
}

fn find(table: &Table, question: &Question<'_>, decisions: &mut Vec<String>) -> Option<usize> {
    let path = question.target.split('?').next().unwrap_or_default();
    if let Some(app) = question.app {
        let found = table.routes.of_app(app);
        decisions.push(match found {
            Some(_) => format!("the app id {app} leads to its http service with the lowest port"),
            None => format!("no app {app} is served over HTTP"),
        });
        return found;
    }
    if let Some(port) = question.port
        && let Some(found) = table.routes.of_port(port)
    {
        decisions.push(format!("{port} is a service port: it leads to its app whatever the host and path"));
        return Some(found);
    }
    let passed = || table.routes.of_server_name(Some(&question.host.to_ascii_lowercase()));
    if question.scheme == Scheme::Https
        && let Some(found) = passed()
    {
        let host = question.host;
        decisions
            .push(format!("TLS connections for {host} are passed on as they are to its app in mode tcp"));
        return Some(found);
    }
    let Some(rule) = table.routes.rule_of_host(question.host, path) else {
        decisions.push(format!("no app has the virtual host {} for the path {path}", question.host));
        return None;
    };
    let fits = table.routes.rules().iter().filter(|(_, r)| r.backend == rule.backend);
    let names = fits.map(|(host, r)| match &r.path {
        Some(path) => format!("{host}{}", path.prefix),
        None => host.to_string(),
    });
    let names: Vec<String> = names.collect();
    decisions.push(format!(
        "the virtual host {} leads to the app that has {} (weight {})",
        question.host,
        names.join(", "),
        rule.weight
    ));
    Some(rule.backend)
}

fn reached(backend: &Backend, question: &Question<'_>, decisions: &mut Vec<String>) -> Reached {
    let labels = &backend.labels;
    let admission = &labels.admission;
    for (holds, what) in [
        (!admission.allow.is_empty(), "only some networks are let in"),
        (!admission.deny.is_empty(), "some networks are turned away"),
        (admission.login.is_some(), "a user and password are asked for"),
        (admission.to_https.is_some(), "plain requests are redirected to https"),
        (backend.is_sticky(), "a client with a valid cookie stays with its instance"),
    ] {
        if holds {
            decisions.push(what.to_owned());
        }
    }
    if let Some(tls) = &labels.server_tls {
        decisions.push(format!("its servers are spoken to in {tls}"));
    }
    let rewritten = match labels.mode {
        Mode::Http => labels.edits.rewrite_target(question.target),
        Mode::Tcp => None,
    };
    if let Some(target) = &rewritten {
        decisions.push(format!("the path is rewritten to {target}"));
    }
    if backend.n_healthy == 0 {
        decisions.push(match backend.pool.n_usable() {
            0 => "it has no instance in rotation: the answer is 503".to_owned(),
            n => format!("none of its instances is healthy, so the {n} that run are used"),
        });
    }
    let endpoints = backend.servers.iter().map(|server| EndpointView {
        instance: server.endpoint.instance.clone(),
        server: Arc::clone(&server.name),
        address: server.endpoint.address,
        rotation: server.endpoint.rotation(),
        ejected: server.endpoint.is_ejected(),
    });
    Reached {
        app: backend.service.app.clone(),
        port_index: backend.service.port_index,
        backend: Arc::clone(&backend.name),
        balance: labels.balance.to_string(),
        target: rewritten.unwrap_or_else(|| question.target.to_owned()),
        endpoints: endpoints.collect(),
    }
}
