//! Every label key that the balancer knows, with what it does; names that it does not know.
//!
//! It reads no value: that is `read`'s, and what is wrong with values is told there.

use event_watcher::catalog::{App, Problem};

use super::reader::{Family, LabelName};
use super::templates::{
    BACKEND_TEMPLATES, FRONTEND_RULES, GLOBAL_TEMPLATES, LISTENER_TEMPLATES, OPAQUE_TEMPLATES,
};
use super::{Compat, Reading};

/// Keys with a value, per service port or for all of them.
const VALUES: &[(&str, &str)] = &[
    ("ACCESS_LOG", "whether the access log has lines of its requests: on, off or 1/N"),
    ("ACCEPT_PROXY", "connections to the service port begin with a PROXY protocol header"),
    ("ALLOW", "only these client networks are let in"),
    ("AUTH", "asks for a user and password (realm:user:hash)"),
    ("BACKEND_HEALTHCHECK_PORT_INDEX", "the port whose health check counts for this one"),
    ("BACKEND_NETWORK_ALLOWED_ACL", "only these client networks are let in"),
    ("BACKEND_WEIGHT", "the order of rules of one host: higher first"),
    ("BALANCE", "how an endpoint is chosen"),
    ("BIND_ADDR", "the address that the service port is opened on"),
    ("BIND_OPTIONS", "HAProxy's options of the service port's listener"),
    ("CHECK", "off: the balancer does not probe the instances itself"),
    ("CLIENT_CA", "who must have signed the certificates of TLS clients"),
    ("DENY", "these client networks are turned away"),
    ("ENABLED", "whether this port is served"),
    ("GROUP", "the balancers that serve it"),
    ("HTTP_BACKEND_PROXYPASS_PATH", "cut off the path before the request is passed on"),
    ("HTTP_BACKEND_REDIR", "where a request for / is redirected"),
    ("HTTP_BACKEND_REVPROXY_PATH", "put in front of the paths in Location"),
    (
        "MAXCONN_INSTANCE",
        "how many requests (mode tcp: connections) an instance may have at once; the rest goes to others or waits",
    ),
    ("MODE", "http or tcp"),
    ("PANIC", "whether running instances are used when none is healthy"),
    ("PATH", "path prefixes that lead to it"),
    ("PORT", "the service port, instead of the scheduler's"),
    ("QUEUE", "how many requests may wait for room at an instance"),
    ("REDIRECT_TO_HTTPS", "plain requests by virtual host are redirected to https"),
    ("REQUIRE", "what an instance must be to get requests: running, healthy or ready"),
    ("SEND_PROXY", "connections to endpoints begin with a PROXY protocol header (v1 or v2)"),
    ("SSL_CERT", "the certificate of the service port and of the virtual hosts over TLS"),
    ("STICKY", "a client stays with its instance, by cookie"),
    ("STICKY_WHEN_FULL", "what a client does whose instance has no room: wait for it, or redispatch"),
    ("TIMEOUT_CLIENT", "how long a client may be silent"),
    ("TIMEOUT_CONNECT", "how long a connect to an endpoint may take"),
    ("TIMEOUT_QUEUE", "how long a request may wait for room at an instance"),
    ("TIMEOUT_SERVER", "how long an endpoint may take to answer"),
    ("TIMEOUT_TUNNEL", "how long an upgraded connection may be silent"),
    ("TLS_MIN", "the oldest version of TLS that clients may speak: 1.2 or 1.3"),
    ("USE_HSTS", "responses carry Strict-Transport-Security"),
    ("VHOST", "the virtual hosts that lead to it"),
];

/// Of the app as a whole; they have no index.
const OF_APP: &[(&str, &str)] = &[
    ("APP_ID", "the app's id before the deployment tool added a colour"),
    ("DEPLOYMENT_ALT_PORT", "the service port of the other colour"),
    ("DEPLOYMENT_COLOUR", "blue or green"),
    ("DEPLOYMENT_GROUP", "apps of one group are one backend"),
    ("DEPLOYMENT_NEW_INSTANCES", "how many instances of the new colour a split keeps"),
    ("DEPLOYMENT_STARTED_AT", "when its deployment began: the later one is the new app"),
    ("DEPLOYMENT_TARGET_INSTANCES", "how many instances the deployment is to reach"),
];

