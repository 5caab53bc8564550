//! What an app's labels ask of the HTTP balancer, per service port.
//!
//! Lookup order: `WAYMARK_{n}_KEY`, `WAYMARK_KEY`, `HAPROXY_{n}_KEY`, `HAPROXY_KEY`, default. A value that does not
//! parse is a [`Problem`] and the default applies: a label never drops an app. Template labels are not read here.

use std::sync::Arc;

use event_watcher::catalog::{App, HealthCheckProtocol, Problem, Service};
use l4_vip::policy::{KNOWN, Policy};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Http,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Affinity {
    None,
    Cookie,
}

/// A `path_beg` prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathPrefix {
    pub prefix: Arc<str>,
    pub case: Case,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Case {
    Heeded,
    Ignored,
}

/// One service of one app, as its labels want it served.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceLabels {
    pub port: u16,
    pub mode: Mode,
    pub balance: Policy,
    pub affinity: Affinity,
    /// Lower case, without port, each once.
    pub vhosts: Vec<Arc<str>>,
    /// Empty: every path. Only looked at for virtual hosts.
    pub paths: Vec<PathPrefix>,
    /// Rules of higher weight are tried first.
    pub weight: i32,
}

/// Reads the labels of one service. `None`: it is not to be served (disabled, another group, no port).
pub fn read(
    app: &App,
    service: &Service,
    groups: &[String],
    problems: &mut Vec<Problem>,
) -> Option<ServiceLabels> {
    let mut labels = Reader { app, index: service.id.port_index, problems };
    let enabled = labels.boolean("ENABLED", true);
    let served = labels.is_in(groups);
    let port = labels.parsed("PORT", "a port number from 1 to 65535", |text| {
        text.parse::<u16>().ok().filter(|port| *port > 0)
    });
    let port = port.or(service.service_port);
    let balance = labels.parsed("BALANCE", &format!("one of {KNOWN}"), |text| text.parse::<Policy>().ok());
    let affinity = if labels.boolean("STICKY", false) { Affinity::Cookie } else { Affinity::None };
    let vhosts = labels.vhosts();
    let paths = labels.paths();
    if !paths.is_empty() && vhosts.is_empty() {
        labels.problem("PATH", "a path without a virtual host has no effect".to_owned(), "set VHOST as well");
    }
    let mode = labels.parsed("MODE", "http or tcp", |text| match text.to_ascii_lowercase().as_str() {
        "http" => Some(Mode::Http),
        "tcp" => Some(Mode::Tcp),
        _ => None,
    });
    let mode = mode.unwrap_or_else(|| derived_mode(app, service.id.port_index, &vhosts));
    let default_weight = i32::from(!paths.is_empty());
    let weight = labels.parsed("BACKEND_WEIGHT", "a whole number", |text| text.parse().ok());
    if mode == Mode::Tcp && affinity == Affinity::Cookie {
        labels.problem(
            "STICKY",
            "cookies need mode http; this service is mode tcp".to_owned(),
            "set MODE to http, or give it an HTTP health check",
        );
    }
    Some(ServiceLabels {
        port: port.filter(|_| enabled && served)?,
        mode,
        balance: balance.unwrap_or_default(),
        affinity,
        vhosts,
        paths,
        weight: weight.unwrap_or(default_weight),
    })
}

/// Marathon-LB: exactly an `HTTP` check of the service makes it http; so does a virtual host; else tcp.
fn derived_mode(app: &App, port_index: usize, vhosts: &[Arc<str>]) -> Mode {
    let check = app.health_checks.iter().find(|c| match c.port_index {
        Some(index) => index == port_index,
        None => port_index == 0,
    });
    let is_http = check.is_some_and(|c| c.protocol == HealthCheckProtocol::Http);
    if is_http || !vhosts.is_empty() { Mode::Http } else { Mode::Tcp }
}

