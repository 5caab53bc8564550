//! Lines of frontend templates: which hosts and paths lead to the backend.
//!
//! Hosts are told apart by the Host header; a test of the SNI counts as one of the host.

use super::super::hosts::{HostExpression, parse_paths};
use super::super::reader::Reader;
use super::super::{HostPattern, Mode, PathPrefix, ServiceLabels};
use super::backend::Understood;
use super::lines::{Holds, Negated, condition, fill, lines};
use super::{Acl, Acls, report};

/// Templates that say how a host leads to the backend. The first of a kind that is there counts.
pub(in super::super) const FRONTEND_RULES: &[&str] = &[
    "HTTP_FRONTEND_ACL",
    "HTTP_FRONTEND_ACL_WITH_PATH",
    "HTTP_FRONTEND_ACL_WITH_AUTH",
    "HTTP_FRONTEND_ACL_WITH_AUTH_AND_PATH",
    "HTTP_FRONTEND_ACL_ONLY",
    "HTTP_FRONTEND_ACL_ONLY_WITH_PATH",
    "HTTP_FRONTEND_ACL_ONLY_WITH_PATH_AND_AUTH",
    "HTTP_FRONTEND_ROUTING_ONLY",
    "HTTP_FRONTEND_ROUTING_ONLY_WITH_AUTH",
    "HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH",
    "HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH_AND_AUTH",
    "HTTPS_FRONTEND_ACL",
    "HTTPS_FRONTEND_ACL_WITH_PATH",
    "HTTPS_FRONTEND_ACL_WITH_AUTH",
    "HTTPS_FRONTEND_ACL_WITH_AUTH_AND_PATH",
    "HTTPS_FRONTEND_ACL_ONLY_WITH_PATH",
];

/// What the rules of all templates together lead to the backend.
#[derive(Default)]
struct Routed {
    hosts: Vec<HostPattern>,
    paths: Vec<PathPrefix>,
    n_rules: usize,
    /// Of those, the ones of plain HTTP.
    n_plain_rules: usize,
}

pub(super) fn apply(reader: &mut Reader<'_>, labels: &mut ServiceLabels) {
    let mut routed = Routed::default();
    let hosts: Vec<String> = labels.vhosts.iter().map(ToString::to_string).collect();
    for key in FRONTEND_RULES {
        let Some(text) = reader.text(key) else { continue };
        let text = text.replace("\r\n", "\n");
        let hosts = if hosts.is_empty() { vec![String::new()] } else { hosts.clone() };
        for host in &hosts {
            let name = crate::names::backend(&reader.app().id, labels.port);
            let cleaned: String =
                host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let value = |placeholder: &str| match placeholder {
                "backend" => Some(name.clone()),
                "hostname" => Some(host.clone()),
                "cleanedUpHostname" => Some(cleaned.clone()),
                "appId" | "app_id" => Some(reader.app().id.to_string()),
                "path" => {
                    Some(labels.paths.iter().map(|p| p.prefix.to_string()).collect::<Vec<_>>().join(" "))
                }
                "realm" | "user" => Some(String::new()),
                _ => None,
            };
            match fill(&text, value) {
                Ok(text) => {
                    let before = routed.n_rules;
                    rules(reader, labels, key, &text, &mut routed);
                    if key.starts_with("HTTP_") {
                        routed.n_plain_rules += routed.n_rules - before;
                    }
                }
                Err(placeholder) => {
                    let what = format!("{{{placeholder}}} is no placeholder of this template");
                    reader.problem(key, what, "the template has no effect");
                }
            }
        }
    }
    if routed.n_rules == 0 {
        return;
    }
    if labels.mode == Mode::Tcp && !routed.paths.is_empty() {
        let what = "paths need mode http; this service is mode tcp".to_owned();
        reader.problem("MODE", what, "rules with paths have no effect; set MODE to http");
        return;
    }
    if routed.n_plain_rules == 0 {
        // The default rules for plain HTTP stand as they are.
        routed.hosts.extend(labels.vhosts.iter().cloned());
    }
    routed.hosts.sort();
    routed.hosts.dedup();
    labels.vhosts = routed.hosts;
    if !routed.paths.is_empty() {
        routed.paths.sort();
        routed.paths.dedup();
        labels.paths = routed.paths;
    }
}

fn rules(reader: &mut Reader<'_>, labels: &ServiceLabels, key: &str, text: &str, routed: &mut Routed) {
    let mut acls = Acls::default();
    for line in lines(text) {
        let understood = match &line.slice()[..] {
            ["acl", name, rest @ ..] => acls.define(name, rest).into(),
            ["use_backend", _, rest @ ..] => use_backend(rest, labels, &acls, routed).into(),
            ["http-request", "auth", ..] => Understood::Yes,
            _ => Understood::No,
        };
        report(reader, key, &line, understood);
    }
}

