//! Template labels: HAProxy's own configuration text. The idioms that people use are understood and mapped; a line that
//! is not is named as a problem and has no effect.
//!
//! A template replaces what Marathon-LB would have written, so one that leaves a default line out switches it off:
//! headers that `BACKEND_HTTP_OPTIONS` does not set are not set.

mod backend;
mod bind;
mod frontend;
mod lines;

use std::collections::BTreeMap;

use super::reader::Reader;
use super::{HostPattern, Listens, PathPrefix, ServiceLabels};
use crate::edits::Forwarding;
use backend::{PER_INSTANCE, Understood};
use lines::{Line, fill, lines};

pub(super) use frontend::FRONTEND_RULES;

/// Read line by line; in the order in which Marathon-LB puts a backend together.
pub(super) const BACKEND_TEMPLATES: &[&str] = &[
    "BACKEND_HEAD",
    "BACKEND_HTTP_OPTIONS",
    "BACKEND_STICKY_OPTIONS",
    "BACKEND_HSTS_OPTIONS",
    "BACKEND_HTTP_HEALTHCHECK_OPTIONS",
    "BACKEND_TCP_HEALTHCHECK_OPTIONS",
    "BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS",
    "BACKEND_SERVER_TCP_HEALTHCHECK_OPTIONS",
    "BACKEND_SERVER_OPTIONS",
];
/// Parts of frontends and backends that are not taken apart: reported by name.
pub(super) const OPAQUE_TEMPLATES: &[&str] = &[
    "BACKEND_REDIRECT_HTTP_TO_HTTPS",
    "BACKEND_REDIRECT_HTTP_TO_HTTPS_WITH_PATH",
    "HTTP_BACKEND_PROXYPASS_GLUE",
    "HTTP_BACKEND_REVPROXY_GLUE",
    "HTTP_BACKEND_NETWORK_ALLOWED_ACL",
    "TCP_BACKEND_NETWORK_ALLOWED_ACL",
    "USERLIST_HEAD",
    "HTTP_FRONTEND_APPID_ACL",
    "MAP_HTTP_FRONTEND_ACL",
    "MAP_HTTP_FRONTEND_ACL_ONLY",
    "MAP_HTTPS_FRONTEND_ACL",
    "MAP_HTTP_FRONTEND_APPID_ACL",
    "HTTPS_FRONTEND_AUTH_ACL_ONLY",
    "HTTPS_FRONTEND_AUTH_REQUEST_ONLY",
    "HTTPS_FRONTEND_ROUTING_ONLY_WITH_PATH_AND_AUTH",
];
/// Of the configuration as a whole; as labels they have no effect, with Marathon-LB neither.
pub(super) const GLOBAL_TEMPLATES: &[&str] = &[
    "HEAD",
    "HTTP_FRONTEND_HEAD",
    "HTTPS_FRONTEND_HEAD",
    "HTTP_FRONTEND_APPID_HEAD",
    "HTTPS_GROUPED_FRONTEND_HEAD",
    "HTTPS_GROUPED_VHOST_FRONTEND_HEAD",
    "HTTPS_GROUPED_VHOST_BACKEND_HEAD",
    "HTTPS_GROUPED_VHOST_FRONTEND_ACL",
    "HTTP_BACKEND_ACL_ALLOW_DENY",
    "TCP_BACKEND_ACL_ALLOW_DENY",
];
/// The listener of the service port.
pub(super) const LISTENER_TEMPLATES: &[&str] = &["FRONTEND_HEAD", "FRONTEND_BACKEND_GLUE"];

const NOT_UNDERSTOOD: &str = "the line has no effect; docs/from-marathon-lb.md lists what is understood";

pub(super) fn apply(reader: &mut Reader<'_>, labels: &mut ServiceLabels) {
    listener(reader, labels);
    for key in BACKEND_TEMPLATES {
        backend(reader, labels, key);
    }
    frontend::apply(reader, labels);
    for key in OPAQUE_TEMPLATES {
        if reader.find(key).is_some() {
            let what = "this template is not taken apart and has no effect".to_owned();
            reader.problem(key, what, "docs/from-marathon-lb.md says what to use instead");
        }
    }
    for key in GLOBAL_TEMPLATES {
        if reader.find(key).is_some() {
            let what = "this template is not for one app and has no effect as a label".to_owned();
            reader.problem(key, what, "the configuration file and flags have what it is used for");
        }
    }
    bind::options(reader, labels);
}

/// An empty frontend closes the service port.
fn listener(reader: &mut Reader<'_>, labels: &mut ServiceLabels) {
    for key in LISTENER_TEMPLATES {
        let Some(text) = reader.text(key) else { continue };
        if text.trim().is_empty() {
            labels.listens = Listens::No;
            continue;
        }
        let mut acls = Acls::default();
        for line in filled(reader, labels, key) {
            let understood = match &line.slice()[..] {
                ["frontend" | "bind" | "use_backend" | "default_backend", ..] => Understood::Yes,
                words => backend::line(words, labels, &mut acls),
            };
            report(reader, key, &line, understood);
        }
    }
}

