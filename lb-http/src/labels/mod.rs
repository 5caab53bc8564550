//! What an app's labels ask of the HTTP balancer, per service port.
//!
//! Lookup order: `WAYMARK_{n}_KEY`, `WAYMARK_KEY`, `HAPROXY_{n}_KEY`, `HAPROXY_KEY`, default. A value that does not
//! parse is a [`Problem`] and the default applies: a label never drops an app.
//!
//! Reading order: [`read`], `reader` (lookup), `hosts`, `access`, `rewrite`, `check` (values), `templates` (HAProxy's
//! own text, as far as it is understood), [`vocabulary`] (every key and what it does). Nothing here acts on a request.

mod access;
mod balance;
mod capacity;
mod check;
mod hosts;
mod reader;
mod rewrite;
mod templates;
pub mod vocabulary;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{
    App, Health, HealthCheckProtocol, Instance, InstanceState, Problem, Readiness, Rotation, Service,
};
use l4_vip::policy::Policy;
pub use l4_vip::proxy_protocol::Version as ProxyVersion;
use serde::Serialize;

use crate::access::Admission;
use crate::edits::HeadEdits;
use crate::sticky::CookieStyle;
use crate::tls::ServerTls;
use crate::tls::{Alpn, ClientAuth, HostPolicy, Need};
use reader::Reader;

pub use balance::HashOn;
pub(crate) use balance::static_instance;
pub use capacity::{Capacity, WhenFull};
pub use check::{CheckKind, CheckPort, CheckSpec};
pub use hosts::{Case, HostExpression, HostPattern, PathPrefix};

/// How labels are read: what the balancer was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Apps of these groups are served; `*` serves all.
    pub groups: Vec<String>,
    pub unlabelled: Unlabelled,
    pub compat: Compat,
    /// Of services whose labels say nothing else.
    pub capacity: Capacity,
}

/// Services without an `ENABLED` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlabelled {
    #[default]
    Served,
    /// Strict mode.
    Ignored,
}

/// Whose behaviour counts where ours is different on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    #[default]
    None,
    MarathonLb,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            groups: vec!["*".to_owned()],
            unlabelled: Unlabelled::Served,
            compat: Compat::None,
            capacity: Capacity::default(),
        }
    }
}

impl Reading {
    /// Marathon-LB knows no `HAPROXY_KEY` for all ports but the group and what belongs to the app as a whole.
    fn heeds_app_wide(&self, name: &reader::LabelName<'_>) -> bool {
        self.compat == Compat::None
            || name.family == reader::Family::Waymark
            || name.key == "GROUP"
            || vocabulary::is_of_app(name.key)
    }

    /// Marathon-LB does not trim what stands between commas.
    fn serves_group(&self, wanted: &str) -> bool {
        let is_own = |w: &str| self.groups.iter().any(|g| g == w);
        is_own("*")
            || wanted.split(',').any(|w| is_own(if self.compat == Compat::None { w.trim() } else { w }))
    }
}

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

/// Whether the service port is opened. Hosts and the app id lead to the service all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Listens {
    Yes,
    No,
}

/// What an instance must be before it is given requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    Running,
    Healthy,
    #[default]
    Ready,
}

impl Require {
    pub fn rotation(self, instance: &Instance) -> Rotation {
        let runs = matches!(instance.state, InstanceState::Running | InstanceState::Unreachable);
        match self {
            Self::Running if runs => Rotation::In,
            Self::Healthy if runs && instance.readiness == Readiness::NotReady => match instance.health {
                Health::Healthy | Health::Presumed | Health::Unchecked => Rotation::In,
                Health::Unhealthy => Rotation::Draining,
                Health::Unknown => Rotation::Out,
            },
            _ => instance.rotation(),
        }
    }
}

/// What happens when no instance is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Panic {
    /// Those that run are used: a check that is wrong about all of them is likelier than all being broken.
    #[default]
    UseAll,
    /// Requests are answered with 503.
    UseNone,
}

/// Whether the access log has lines of a service's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    No,
    /// As often as the log was started with.
    Yes,
    /// Of so many requests one; 1: all.
    OneIn(NonZeroU32),
}

/// `None`: what the balancer was started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceTimeouts {
    pub connect: Option<Duration>,
    pub client: Option<Duration>,
    pub server: Option<Duration>,
    pub tunnel: Option<Duration>,
}

/// PROXY protocol, on the side of clients and of endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    pub accept: AcceptProxy,
    pub send: Option<ProxyVersion>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceptProxy {
    #[default]
    No,
    /// Connections without the header are refused.
    Required,
}

/// A server that the labels name; it takes the place of the app's instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticServer {
    pub name: Arc<str>,
    /// A name or an address.
    pub host: Arc<str>,
    pub port: u16,
}

