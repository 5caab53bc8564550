//! The value of a VIP label: `<name>:<port>` or `<address>:<port>`.
//!
//! Where such labels stand in an app, and which protocols they mean, is the source's affair. Whether a node can serve
//! the address that somebody chose is decided where all VIPs are known.

use std::net::{IpAddr, Ipv4Addr};

use super::name::VipName;
use super::{Protocol, VipKey, VipTarget};

/// The value of a `VIP_…` label, `<vip>:<port>`; the protocol is the port definition's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipLabel {
    pub target: VipTarget,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipLabelError {
    #[error("{0:?} has no port; a VIP is written NAME:PORT or ADDRESS:PORT")]
    NoPort(String),
    #[error("{0:?} is not a port between 1 and 65535")]
    BadPort(String),
    #[error("{0:?} has no letter or digit that a DNS name could be made of")]
    EmptyName(String),
    #[error("{0} is not a unicast address")]
    NotUnicast(IpAddr),
}

impl VipLabel {
    /// Splits at the last `:`, as DC/OS does, so that `fd01:c::1:80` is port 80 of `fd01:c::1`; `[fd01:c::1]:80` too.
    pub fn parse(value: &str, framework: &str) -> Result<Self, VipLabelError> {
        let value = value.trim();
        let (host, port) = value.rsplit_once(':').ok_or_else(|| VipLabelError::NoPort(value.to_owned()))?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| VipLabelError::BadPort(port.to_owned()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let target = match bare.parse::<IpAddr>() {
            // `::ffff:10.0.0.1` and `10.0.0.1` are one address, so one VIP.
            Ok(ip) => match ip.to_canonical() {
                ip if is_unicast(ip) => VipTarget::Ip(ip),
                ip => return Err(VipLabelError::NotUnicast(ip)),
            },
            Err(_) => VipName::new(host, framework)
                .map(VipTarget::Named)
                .ok_or_else(|| VipLabelError::EmptyName(host.to_owned()))?,
        };
        Ok(Self { target, port })
    }

    pub fn for_protocol(&self, protocol: Protocol) -> VipKey {
        VipKey { target: self.target.clone(), protocol, port: self.port }
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        // 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3), 240.0.0.0/4 with the broadcast address is reserved.
        IpAddr::V4(v4) => v4.octets()[0] != 0 && v4 < Ipv4Addr::new(240, 0, 0, 0) && !v4.is_multicast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_grammar() {
        for (value, expect) in [
            ("/dcos-101/app2:10000", "dcos-101app2.marathon:10000"),
            ("redis:6379", "redis.marathon:6379"),
            ("/redis:6379", "redis.marathon:6379"),
            ("REDIS:6379", "redis.marathon:6379"),
            (" redis:6379 ", "redis.marathon:6379"),
            ("/api.hello-world:80", "api.hello-world.marathon:80"),
            ("api.hello-world:80", "api.hello-world.marathon:80"),
            ("/a/b:80", "ab.marathon:80"),
            ("my_app:80", "my-app.marathon:80"),
            ("redis:65535", "redis.marathon:65535"),
            ("1.2.3.4:5000", "1.2.3.4:5000"),
            ("::ffff:1.2.3.4:5000", "1.2.3.4:5000"),
            ("1.2.3:5000", "1.2.3.marathon:5000"),
            ("fd01:c::1:80", "fd01:c::1:80"),
            ("[fd01:c::1]:80", "fd01:c::1:80"),
        ] {
            let label = VipLabel::parse(value, "marathon").unwrap();
            assert_eq!(format!("{}:{}", label.target, label.port), expect, "{value}");
        }
    }

    #[test]
    fn what_is_no_vip_is_refused_with_the_reason() {
        for (value, reason) in [
            ("foo", "has no port"),
            ("", "has no port"),
            ("foo:", "is not a port"),
            ("foo:abc", "is not a port"),
            ("foo:0", "is not a port"),
            ("foo:-1", "is not a port"),
            ("foo:70000", "between 1 and 65535"),
            (":80", "no letter or digit"),
            ("$/:80", "no letter or digit"),
            ("224.0.0.1:80", "unicast"),
            ("255.255.255.255:80", "unicast"),
            ("240.0.0.1:80", "unicast"),
            ("0.0.0.0:80", "unicast"),
            ("0.1.2.3:80", "unicast"),
            ("[ff02::1]:80", "unicast"),
            (":::80", "unicast"),
        ] {
            let error = VipLabel::parse(value, "marathon").expect_err(value).to_string();
            assert!(error.contains(reason), "{value:?}: {error}");
        }
    }
}