pub(super) fn is_of_app(key: &str) -> bool {
    OF_APP.iter().any(|(known, _)| *known == key)
}

/// One label with what it does, or why it does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub label: String,
    pub value: String,
    pub effect: &'static str,
    pub heeded: Heeded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heeded {
    Yes,
    /// Known to be without an effect.
    No,
}

/// Explains every label of an app that is for a balancer, in the order of their names.
pub fn explain(app: &App, reading: &Reading) -> Vec<Explained> {
    let labels = app.labels.iter().filter_map(|(label, value)| {
        let name = LabelName::parse(label)?;
        let (effect, heeded) = match fault(app, &name, reading) {
            Some(fault) => (fault.what, Heeded::No),
            None => (effect(name.key).unwrap_or_default(), Heeded::Yes),
        };
        Some(Explained { label: label.clone(), value: value.clone(), effect, heeded })
    });
    labels.collect()
}

/// Labels whose names alone are wrong: unknown keys, ports that the app does not have.
pub(crate) fn check_names(app: &App, reading: &Reading, problems: &mut Vec<Problem>) {
    for label in app.labels.keys() {
        let Some(name) = LabelName::parse(label) else { continue };
        let Some(fault) = fault(app, &name, reading) else { continue };
        let hint = match nearest(name.key).filter(|_| fault.is_unknown) {
            Some(known) => format!("did you mean {known}? It has no effect"),
            None => "it has no effect".to_owned(),
        };
        problems.push(Problem {
            app: Some(app.id.clone()),
            at: format!("labels.{label}"),
            what: fault.what.to_owned(),
            hint,
        });
    }
}

struct Fault {
    what: &'static str,
    is_unknown: bool,
}

fn fault(app: &App, name: &LabelName<'_>, reading: &Reading) -> Option<Fault> {
    let known = |what| Some(Fault { what, is_unknown: false });
    if effect(name.key).is_none() {
        return Some(Fault { what: "no such label is known", is_unknown: true });
    }
    match name.index {
        Some(_) if is_of_app(name.key) => known("this label is of the app and takes no port index"),
        Some(index) if app.service(index).is_none() => known("the app has no port of this index"),
        None if name.family == Family::Haproxy
            && reading.compat == Compat::MarathonLb
            && !reading.heeds_app_wide(name) =>
        {
            known("Marathon-LB knows this label only with a port index")
        }
        _ => None,
    }
}

fn effect(key: &str) -> Option<&'static str> {
    let of_value = VALUES.iter().chain(OF_APP).find(|(known, _)| *known == key).map(|(_, effect)| *effect);
    of_value.or_else(|| {
        let is_in = |keys: &[&str]| keys.contains(&key);
        if is_in(LISTENER_TEMPLATES) {
            Some("HAProxy text of the service port's listener; empty closes the port")
        } else if is_in(BACKEND_TEMPLATES) {
            Some("HAProxy text of the backend, as far as it is understood")
        } else if is_in(FRONTEND_RULES) {
            Some("HAProxy text of the rules that lead to it, as far as it is understood")
        } else if is_in(OPAQUE_TEMPLATES) || is_in(GLOBAL_TEMPLATES) {
            Some("HAProxy text that is not interpreted")
        } else {
            None
        }
    })
}

/// The known key that differs least, when that is little.
fn nearest(key: &str) -> Option<&'static str> {
    const MOST_EDITS: usize = 2;
    let known = VALUES.iter().chain(OF_APP).map(|(known, _)| *known);
    let (edits, nearest) = known.map(|known| (distance(key, known), known)).min()?;
    (edits <= MOST_EDITS).then_some(nearest)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised() {
        for (key, expect) in [
            ("VHOTS", Some("VHOST")),
            ("STIKY", Some("STICKY")),
            ("BALANCES", Some("BALANCE")),
            ("SOMETHING_ELSE", None),
        ] {
            assert_eq!(nearest(key), expect, "{key}");
        }
    }
}
