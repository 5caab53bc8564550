//! From the one configuration that people write to each crate's own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::{Reserved, VipPool};
use url::Url;

use crate::config::{Config, Upstreams};
use crate::failure::Failure;

/// The last good list of apps, kept for a start without a scheduler.
const STATE_FILE: &str = "apps.json";

/// With less, an answer would find its client forgotten.
const LEAST_UDP_IDLE: Duration = Duration::from_secs(1);

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
    let unless_zero = |time: Duration| (!time.is_zero()).then_some(time);
    l4_vip::Config {
        policy: config.vip.policy,
        affinity: unless_zero(config.vip.affinity),
        tcp_idle: unless_zero(config.vip.tcp.idle),
        udp_idle: config.vip.udp.idle.max(LEAST_UDP_IDLE),
        max_udp_flows: config.vip.udp.flows,
        drain_timeout: config.drain_timeout,
        pools,
        ..l4_vip::Config::default()
    }
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

/// Addresses that a VIP would take away from somebody on this node.
fn reserved(config: &Config, schedulers: &[Url]) -> Vec<Reserved> {
    let own = l4_vip::addresses::of_this_host().unwrap_or_else(|error| {
        tracing::warn!(%error, "this host's addresses are not known: VIPs are not kept off them");
        Vec::new()
    });
    let dns = config.dns.listen.iter().map(SocketAddr::ip);
    let dns = dns.filter(|_| config.runs(crate::args::PlaneName::Dns));
    let schedulers = schedulers.iter().filter_map(|url| match url.host()? {
        url::Host::Ipv4(v4) => Some(v4.into()),
        url::Host::Ipv6(v6) => Some(v6.into()),
        url::Host::Domain(_) => None,
    });
    let named = |what: &'static str| move |address: IpAddr| Reserved { address, what: what.into() };
    let all = dns.map(named("the address of Waymark's DNS server"));
    let all = all.chain(schedulers.map(named("the scheduler's address")));
    all.chain(own.into_iter().map(named("an address of this host")))
        .filter(|r| !r.address.is_unspecified())
        .collect()
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
        reserved: reserved(config, &urls),
        resync: config.watch.resync,
        stream_deadline: config.watch.stream_deadline,
        // An embedded scheduler is there whenever its watcher is.
        state_file: embedded.is_none().then(|| config.state.dir.join(STATE_FILE)),
        ..event_watcher::Config::new(urls)
    })
}
