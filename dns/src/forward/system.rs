//! The resolvers that this host uses, as its own files tell.
//!
//! Where this server was installed as the host's resolver, those files name it, and the ones before tell more.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::install::{BACKUP, MARK};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The servers that systemd-resolved asks itself.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Where systemd-resolved answers.
const RESOLVED_STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
const DNS_PORT: u16 = 53;

/// The host's own resolvers; none when it has none or they cannot be read.
pub(crate) fn resolvers() -> Vec<SocketAddr> {
    let text = match std::fs::read_to_string(RESOLV_CONF) {
        Ok(text) if text.contains(MARK) => read(&Path::new("/").join(BACKUP)),
        Ok(text) => Some(text),
        Err(error) => {
            tracing::debug!(%error, "cannot read {RESOLV_CONF}");
            None
        }
    };
    let found = text.as_deref().map(parse).unwrap_or_default();
    // The stub would hand our own zones back to us, and asks others than are configured for a name's link.
    if found.iter().any(|server| RESOLVED_STUBS.contains(&server.ip()))
        && let Some(text) = read(Path::new(BEHIND_RESOLVED))
    {
        return parse(&text);
    }
    found
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers.filter_map(|word| word.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_the_rest_of_resolv_conf_is_not() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 10.0.0.1 # first\n\tnameserver  ::1\nnameserver x\n\
                    nameserver\noptions timeout:1\n";
        let expect: Vec<SocketAddr> = ["10.0.0.1:53", "[::1]:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(parse(text), expect);
    }
}
