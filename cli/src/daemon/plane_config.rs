//! From the one configuration that people write to each crate's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use event_watcher::catalog::{AppId, Reserved, VipPool};
use event_watcher::{Source, SourceKind};
use lb_http::labels::{self, Reading, Unlabelled};
use url::Url;

use crate::args::{Compat, DnsCompat, Mode};
use crate::config::{self, AccessLogFormat, Config, Credentials, HttpAccessLog, Sources, WatchedScheduler};
use crate::failure::Failure;

/// The last good state of a scheduler, kept for a start without it; its name follows.
const STATE_FILE: &str = "kept";

/// For all names together. A start does not wait longer for a resolver that is away.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// By which a VIP outlives the last answer of DNS about it: for the way of that answer, and for planes that take a
/// change in one after the other.
const REMOVAL_MARGIN: Duration = Duration::from_secs(1);
/// With less, an answer would find its client forgotten.
const LEAST_UDP_IDLE: Duration = Duration::from_secs(1);

pub fn http(config: &Config) -> Result<lb_http::Config, Failure> {
    let (timeouts, limits) = (&config.http.timeouts, &config.http.limits);
    Ok(lb_http::Config {
        http_listen: Some(config.http.listen),
        https_listen: Some(config.https.listen),
        tls: lb_http::Tls {
            certificates: config.https.certificates.clone(),
            inline_certificates: certificates_of_environment(),
            min_version: config.min_tls_version()?,
        },
        http2: match config.http.h2c {
            true => lb_http::Http2::WithPriorKnowledge,
            false => lb_http::Http2::OverTls,
        },
        accept_proxy: match config.http.accept_proxy {
            true => lb_http::AcceptProxy::Required,
            false => lb_http::AcceptProxy::No,
        },
        appid_listen: Some(config.appid.listen),
        service_address: config.service.address,
        reading: reading(config),
        timeouts: lb_http::Timeouts {
            client_header: timeouts.client_header,
            client_body_idle: timeouts.client_body_idle,
            client_keepalive: timeouts.client_keepalive,
            connect: timeouts.connect,
            server_head: timeouts.server_head,
            server_body_idle: timeouts.server_body_idle,
            tunnel_idle: timeouts.tunnel_idle,
            request: Some(timeouts.request).filter(|limit| !limit.is_zero()),
        },
        limits: lb_http::Limits {
            request_line_bytes: limits.request_line_bytes,
            header_bytes: limits.header_bytes,
            header_count: limits.header_count,
            chunk_extension_bytes: limits.chunk_extension_bytes,
            interim_responses: limits.interim_responses,
            pipelining_depth: limits.pipelining_depth,
            connections_per_listener: limits.connections_per_listener,
            connections_per_client: limits.connections_per_client,
        },
        access_log: access_log(&config.http.access_log),
        drain_timeout: config.drain_timeout,
    })
}

/// Marathon-LB's `HAPROXY_SSL_CERT` and `HAPROXY_SSL_CERT0` to `HAPROXY_SSL_CERT100`: PEM texts.
fn certificates_of_environment() -> Vec<String> {
    let numbered = (0..=100).map(|n| format!("HAPROXY_SSL_CERT{n}"));
    let names = std::iter::once("HAPROXY_SSL_CERT".to_owned()).chain(numbered);
    names.filter_map(|name| std::env::var(name).ok()).filter(|pem| !pem.trim().is_empty()).collect()
}

/// How labels are read.
pub fn reading(config: &Config) -> Reading {
    Reading {
        groups: config.group.clone(),
        unlabelled: if config.strict.mode { Unlabelled::Ignored } else { Unlabelled::Served },
        compat: match config.compat.contains(&Compat::MarathonLb) {
            true => labels::Compat::MarathonLb,
            false => labels::Compat::None,
        },
        capacity: labels::Capacity {
            per_endpoint: NonZeroU32::new(config.http.limits.requests_per_instance),
            queue: config.http.limits.queue_per_service,
            queue_timeout: config.http.timeouts.queue,
            ..labels::Capacity::default()
        },
    }
}