/// One service of one app, as its labels want it served.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceLabels {
    pub port: u16,
    pub listens: Listens,
    /// `None`: the address of all service ports.
    pub bind_address: Option<IpAddr>,
    pub mode: Mode,
    pub balance: Policy,
    pub hash_on: HashOn,
    pub affinity: Affinity,
    pub cookie: CookieStyle,
    /// Each once. In mode tcp their TLS is passed on.
    pub vhosts: Vec<HostPattern>,
    /// Empty: every path. Only looked at for virtual hosts; none in mode tcp.
    pub paths: Vec<PathPrefix>,
    /// Rules of higher weight are tried first.
    pub weight: i32,
    pub admission: Admission,
    pub edits: HeadEdits,
    pub timeouts: ServiceTimeouts,
    pub capacity: Capacity,
    /// `None`: what the log was started with.
    pub access_log: Option<Logged>,
    pub require: Require,
    pub panic: Panic,
    /// What the balancer probes itself. `None`: nothing.
    pub check: Option<CheckSpec>,
    pub proxy_protocol: ProxyProtocol,
    /// Of its virtual hosts over TLS; with a certificate, of its service port, too. In mode tcp of the latter alone.
    pub tls: HostPolicy,
    pub static_server: Option<StaticServer>,
    /// How servers are spoken to. `None`: in plain text.
    pub server_tls: Option<Arc<ServerTls>>,
}

/// Reads the labels of one service. `None`: it is not to be served (disabled, another group, no port).
pub fn read(
    app: &App,
    service: &Service,
    reading: &Reading,
    problems: &mut Vec<Problem>,
) -> Option<ServiceLabels> {
    let mut reader = Reader::new(app, service.id.port_index, reading, problems);
    let enabled = reader.boolean("ENABLED", reading.unlabelled == Unlabelled::Served);
    let served = reading.serves_group(reader.text("GROUP").unwrap_or_default());
    let port = reader.parsed("PORT", "a port number from 1 to 65535", |text| {
        text.parse::<u16>().ok().filter(|port| *port > 0)
    });
    let port = port.or(service.service_port).or_else(|| assigned_port(app, service));
    let (mut vhosts, mut paths) = hosts_and_paths(&mut reader);
    let (check, check_port) = check::borrowed(&mut reader);
    let mode = mode(&mut reader, check.as_ref(), !vhosts.is_empty());
    if mode == Mode::Tcp && !paths.is_empty() && !vhosts.is_empty() {
        let what = "paths need mode http; this service is mode tcp".to_owned();
        reader.problem("PATH", what, "TLS of its virtual hosts is passed on to it whatever the path");
        paths.clear();
        // A path alone is a rule for every host; without paths there is no rule.
        vhosts.retain(|_| reader.find("VHOST").is_some());
    }
    let (balance, hash_on) = reader
        .parsed(
            "BALANCE",
            "one of roundrobin, leastconn, random, source, uri, url_param NAME, hdr(NAME)",
            balance::parse,
        )
        .unwrap_or_default();
    let affinity = if reader.boolean("STICKY", false) { Affinity::Cookie } else { Affinity::None };
    if mode == Mode::Tcp && affinity == Affinity::Cookie {
        reader.problem(
            "STICKY",
            "cookies need mode http; this service is mode tcp".to_owned(),
            "set MODE to http, or give it an HTTP health check",
        );
    }
    let default_weight = match &vhosts[..] {
        // Asked after every rule that names its host, unless a weight says otherwise.
        [HostPattern::Any] if reader.find("VHOST").is_none() => -1,
        _ => i32::from(!paths.is_empty()),
    };
    let weight = reader.number("BACKEND_WEIGHT").unwrap_or(default_weight);
    let mut labels = ServiceLabels {
        // Checked at the end, because the other labels' problems are told in any case.
        port: port.unwrap_or(0),
        listens: Listens::Yes,
        bind_address: bind_address(&mut reader),
        mode,
        balance,
        hash_on,
        affinity,
        cookie: CookieStyle::default(),
        admission: access::read(&mut reader, mode, &vhosts),
        edits: rewrite::read(&mut reader, mode, &vhosts),
        vhosts,
        paths,
        weight,
        timeouts: timeouts(&mut reader),
        capacity: capacity::read(&mut reader, mode),
        access_log: access_log(&mut reader),
        require: require(&mut reader),
        panic: if reader.boolean("PANIC", true) { Panic::UseAll } else { Panic::UseNone },
        check: check
            .as_ref()
            .filter(|_| reader.boolean("CHECK", true))
            .and_then(|check| check::spec(check, check_port, mode)),
        proxy_protocol: proxy_protocol(&mut reader),
        tls: tls(&mut reader, mode),
        static_server: None,
        server_tls: None,
    };
    templates::apply(&mut reader, &mut labels);
    (enabled && served && port.is_some()).then_some(labels)
}

