//! Fixed addresses: looked at before anything is started, and errors that say what to change.
//!
//! The planes bind with `SO_REUSEPORT`, one socket per worker, and so would share a port with another process of the
//! same user without a word. A socket without that option notices.

use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::args::{Mode, PlaneName};
use crate::config::Config;
use crate::failure::Failure;

/// Fails when one of the configured addresses cannot be bound. Binds nothing for longer than the look takes.
pub fn probe(config: &Config) -> Result<(), Failure> {
    let mut tcp = vec![(config.stats.listen, "the stats page", "--stats-listen")];
    if config.mode == Mode::Dev {
        tcp.push((config.scheduler.listen, "the scheduler's API", "--scheduler-listen"));
    }
    if config.runs(PlaneName::Http) {
        tcp.push((config.http.listen, "HTTP virtual hosts", "--http-listen"));
        tcp.push((config.https.listen, "HTTPS virtual hosts", "--https-listen"));
        tcp.push((config.appid.listen, "HTTP by app id", "--appid-listen"));
    }
    if config.runs(PlaneName::Dns) {
        let of_dns = [
            (config.dns.http.listen, "the DNS HTTP API", "--dns-http-listen"),
            (config.dns.dcos.listen, "dcos-net's HTTP API", "--dns-dcos-listen"),
        ];
        tcp.extend(of_dns.into_iter().filter_map(|(address, purpose, flag)| Some((address?, purpose, flag))));
    }
    for (address, purpose, flag) in tcp {
        TcpListener::bind(address).map_err(|e| failure(address, purpose, flag, &e))?;
    }
    if config.runs(PlaneName::Dns) {
        for address in &config.dns.listen {
            dns(*address).map_err(|e| failure(*address, "DNS", "--dns-listen", &e))?;
        }
    }
    Ok(())
}

/// DNS needs both transports.
pub fn dns(address: SocketAddr) -> std::io::Result<()> {
    UdpSocket::bind(address)?;
    TcpListener::bind(address)?;
    Ok(())
}

pub fn failure(address: SocketAddr, purpose: &str, flag: &str, error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::AddrInUse => Failure::new(format!("{address} is taken, and {purpose} should be there"))
            .hint(format!("stop the program that listens there, or choose another address with {flag}")),
        ErrorKind::PermissionDenied => Failure::new(format!("no right to listen on {address} for {purpose}"))
            .hint(format!(
                "ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose a higher port with {flag}"
            )),
        ErrorKind::AddrNotAvailable => Failure::new(format!(
            "this machine has no address {}, and {purpose} should be there",
            address.ip()
        ))
        .hint(format!("add it to an interface, or choose another with {flag}")),
        _ => Failure::chain(format!("cannot listen on {address} for {purpose}"), error)
            .hint(format!("choose another address with {flag}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_noticed_and_the_flag_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::defaults(Mode::Dev);
        let free = "127.0.0.1:0".parse().unwrap();
        (config.stats.listen, config.scheduler.listen) = (free, free);
        (config.http.listen, config.https.listen, config.appid.listen) = (free, free, free);
        config.dns.listen = vec![free];
        config.dns.http.listen = Some(free);
        assert!(probe(&config).is_ok());
        config.appid.listen = taken.local_addr().unwrap();
        let failure = probe(&config).unwrap_err().to_string();
        assert!(failure.contains("is taken") && failure.contains("--appid-listen"), "{failure}");
        config.planes = vec![PlaneName::Dns];
        assert!(probe(&config).is_ok(), "what does not run needs no port");
        config.dns.listen = vec![taken.local_addr().unwrap()];
        assert!(probe(&config).unwrap_err().to_string().contains("--dns-listen"));
    }
}