fn access_log(config: &HttpAccessLog) -> Option<lb_http::AccessLogConfig> {
    let format = match config.format {
        AccessLogFormat::Off => return None,
        AccessLogFormat::Json => lb_http::LogFormat::Json,
        AccessLogFormat::Common => lb_http::LogFormat::Common,
    };
    let apps = match &config.apps[..] {
        _ if config.labelled_only => lb_http::LoggedApps::None,
        [] => lb_http::LoggedApps::All,
        ids => lb_http::LoggedApps::These(ids.iter().map(|id| AppId::new(id)).collect()),
    };
    Some(lb_http::AccessLogConfig { file: config.file.clone(), format, one_in: config.one_in, apps })
}

pub fn vip(config: &Config, pools: Vec<VipPool>) -> l4_vip::Config {
    let unless_zero = |time: Duration| (!time.is_zero()).then_some(time);
    l4_vip::Config {
        policy: config.vip.policy,
        affinity: unless_zero(config.vip.affinity),
        tcp_idle: unless_zero(config.vip.tcp.idle),
        udp_idle: config.vip.udp.idle.max(LEAST_UDP_IDLE),
        max_udp_flows: config.vip.udp.flows,
        // Names go first: an answer that was given just before holds so long.
        removal_overlap: config.dns.ttl + REMOVAL_MARGIN,
        drain_timeout: config.drain_timeout,
        pools,
        ..l4_vip::Config::default()
    }
}

pub fn vip_choice(config: &Config, pools: Vec<VipPool>) -> l4_vip::kernel::ChoiceConfig {
    l4_vip::kernel::ChoiceConfig { wanted: config.vip.plane, cgroup: config.vip.cgroup.clone(), pools }
}

pub fn vip_on_exit(config: &Config) -> l4_vip::kernel::OnExit {
    match config.vip.flush_on_exit {
        true => l4_vip::kernel::OnExit::Flush,
        false => l4_vip::kernel::OnExit::Keep,
    }
}

/// `resolver` is one more address to listen on.
pub fn dns(config: &Config, resolver: Option<SocketAddr>) -> Result<dns::Config, Failure> {
    let (upstreams, zone_upstreams) = upstreams(config)?;
    let mut listen = config.dns.listen.clone();
    listen.extend(resolver);
    let masters = match config.mode {
        Mode::Dev => vec![config.scheduler.listen],
        // Names of the cluster's own are those of the first scheduler.
        Mode::Serve => {
            let members =
                config.sources()?.schedulers.into_iter().take(1).flat_map(|scheduler| scheduler.members);
            members.filter_map(|url| master(&url)).collect()
        }
    };
    let node_addresses = match &config.dns.node_addresses[..] {
        [] => super::node::own_addresses(config.mode),
        named => named.to_vec(),
    };
    Ok(dns::Config {
        listen,
        http_listen: config.dns.http.listen,
        dcos_listen: config.dns.dcos.listen,
        tls: tls(config)?,
        udp_payload_bytes: config.dns.udp_payload_bytes,
        upstreams,
        zone_upstreams,
        ttl: config.dns.ttl,
        mesos_ttl: config.dns.ttl,
        compat: match config.dns.compat {
            DnsCompat::None => dns::config::Compat::None,
            DnsCompat::MesosDns => dns::config::Compat::MesosDns,
        },
        masters,
        node_addresses,
        public_addresses: config.dns.public_addresses.clone(),
        cluster_ids: config.dns.cluster_ids.clone(),
        vip_pools: config.vip_pools()?,
        nsid: config.dns.nsid.clone().unwrap_or_else(super::node::host_name),
        cookie_secret: config.dns.cookie_secret.as_deref().map(cookie_secret).transpose()?,
        rate_limit_per_sec: config.dns.rate_limit_per_sec,
        rate_limit_slip: config.dns.rate_limit_slip,
        local_networks: networks(&config.dns.local_networks)?,
        cache_bytes: config.dns.cache_bytes,
        serve_stale: config.dns.serve_stale,
        drain_timeout: config.drain_timeout,
        ..dns::Config::default()
    })
}