/// For instances with addresses of their own. `None`: there is no instance that tells the port.
fn assigned_port(app: &App, service: &Service) -> Option<u16> {
    let own_port = |instance: &Arc<Instance>| {
        let address = instance.endpoint(service.id.port_index)?.address;
        instance.host_address.is_some_and(|host| host != address.ip()).then_some(address.port())
    };
    let port = app.instances.iter().find_map(own_port).filter(|_| service.protocols.tcp)?;
    Some(crate::names::assigned_port(&app.id, port))
}

/// `SSL_CERT`, `WAYMARK_{n}_CLIENT_CA` and `TLS_MIN`; `BIND_OPTIONS` says more.
fn tls(reader: &mut Reader<'_>, mode: Mode) -> HostPolicy {
    let certificates =
        reader.text("SSL_CERT").map(|paths| paths.split(',').map(|path| path.trim().into()).collect());
    let client_ca = reader.text("CLIENT_CA").map(|path| path.trim().into());
    HostPolicy {
        certificates: certificates.unwrap_or_default(),
        client_auth: client_ca.map(|ca| ClientAuth { ca, need: Need::Required }),
        min_version: reader.parsed("TLS_MIN", "1.2 or 1.3", |text| text.parse().ok()),
        alpn: match mode {
            Mode::Http => Alpn::Http2,
            Mode::Tcp => Alpn::Silent,
        },
    }
}

/// A path without a host is for every host; Marathon-LB ignores it.
fn hosts_and_paths(reader: &mut Reader<'_>) -> (Vec<HostPattern>, Vec<PathPrefix>) {
    let (mut vhosts, paths) = (reader.hosts(), reader.paths());
    if !paths.is_empty() && vhosts.is_empty() {
        match reader.compat() {
            Compat::None if reader.find("VHOST").is_none() => vhosts.push(HostPattern::Any),
            _ => {
                let what = "a path without a virtual host has no effect".to_owned();
                reader.problem("PATH", what, "set VHOST as well");
            }
        }
    }
    (vhosts, paths)
}

/// Marathon-LB: exactly an `HTTP` check of the service makes it http, or one of its kind that is borrowed from another
/// port; so does a virtual host; else tcp. A label has the last word.
fn mode(
    reader: &mut Reader<'_>,
    check: Option<&event_watcher::catalog::HealthCheck>,
    has_hosts: bool,
) -> Mode {
    use HealthCheckProtocol::{Http, Https, MesosHttp, MesosHttps};
    let named = reader.parsed("MODE", "http or tcp", |text| match text.to_ascii_lowercase().as_str() {
        "http" => Some(Mode::Http),
        "tcp" => Some(Mode::Tcp),
        _ => None,
    });
    let is_own = check::of_service(reader.app(), reader.index).is_some();
    let is_http = check.is_some_and(|c| match c.protocol {
        Http => true,
        Https | MesosHttp | MesosHttps => !is_own,
        _ => false,
    });
    named.unwrap_or(if is_http || has_hosts { Mode::Http } else { Mode::Tcp })
}

fn bind_address(reader: &mut Reader<'_>) -> Option<IpAddr> {
    let text = reader.text("BIND_ADDR")?.trim();
    if matches!(text, "*" | "") {
        return None;
    }
    reader.parsed("BIND_ADDR", "an address", |text| text.parse().ok())
}

fn timeouts(reader: &mut Reader<'_>) -> ServiceTimeouts {
    ServiceTimeouts {
        connect: reader.duration("TIMEOUT_CONNECT"),
        client: reader.duration("TIMEOUT_CLIENT"),
        server: reader.duration("TIMEOUT_SERVER"),
        tunnel: reader.duration("TIMEOUT_TUNNEL"),
    }
}

/// `off`, `on` (as often as the log's own sampling says) or `1/N`.
fn access_log(reader: &mut Reader<'_>) -> Option<Logged> {
    reader.parsed("ACCESS_LOG", "on, off or 1/N", |text| match &*text.to_ascii_lowercase() {
        "on" | "true" | "t" | "yes" | "y" | "1" => Some(Logged::Yes),
        "off" | "false" | "f" | "no" | "n" | "0" => Some(Logged::No),
        text => text.strip_prefix("1/")?.parse().ok().map(Logged::OneIn),
    })
}

fn require(reader: &mut Reader<'_>) -> Require {
    let named = reader.parsed("REQUIRE", "one of running, healthy, ready", |text| match text {
        "running" => Some(Require::Running),
        "healthy" => Some(Require::Healthy),
        "ready" => Some(Require::Ready),
        _ => None,
    });
    named.unwrap_or_default()
}

fn proxy_protocol(reader: &mut Reader<'_>) -> ProxyProtocol {
    let send = reader.parsed("SEND_PROXY", "v1 or v2", |text| match text {
        "v1" => Some(ProxyVersion::V1),
        "v2" => Some(ProxyVersion::V2),
        _ => None,
    });
    let accept = if reader.boolean("ACCEPT_PROXY", false) { AcceptProxy::Required } else { AcceptProxy::No };
    ProxyProtocol { accept, send }
}

#[cfg(test)]
mod tests;