fn backend(reader: &mut Reader<'_>, labels: &mut ServiceLabels, key: &str) {
    let Some(text) = reader.text(key) else { return };
    let is_of_check = key.contains("SERVER_") && key.contains("HEALTHCHECK");
    let is_of_mode = match key.contains("_TCP_") {
        true => labels.mode == super::Mode::Tcp,
        false => !key.contains("_HTTP_") || labels.mode == super::Mode::Http,
    };
    if !is_of_mode {
        return;
    }
    if is_of_check && text.trim().is_empty() {
        labels.check = None;
        return;
    }
    let before = labels.edits.request.len();
    if key == "BACKEND_HTTP_OPTIONS" {
        labels.edits.forwarding = Forwarding::ByEdits;
    }
    if key == "BACKEND_HSTS_OPTIONS" {
        if labels.edits.response.is_empty() {
            return;
        }
        labels.edits.response.clear();
    }
    if key == "BACKEND_STICKY_OPTIONS" && !backend::is_sticky(labels) {
        return;
    }
    let mut acls = Acls::default();
    for line in filled(reader, labels, key) {
        let understood = backend::line(&line.slice(), labels, &mut acls);
        report(reader, key, &line, understood);
    }
    debug_assert!(labels.edits.request.len() >= before, "templates only add request edits");
}

/// The template's lines with its placeholders filled in.
fn filled(reader: &mut Reader<'_>, labels: &ServiceLabels, key: &str) -> Vec<Line> {
    let text = reader.text(key).unwrap_or_default().replace("\r\n", "\n");
    let name = crate::names::backend(&reader.app().id, labels.port);
    let path = labels.check.as_ref().and_then(|check| match &check.kind {
        super::CheckKind::Http { path, .. } => Some(path.to_string()),
        super::CheckKind::Tcp => None,
    });
    let check = labels.check.clone();
    let value = |placeholder: &str| -> Option<String> {
        Some(match placeholder {
            "backend" => name.clone(),
            "balance" => labels.balance.to_string(),
            "mode" => if labels.mode == super::Mode::Http { "http" } else { "tcp" }.to_owned(),
            "servicePort" => labels.port.to_string(),
            "appId" => reader.app().id.to_string(),
            "bindAddr" => "*".to_owned(),
            "serverName" | "host" | "host_ipv4" | "port" | "serverId" => PER_INSTANCE.to_owned(),
            "cookieOptions"
            | "healthCheckOptions"
            | "otherOptions"
            | "bindOptions"
            | "sslCerts"
            | "healthCheckPortOptions" => String::new(),
            "healthCheckPath" => path.clone().unwrap_or_else(|| "/".to_owned()),
            "healthCheckPort" | "healthCheckPortIndex" => PER_INSTANCE.to_owned(),
            "healthCheckProtocol" => "HTTP".to_owned(),
            "healthCheckTimeoutSeconds" => check.as_ref().map_or(20, |c| c.timeout.as_secs()).to_string(),
            "healthCheckIntervalSeconds" => check.as_ref().map_or(60, |c| c.interval.as_secs()).to_string(),
            "healthCheckGracePeriodSeconds" => check.as_ref().map_or(300, |c| c.grace.as_secs()).to_string(),
            "healthCheckFalls" => check.as_ref().map_or(4, |c| c.fall).to_string(),
            "healthCheckMaxConsecutiveFailures" => {
                check.as_ref().map_or(3, |c| c.fall.saturating_sub(1)).to_string()
            }
            _ => return None,
        })
    };
    match fill(&text, value) {
        Ok(text) => lines(&text),
        Err(placeholder) => {
            let what = format!("{{{placeholder}}} is no placeholder of this template");
            reader.problem(key, what, "the template has no effect");
            Vec::new()
        }
    }
}

fn report(reader: &mut Reader<'_>, key: &str, line: &Line, understood: Understood) {
    if understood == Understood::No {
        let text = line.text.replace(PER_INSTANCE, "…");
        reader.problem(key, format!("{text:?} is not understood"), NOT_UNDERSTOOD);
    }
}

/// Tests that a template names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Acl {
    Hosts(Vec<HostPattern>),
    Paths(Vec<PathPrefix>),
    /// `X-Forwarded-Proto: https`.
    ForwardedHttps,
    Tls,
}

#[derive(Debug, Default)]
struct Acls(BTreeMap<String, Vec<Acl>>);

impl Acls {
    fn get(&self, name: &str) -> Option<&Acl> {
        self.0.get(name)?.first()
    }

    fn all(&self, name: &str) -> &[Acl] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Lines of one name are alternatives.
    fn define(&mut self, name: &str, words: &[&str]) -> Option<()> {
        let acl = frontend::acl(words)?;
        self.0.entry(name.to_owned()).or_default().push(acl);
        Some(())
    }
}

#[cfg(test)]
mod tests;