struct Reader<'a> {
    app: &'a App,
    index: usize,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// The label as it is spelled, and its value.
    fn find(&self, key: &str) -> Option<(String, String)> {
        let n = self.index;
        [
            format!("WAYMARK_{n}_{key}"),
            format!("WAYMARK_{key}"),
            format!("HAPROXY_{n}_{key}"),
            format!("HAPROXY_{key}"),
        ]
        .into_iter()
        .find_map(|name| self.app.label(&name).map(|value| (name, value.to_owned())))
    }

    fn parsed<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (_, text) = self.find(key)?;
        let value = parse(text.trim());
        if value.is_none() {
            self.problem(key, format!("{text:?} is not {wanted}"), "the default applies");
        }
        value
    }

    fn boolean(&mut self, key: &str, default: bool) -> bool {
        let value = self.parsed(key, "true or false", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" => Some(true),
            "false" | "f" | "no" | "n" => Some(false),
            _ => None,
        });
        value.unwrap_or(default)
    }

    fn is_in(&self, groups: &[String]) -> bool {
        let wanted = self.find("GROUP").map(|(_, text)| text).unwrap_or_default();
        groups.iter().any(|g| g == "*") || wanted.split(',').any(|w| groups.iter().any(|g| g == w.trim()))
    }

    fn vhosts(&mut self) -> Vec<Arc<str>> {
        let Some((_, text)) = self.find("VHOST") else { return Vec::new() };
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let lower = part.to_ascii_lowercase();
            let host = match lower.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => host,
                _ => &lower,
            };
            if !is_host(host) {
                self.problem("VHOST", format!("{part:?} is not a host name"), "it is left out");
            } else if !hosts.iter().any(|known| **known == *host) {
                hosts.push(host.into());
            }
        }
        hosts
    }

    fn paths(&mut self) -> Vec<PathPrefix> {
        let Some((_, text)) = self.find("PATH") else { return Vec::new() };
        let mut case = Case::Heeded;
        let mut paths = Vec::new();
        for word in text.split_whitespace() {
            if word == "-i" {
                case = Case::Ignored;
            } else if word.starts_with('/') {
                paths.push(PathPrefix { prefix: word.into(), case });
            } else {
                self.problem("PATH", format!("{word:?} does not begin with a slash"), "it is left out");
            }
        }
        paths
    }

    fn problem(&mut self, key: &str, what: String, hint: &str) {
        let at = self.find(key).map_or_else(|| key.to_owned(), |(name, _)| name);
        let problem = Problem {
            app: Some(self.app.id.clone()),
            at: format!("labels.{at}"),
            what,
            hint: hint.to_owned(),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn is_host(host: &str) -> bool {
    let ipv6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match ipv6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use event_watcher::catalog::{AppId, HealthCheck, Protocols, ServiceId};

    use super::*;

    fn app(labels: &[(&str, &str)], check: Option<HealthCheckProtocol>) -> App {
        let id = AppId::new("/a");
        App {
            id: id.clone(),
            version: "v".into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            n_instances_wanted: 0,
            services: vec![Service {
                id: ServiceId { app: id, port_index: 0 },
                name: None,
                service_port: Some(10000),
                protocols: Protocols::TCP,
                labels: BTreeMap::new(),
                vips: vec![],
            }],
            health_checks: check
                .map(|protocol| HealthCheck { protocol, path: None, port_index: Some(0) })
                .into_iter()
                .collect(),
            instances: vec![],
            deployments: vec![],
        }
    }

    fn read_all(app: &App, groups: &[&str]) -> (Option<ServiceLabels>, Vec<String>) {
        let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let mut problems = Vec::new();
        let labels = read(app, &app.services[0], &groups, &mut problems);
        (labels, problems.into_iter().map(|p| p.at).collect())
    }

    #[test]
    fn mode_is_derived_as_marathon_lb_does() {
        use HealthCheckProtocol::{Http, MesosHttp, Tcp};
        for (labels, check, expect) in [
            (&[][..], None, Mode::Tcp),
            (&[], Some(Http), Mode::Http),
            (&[], Some(MesosHttp), Mode::Tcp),
            (&[], Some(Tcp), Mode::Tcp),
            (&[("HAPROXY_0_VHOST", "a.test")], None, Mode::Http),
            (&[("HAPROXY_0_MODE", "tcp")], Some(Http), Mode::Tcp),
            (&[("HAPROXY_0_MODE", "HTTP")], None, Mode::Http),
            (&[("HAPROXY_0_MODE", "tcp"), ("WAYMARK_MODE", "http")], None, Mode::Http),
            (&[("HAPROXY_MODE", "http"), ("HAPROXY_0_MODE", "tcp")], None, Mode::Tcp),
            (&[("HAPROXY_1_MODE", "http")], None, Mode::Tcp),
        ] {
            let (read, problems) = read_all(&app(labels, check), &["*"]);
            assert_eq!(read.unwrap().mode, expect, "{labels:?} {check:?}");
            assert!(problems.is_empty());
        }
    }

    #[test]
    fn groups_and_enabled_decide_who_is_served() {
        for (labels, groups, expect) in [
            (&[][..], &["*"][..], true),
            (&[], &["external"], false),
            (&[("HAPROXY_GROUP", "internal, external")], &["external"], true),
            (&[("HAPROXY_GROUP", "external"), ("HAPROXY_0_GROUP", "internal")], &["external"], false),
            (&[("HAPROXY_0_ENABLED", "no")], &["*"], false),
            (&[("HAPROXY_0_ENABLED", "T")], &["*"], true),
        ] {
            assert_eq!(read_all(&app(labels, None), groups).0.is_some(), expect, "{labels:?} {groups:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_a_problem_and_the_default_applies() {
        for (key, value) in [
            ("HAPROXY_0_PORT", "http"),
            ("HAPROXY_0_PORT", "0"),
            ("HAPROXY_0_ENABLED", "1"),
            ("HAPROXY_0_BALANCE", "fastest"),
            ("HAPROXY_0_MODE", "udp"),
            ("HAPROXY_0_STICKY", "on"),
            ("HAPROXY_0_BACKEND_WEIGHT", "heavy"),
            ("HAPROXY_0_VHOST", "<script>"),
            ("HAPROXY_0_PATH", "admin"),
        ] {
            let (read, problems) = read_all(&app(&[(key, value)], None), &["*"]);
            let (default, _) = read_all(&app(&[], None), &["*"]);
            assert_eq!(read, default, "{key}={value}");
            assert_eq!(problems, [format!("labels.{key}")], "{key}={value}");
        }
    }

    #[test]
    fn hosts_and_paths() {
        let labels =
            [("HAPROXY_0_VHOST", "A.test, b.test:8080,a.test,[FD00::1]"), ("HAPROXY_0_PATH", "/x -i /Y")];
        let (read, problems) = read_all(&app(&labels, None), &["*"]);
        let read = read.unwrap();
        assert_eq!(read.vhosts.iter().map(|h| &**h).collect::<Vec<_>>(), ["a.test", "b.test", "[fd00::1]"]);
        let paths: Vec<_> = read.paths.iter().map(|p| (&*p.prefix, p.case)).collect();
        assert_eq!(paths, [("/x", Case::Heeded), ("/Y", Case::Ignored)]);
        assert_eq!(read.weight, 1, "a path makes a rule come before one without");
        assert!(problems.is_empty());
    }
}