/// Tests of names that the template does not define are those of the default templates: the service's own hosts and
/// paths.
fn use_backend(words: &[&str], labels: &ServiceLabels, acls: &Acls, routed: &mut Routed) -> Option<()> {
    let condition = condition(words)?;
    if condition.holds != Holds::IfAll || condition.terms.iter().any(|t| t.negated == Negated::Yes) {
        return None;
    }
    let (mut hosts, mut paths) = (Vec::new(), Vec::new());
    for term in &condition.terms {
        let known = acls.all(&term.test);
        if known.is_empty() {
            let words: Vec<&str> = term.test.split(' ').collect();
            match acl(&words) {
                Some(Acl::Hosts(of_term)) => hosts.extend(of_term),
                Some(Acl::Paths(of_term)) => paths.extend(of_term),
                _ if term.test.starts_with("host_") => hosts.extend(labels.vhosts.iter().cloned()),
                _ if term.test.starts_with("path_") => paths.extend(labels.paths.iter().cloned()),
                _ if term.test.starts_with("auth_") => {}
                _ => return None,
            }
        }
        for acl in known {
            match acl {
                Acl::Hosts(of_acl) => hosts.extend(of_acl.iter().cloned()),
                Acl::Paths(of_acl) => paths.extend(of_acl.iter().cloned()),
                Acl::ForwardedHttps | Acl::Tls => return None,
            }
        }
    }
    routed.n_rules += 1;
    routed.hosts.extend(if hosts.is_empty() { vec![HostPattern::Any] } else { hosts });
    routed.paths.extend(paths);
    Some(())
}

/// `hdr_end(host) -i .a.test`, `ssl_fc_sni -m end .a.test`, `path_beg /a`, `hdr(X-Forwarded-Proto) https`, `ssl_fc`.
pub(super) fn acl(words: &[&str]) -> Option<Acl> {
    let (fetch, mut rest) = words.split_first()?;
    let mut matching = None;
    let mut ignores_case = false;
    loop {
        match rest {
            ["-i", after @ ..] => (ignores_case, rest) = (true, after),
            ["-m", how, after @ ..] => (matching, rest) = (Some(*how), after),
            ["--", after @ ..] => rest = after,
            _ => break,
        }
    }
    let lower = fetch.to_ascii_lowercase();
    let lower = lower.strip_prefix("req.").unwrap_or(&lower);
    match lower {
        "ssl_fc" if rest.is_empty() => return Some(Acl::Tls),
        "path_beg" => return paths(rest, ignores_case),
        "path" if matching == Some("beg") => return paths(rest, ignores_case),
        "hdr(x-forwarded-proto)" => {
            return matches!(rest, [https] if https.eq_ignore_ascii_case("https"))
                .then_some(Acl::ForwardedHttps);
        }
        _ => {}
    }
    let how = match lower {
        "hdr(host)" | "ssl_fc_sni" | "req_ssl_sni" => matching.unwrap_or("str"),
        "hdr_end(host)" | "ssl_fc_sni_end" => "end",
        "hdr_beg(host)" => "beg",
        "hdr_dom(host)" => "dom",
        "hdr_reg(host)" | "ssl_fc_sni_reg" => "reg",
        "hdr_sub(host)" => "sub",
        _ => return None,
    };
    let mut hosts = Vec::new();
    for value in rest {
        hosts.extend(host(how, value)?);
    }
    (!hosts.is_empty()).then_some(Acl::Hosts(hosts))
}

fn paths(words: &[&str], ignores_case: bool) -> Option<Acl> {
    let case = if ignores_case { "-i " } else { "" };
    let text = format!("{case}{}", words.join(" "));
    let (paths, refused) = parse_paths(&text);
    (refused.is_empty() && !paths.is_empty()).then_some(Acl::Paths(paths))
}

fn host(how: &str, value: &str) -> Option<Vec<HostPattern>> {
    let expression = |text: &str| HostExpression::new(text).map(|e| vec![HostPattern::Expression(e)]);
    let literal = regex::escape(value);
    match how {
        "str" => Some(vec![HostPattern::parse(value)?]),
        // The end of a name, not of a word: what ends in `a.test` and is another domain is not meant.
        "end" => match value.trim_start_matches('*') {
            suffix if suffix.starts_with('.') => Some(vec![HostPattern::parse(suffix)?]),
            name => Some(vec![HostPattern::parse(name)?, HostPattern::parse(&format!(".{name}"))?]),
        },
        "beg" => expression(&format!("^{literal}")),
        "dom" => expression(&format!(r"(^|\.){literal}($|\.|:)")),
        "sub" => expression(&literal),
        "reg" => expression(value),
        _ => None,
    }
}