/// Where a scheduler's URL leads, if it names an address. DNS cannot be asked for the names that it is to answer.
fn master(url: &Url) -> Option<SocketAddr> {
    let ip = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(ip, url.port_or_known_default()?))
}

type Upstreams = (Option<Vec<SocketAddr>>, Vec<(String, Vec<SocketAddr>)>);

/// `ADDRESS` for all names, `ZONE=ADDRESS` for those of a zone, `ZONE=none` for names that nobody is asked for.
fn upstreams(config: &Config) -> Result<Upstreams, Failure> {
    let list = match &config.dns.upstreams {
        None => return Ok((None, Vec::new())),
        Some(config::Upstreams::Word(_)) => return Ok((Some(Vec::new()), Vec::new())),
        Some(config::Upstreams::List(list)) => list,
    };
    let mut all = Vec::new();
    let mut zones: Vec<(String, Vec<SocketAddr>)> = Vec::new();
    for text in list {
        match text.split_once('=') {
            None if text == "none" => {}
            None => all.push(upstream(text)?),
            Some((zone, address)) => {
                let at = zones.iter().position(|(known, _)| known == zone).unwrap_or_else(|| {
                    zones.push((zone.to_owned(), Vec::new()));
                    zones.len() - 1
                });
                if address != "none" {
                    zones[at].1.push(upstream(address)?);
                }
            }
        }
    }
    // A list of zones alone says nothing about all other names.
    let all = if all.is_empty() && !list.is_empty() && !list.iter().any(|text| text == "none") {
        None
    } else {
        Some(all)
    };
    Ok((all, zones))
}

fn upstream(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53))).map_err(|_| {
        Failure::usage(format!("bad DNS upstream {text:?}"))
            .hint("dns.upstreams lists IP, IP:PORT, ZONE=IP or ZONE=none")
    })
}

fn networks(texts: &[String]) -> Result<Vec<dns::Network>, Failure> {
    if texts.is_empty() {
        return Ok(dns::Network::private());
    }
    let parse = |text: &String| {
        text.parse().map_err(|e: dns::NotANetwork| Failure::usage(format!("dns.local_networks: {e}")))
    };
    texts.iter().map(parse).collect()
}

fn cookie_secret(text: &str) -> Result<[u8; 16], Failure> {
    let digits = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..16).map(digits).collect();
    bytes.filter(|_| text.len() == 32).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        Failure::usage("dns.cookie_secret is not 32 hexadecimal digits")
            .hint("openssl rand -hex 16 makes one")
    })
}

fn tls(config: &Config) -> Result<dns::config::Tls, Failure> {
    let http = &config.dns.http;
    let (Some(certificate), Some(key)) = (&http.certificate, &http.key) else {
        if http.certificate.is_some() != http.key.is_some() {
            return Err(Failure::usage("dns.http.certificate and dns.http.key go together"));
        }
        return Ok(dns::config::Tls::SelfSigned);
    };
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| Failure::chain(format!("cannot read {}", path.display()), &e))
    };
    Ok(dns::config::Tls::Given { certificate: read(certificate)?, key: read(key)? })
}

/// Addresses that a VIP would take away from somebody on this node.
async fn reserved(
    config: &Config,
    schedulers: &[WatchedScheduler],
    embedded: Option<SocketAddr>,
) -> Vec<Reserved> {
    let own = l4_vip::addresses::of_this_host().unwrap_or_else(|error| {
        tracing::warn!(%error, "this host's addresses are not known: VIPs are not kept off them");
        Vec::new()
    });
    let dns = config.dns.listen.iter().map(SocketAddr::ip);
    let dns = dns.filter(|_| config.runs(crate::args::PlaneName::Dns));
    let schedulers = addresses_of(schedulers.iter().flat_map(|scheduler| &scheduler.members)).await;
    let schedulers = schedulers.into_iter();
    let named = |what: &'static str| move |address: IpAddr| Reserved { address, what: what.into() };
    let all = dns.map(named("the address of Waymark's DNS server"));
    let all = all
        .chain(schedulers.chain(embedded.map(|address| address.ip())).map(named("the scheduler's address")));
    all.chain(own.into_iter().map(named("an address of this host")))
        .filter(|r| !r.address.is_unspecified())
        .collect()
}

