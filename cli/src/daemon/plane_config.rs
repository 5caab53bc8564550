//! From the one configuration that people write to each crate's own.

use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::VipPool;
use lb_http::labels::{Compat, Reading, Unlabelled};
use url::Url;

use crate::args::CompatName;
use crate::config::{Config, Upstreams};
use crate::failure::Failure;

/// The last good list of apps, kept for a start without a scheduler.
const STATE_FILE: &str = "apps.json";

pub fn http(config: &Config) -> lb_http::Config {
    let (timeouts, limits) = (&config.http.timeouts, &config.http.limits);
    lb_http::Config {
        http_listen: Some(config.http.listen),
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

/// How labels are read.
pub fn reading(config: &Config) -> Reading {
    Reading {
        groups: config.group.clone(),
        unlabelled: if config.strict.mode { Unlabelled::Ignored } else { Unlabelled::Served },
        compat: match config.compat {
            CompatName::None => Compat::None,
            CompatName::MarathonLb => Compat::MarathonLb,
        },
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
    let masters = config.marathon.iter().filter_map(|url| Url::parse(url).ok()?.host_str()?.parse().ok());
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
    let texts = match embedded {
        Some(address) => vec![format!("http://{address}")],
        None => config.marathon.clone(),
    };
    let parse = |text: &String| {
        Url::parse(text).map_err(|e| Failure::usage(format!("bad scheduler address {text:?}: {e}")))
    };
    let mut urls: Vec<Url> = texts.iter().map(parse).collect::<Result<_, _>>()?;
    let credentials =
        urls.iter().find(|url| !url.username().is_empty()).map(|url| event_watcher::Credentials::Basic {
            user: url.username().to_owned(),
            password: url.password().unwrap_or_default().to_owned(),
        });
    for url in &mut urls {
        // They are sent as a header and must not show up in a log.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
    }
    Ok(event_watcher::Config {
        credentials,
        vip_pools,
        resync: config.watch.resync,
        stream_deadline: config.watch.stream_deadline,
        // An embedded scheduler is there whenever its watcher is.
        state_file: embedded.is_none().then(|| config.state.dir.join(STATE_FILE)),
        ..event_watcher::Config::new(urls)
    })
}
