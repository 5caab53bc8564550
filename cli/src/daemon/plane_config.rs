//! From the one configuration that people write to each crate's own.

use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::VipPool;
use event_watcher::{Source, SourceKind};
use url::Url;

use crate::config::{Config, Credentials, Sources, Upstreams, WatchedScheduler};
use crate::failure::Failure;

/// The last good state of a scheduler, kept for a start without it; its name follows.
const STATE_FILE: &str = "kept";

pub fn http(config: &Config) -> lb_http::Config {
    let (timeouts, limits) = (&config.http.timeouts, &config.http.limits);
    lb_http::Config {
        http_listen: Some(config.http.listen),
        appid_listen: Some(config.appid.listen),
        service_address: config.service.address,
        timeouts: lb_http::Timeouts {
            client_header: timeouts.client_header,
            client_body_idle: timeouts.client_body_idle,
            client_keepalive: timeouts.client_keepalive,
            connect: timeouts.connect,
            server_head: timeouts.server_head,
            server_body_idle: timeouts.server_body_idle,
            tunnel_idle: timeouts.tunnel_idle,
        },
        limits: lb_http::Limits {
            request_line_bytes: limits.request_line_bytes,
            header_bytes: limits.header_bytes,
            header_count: limits.header_count,
            connections_per_listener: limits.connections_per_listener,
            connections_per_client: limits.connections_per_client,
        },
        drain_timeout: config.drain_timeout,
        ..lb_http::Config::default()
    }
}

pub fn vip(config: &Config, pools: Vec<VipPool>) -> l4_vip::Config {
    l4_vip::Config { drain_timeout: config.drain_timeout, pools, ..l4_vip::Config::default() }
}

pub fn dns(config: &Config) -> Result<dns::Config, Failure> {
    let upstreams = match &config.dns.upstreams {
        None => None,
        Some(Upstreams::Word(_)) => Some(Vec::new()),
        Some(Upstreams::List(list)) => {
            Some(list.iter().map(|text| upstream(text)).collect::<Result<_, _>>()?)
        }
    };
    let mut listen = config.dns.listen.clone();
    listen.extend(super::dev::resolver_address(config));
    // Names of the cluster's own are those of the first scheduler.
    let masters = config.sources()?.schedulers.into_iter().take(1).flat_map(|scheduler| scheduler.members);
    let masters = masters.filter_map(|url| url.host_str()?.parse().ok());
    Ok(dns::Config {
        listen,
        udp_payload_bytes: config.dns.udp_payload_bytes,
        upstreams,
        masters: match config.mode {
            crate::args::Mode::Dev => vec![config.scheduler.listen.ip()],
            crate::args::Mode::Serve => masters.collect(),
        },
        drain_timeout: config.drain_timeout,
        ..dns::Config::default()
    })
}

fn upstream(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53))).map_err(|_| {
        Failure::usage(format!("bad DNS upstream {text:?}")).hint("dns.upstreams lists IP or IP:PORT")
    })
}

/// `embedded` is where this process's own scheduler listens.
pub fn watcher(
    config: &Config,
    embedded: Option<SocketAddr>,
    vip_pools: Vec<VipPool>,
) -> Result<event_watcher::Config, Failure> {
    let Sources { schedulers, files } = config.sources()?;
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
        sources.push(Source { name: name.into(), kind: SourceKind::Marathon(marathon) });
    }
    if let Some(address) = embedded {
        let url = Url::parse(&format!("http://{address}"))
            .map_err(|e| Failure::chain("the embedded scheduler has no usable address", &e))?;
        // It is there whenever its watcher is, so nothing is kept for a start without it.
        let marathon = event_watcher::Marathon {
            resync: config.watch.resync,
            stream_deadline: config.watch.stream_deadline,
            ..event_watcher::Marathon::new(vec![url])
        };
        sources.push(Source {
            name: event_watcher::config::DEFAULT_SOURCE.into(),
            kind: SourceKind::Marathon(marathon),
        });
    }
    for (name, file) in files {
        let kind = SourceKind::Static(event_watcher::Static::new(file));
        sources.push(Source { name: name.into(), kind });
    }
    Ok(event_watcher::Config { vip_pools, ..event_watcher::Config::new(sources) })
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
