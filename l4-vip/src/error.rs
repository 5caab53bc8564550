//! Why a VIP address could not be opened, and what its owner can do about it.
//!
//! Faults of single connections are not errors of the plane: they are outcomes and counters.

use std::io;
use std::net::{IpAddr, SocketAddr};

use event_watcher::catalog::VipPool;

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: io::Error,
}

impl ListenError {
    /// What to do about it, in one line.
    pub fn hint(&self, pools: &[VipPool]) -> String {
        match self.source.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                format!(
                    "another program listens on port {} there; tried again every 5 s",
                    self.address.port()
                )
            }
            Some(libc::EADDRNOTAVAIL) => {
                format!("the address is not local to this host: {}", local_route(self.address.ip(), pools))
            }
            Some(libc::EACCES) => format!(
                "port {} needs CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start",
                self.address.port()
            ),
            Some(libc::EMFILE | libc::ENFILE) => {
                "no file descriptor is left: raise the limit (`ulimit -n`, LimitNOFILE=)".into()
            }
            _ => "tried again every 5 s".into(),
        }
    }
}

/// One route makes a whole pool local; a VIP outside every pool needs its own.
fn local_route(address: IpAddr, pools: &[VipPool]) -> String {
    let family = if address.is_ipv4() { "" } else { "-6 " };
    match pools.iter().find(|pool| pool.contains(address)) {
        Some(pool) => format!("`ip {family}route add local {pool} dev lo`"),
        None => format!("`ip {family}route add local {address} dev lo`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_what_helps() {
        let pools = ["11.0.0.0/8", "fd01:c::/64"].map(|p| p.parse().unwrap());
        for (address, errno, expect) in [
            ("11.1.2.3:80", libc::EADDRNOTAVAIL, "`ip route add local 11.0.0.0/8 dev lo`"),
            ("[fd01:c::5]:80", libc::EADDRNOTAVAIL, "`ip -6 route add local fd01:c::/64 dev lo`"),
            ("1.2.3.4:80", libc::EADDRNOTAVAIL, "`ip route add local 1.2.3.4 dev lo`"),
            ("11.1.2.3:80", libc::EACCES, "port 80 needs CAP_NET_BIND_SERVICE"),
            ("11.1.2.3:8080", libc::EADDRINUSE, "another program listens on port 8080"),
            ("11.1.2.3:80", libc::EMFILE, "ulimit -n"),
        ] {
            let error = ListenError {
                address: address.parse().unwrap(),
                source: io::Error::from_raw_os_error(errno),
            };
            assert!(error.hint(&pools).contains(expect), "{address} {errno}: {}", error.hint(&pools));
        }
    }
}