/// Names are looked up once: a scheduler that moves while this process runs is rare, and reaching it does not depend
/// on this.
async fn addresses_of(urls: impl Iterator<Item = &Url>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let deadline = tokio::time::Instant::now() + LOOK_UP_TIMEOUT;
    for url in urls {
        match url.host() {
            Some(url::Host::Ipv4(v4)) => addresses.push(v4.into()),
            Some(url::Host::Ipv6(v6)) => addresses.push(v6.into()),
            Some(url::Host::Domain(name)) => {
                match tokio::time::timeout_at(deadline, tokio::net::lookup_host((name, 0))).await {
                    Ok(Ok(found)) => addresses.extend(found.map(|address| address.ip())),
                    _ => {
                        tracing::warn!(name, "the scheduler's name has no address: VIPs are not kept off it")
                    }
                }
            }
            None => {}
        }
    }
    addresses
}

/// `embedded` is where this process's own scheduler listens.
pub async fn watcher(
    config: &Config,
    embedded: Option<SocketAddr>,
    vip_pools: Vec<VipPool>,
) -> Result<event_watcher::Config, Failure> {
    let Sources { schedulers, files } = config.sources()?;
    let reserved = reserved(config, &schedulers, embedded).await;
    let mut sources = Vec::new();
    for WatchedScheduler { name, members, ca, credentials } in schedulers {
        let marathon = event_watcher::Marathon {
            credentials: credentials.map(read_credentials).transpose()?,
            ca_file: ca,
            resync: config.watch.resync,
            stream_deadline: config.watch.stream_deadline,
            state_file: Some(config.state.dir.join(format!("{STATE_FILE}-{name}"))),
            ..event_watcher::Marathon::new(members)
        };
        sources.push(Source { name: name.into(), kind: SourceKind::Marathon(Box::new(marathon)) });
    }
    if let Some(address) = embedded {
        // Where it listens on every address, this machine reaches it on its own.
        let own = match address.ip().is_unspecified() {
            true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
            false => address,
        };
        let url = Url::parse(&format!("http://{own}"))
            .map_err(|e| Failure::chain("the embedded scheduler has no usable address", &e))?;
        // It is there whenever its watcher is, so nothing is kept for a start without it.
        let marathon = event_watcher::Marathon {
            credentials: own_credentials(config),
            resync: config.watch.resync,
            stream_deadline: config.watch.stream_deadline,
            ..event_watcher::Marathon::new(vec![url])
        };
        sources.push(Source {
            name: event_watcher::config::DEFAULT_SOURCE.into(),
            kind: SourceKind::Marathon(Box::new(marathon)),
        });
    }
    for (name, file) in files {
        let kind = SourceKind::Static(event_watcher::Static::new(file));
        sources.push(Source { name: name.into(), kind });
    }
    Ok(event_watcher::Config { vip_pools, reserved, ..event_watcher::Config::new(sources) })
}

/// What this process's own scheduler asks of everybody.
fn own_credentials(config: &Config) -> Option<event_watcher::Credentials> {
    let asked = &config.scheduler;
    if !asked.token.is_empty() {
        return Some(event_watcher::Credentials::Token(asked.token.clone()));
    }
    let (user, password) = asked.credentials.split_once(':')?;
    Some(event_watcher::Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
}

fn read_credentials(credentials: Credentials) -> Result<event_watcher::Credentials, Failure> {
    Ok(match credentials {
        Credentials::Token(file) => event_watcher::Credentials::TokenFile(file),
        Credentials::ServiceAccount(file) => event_watcher::Credentials::ServiceAccountFile(file),
        Credentials::Basic(file) => {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| Failure::chain(format!("cannot read {}", file.display()), &e))?;
            let (user, password) = text.trim_end_matches(['\r', '\n']).split_once(':').ok_or_else(|| {
                Failure::new(format!("{} holds no credentials", file.display()))
                    .hint("it is one line: USER:PASSWORD")
            })?;
            event_watcher::Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
        }
    })
}
