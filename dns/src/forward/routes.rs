//! Who is asked about which names: upstreams by the longest zone that a name is in, and the host's own resolvers.
//!
//! An upstream that several zones share is one, so that it has one reputation.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use super::upstream::Upstream;
use crate::config::Config;
use crate::names::{WireName, suffixes};

#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Without an upstream, a zone is never asked about.
    zones: Vec<(WireName, Arc<[Arc<Upstream>]>)>,
    others: Arc<[Arc<Upstream>]>,
    /// This server itself.
    left_out: Vec<SocketAddr>,
}

impl Routes {
    /// `others` is asked about names of no configured zone; upstreams of `before` keep their reputation. Those that are
    /// this server itself are left out.
    pub fn new(config: &Config, others: &[SocketAddr], own: &[SocketAddr], before: &Self) -> Self {
        let mut known: Vec<Arc<Upstream>> = before.upstreams();
        let mut left_out = Vec::new();
        let mut upstreams = |addresses: &[SocketAddr]| -> Arc<[Arc<Upstream>]> {
            let mut chosen: Vec<Arc<Upstream>> = Vec::new();
            for address in addresses {
                if is_served_by(*address, own) {
                    // Once: the host's resolvers are read again and again, and name this server where it is installed.
                    if !before.left_out.contains(address) {
                        tracing::warn!(upstream = %address, "an upstream resolver is this server itself; it is not asked");
                    }
                    left_out.push(*address);
                    continue;
                }
                let upstream = match known.iter().find(|upstream| upstream.address == *address) {
                    Some(upstream) => Arc::clone(upstream),
                    None => {
                        let upstream = Arc::new(Upstream::new(*address));
                        known.push(Arc::clone(&upstream));
                        upstream
                    }
                };
                if !chosen.iter().any(|other| other.address == *address) {
                    chosen.push(upstream);
                }
            }
            chosen.into()
        };
        let zones = config
            .zone_upstreams
            .iter()
            .filter_map(|(zone, addresses)| Some((WireName::parse(zone)?, upstreams(addresses))))
            .collect();
        let others = upstreams(others);
        Self { zones, others, left_out }
    }

    /// Whom to ask about a name in lower case; nobody: it is refused.
    pub fn of(&self, name: &[u8]) -> &Arc<[Arc<Upstream>]> {
        if self.zones.is_empty() {
            return &self.others;
        }
        suffixes(name)
            .find_map(|suffix| self.zones.iter().find(|(zone, _)| zone.as_bytes() == suffix))
            .map_or(&self.others, |(_, upstreams)| upstreams)
    }

    /// Everybody, once.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let mut all: Vec<Arc<Upstream>> = Vec::new();
        for upstream in
            self.others.iter().chain(self.zones.iter().flat_map(|(_, upstreams)| upstreams.iter()))
        {
            if !all.iter().any(|known| Arc::ptr_eq(known, upstream)) {
                all.push(Arc::clone(upstream));
            }
        }
        all
    }
}

/// Whether asking `upstream` would be asking ourselves.
fn is_served_by(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        own.port() == upstream.port()
            && (own.ip() == upstream.ip() || own.ip().is_unspecified() && is_of_this_host(upstream.ip()))
    })
}

fn is_of_this_host(ip: std::net::IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_zone_decides_and_this_server_is_no_upstream_of_itself() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let config = Config {
            zone_upstreams: vec![
                ("example".into(), vec![address("192.0.2.1:53")]),
                ("corp.example".into(), vec![address("192.0.2.2:53"), address("192.0.2.9:53")]),
                ("secret.example".into(), vec![]),
                ("own.example".into(), vec![address("127.0.0.1:53")]),
            ],
            ..Config::default()
        };
        let others = [address("192.0.2.9:53"), address("192.0.2.9:53")];
        let routes = Routes::new(&config, &others, &[address("127.0.0.1:53")], &Routes::default());
        for (name, expect) in [
            ("a.example", &["192.0.2.1:53"][..]),
            ("a.corp.example", &["192.0.2.2:53", "192.0.2.9:53"]),
            ("corp.example", &["192.0.2.2:53", "192.0.2.9:53"]),
            ("xcorp.example", &["192.0.2.1:53"]),
            ("a.secret.example", &[]),
            ("a.own.example", &[]),
            ("example.org", &["192.0.2.9:53"]),
        ] {
            let name_bytes = WireName::parse(name).unwrap();
            let got: Vec<String> =
                routes.of(name_bytes.as_bytes()).iter().map(|u| u.address.to_string()).collect();
            assert_eq!(got, expect, "{name}");
        }
        assert_eq!(routes.upstreams().len(), 3);
        assert_eq!(routes.left_out, [address("127.0.0.1:53")]);
        let again = Routes::new(&config, &others, &[], &routes);
        assert!(Arc::ptr_eq(&again.others[0], &routes.others[0]), "a known upstream stays the same");
        for (own, upstream, expect) in [
            ("127.0.0.1:53", "127.0.0.2:53", false),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "192.0.2.1:53", false),
        ] {
            assert_eq!(is_served_by(address(upstream), &[address(own)]), expect, "{own} {upstream}");
        }
    }
}
