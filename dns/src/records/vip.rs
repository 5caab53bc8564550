//! The names of a VIP: forwards, by port, and back from its addresses.
//!
//! It allocates nothing: addresses come from the catalog.

use std::net::IpAddr;

use event_watcher::catalog::{Protocol, VipName};

use super::{Data, Fact, Facts, L4LB, Tier};
use crate::names::WireName;

/// A named VIP: its addresses, an SRV record for each of its ports so that they can be found out, and the name of each
/// address. A VIP that got no address still exists.
pub(crate) fn of_vip(name: &VipName, addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Facts {
    let mut facts = Facts::default();
    let Some(target) = WireName::parse(&format!("{name}.{L4LB}")) else { return facts };
    facts.exists(&target);
    facts.addresses(Some(&target), Tier::Preferred, addresses);
    for (protocol, port) in ports {
        if let Some(name) = WireName::under(&format!("_{port}._{protocol}"), &target) {
            facts.service(&name, Tier::Preferred, *port, &target);
        }
    }
    for address in addresses {
        let n_labels = if address.is_ipv4() { 4 } else { 32 };
        facts.0.extend(WireName::parse(&reverse_label(*address, n_labels)).map(|name| Fact {
            name,
            tier: Tier::Preferred,
            data: Data::Pointer(target.clone()),
        }));
    }
    facts
}

/// The name under `in-addr.arpa` or `ip6.arpa` of the first `n_labels` octets (IPv4) or nibbles (IPv6) of an address
/// (RFC 1035 section 3.5, RFC 3596 section 2.5).
pub(crate) fn reverse_label(address: IpAddr, n_labels: usize) -> String {
    let (labels, zone): (Vec<String>, _) = match address {
        IpAddr::V4(ip) => (ip.octets().iter().map(ToString::to_string).collect(), "in-addr.arpa"),
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 0xf]);
            (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6.arpa")
        }
    };
    let reversed = labels.iter().take(n_labels).rev();
    let mut name = String::new();
    for label in reversed {
        name.push_str(label);
        name.push('.');
    }
    name + zone
}
