//! What only `waymark dev` has: the scheduler, the demo app, DNS on port 53 when that is possible, and the banner.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix, UnixDatagram};

use event_watcher::catalog::{AppId, Rotation};
use event_watcher::publish::{Applied, Subscriber};

use super::{DEMO_DEADLINE, bind};
use crate::admin::Addresses;
use crate::args::{Mode, PlaneName};
use crate::config::Config;
use crate::failure::Failure;
use crate::output::Style;
use crate::{demo, scheduler};

const DEMO: &str = "/dcos-101/app2";
const DEMO_NAME: &str = "dcos-101app2.marathon.l4lb.thisdcos.directory";
const DEMO_PORT: u16 = 10000;
/// Every program looks names up on port 53. These loopback addresses are nobody else's; a second `dev` takes the next.
const RESOLVERS: std::ops::RangeInclusive<u8> = 53..=60;

/// The embedded scheduler's own configuration. Errors name the flag.
pub fn scheduler_config(config: &Config) -> Result<scheduler::Config, Failure> {
    let asked = &config.scheduler;
    let base = match asked.simulate {
        true => scheduler::Config::simulated(),
        false => scheduler::Config::default(),
    };
    let amount = |flag: &str, value: f64| match value {
        0.0 => Ok(None),
        value if value.is_finite() && value > 0.0 => Ok(Some(value)),
        value => Err(Failure::usage(format!("bad --{flag} {value}")).hint("it is a number above 0")),
    };
    let ports = match asked.ports.as_str() {
        "" => base.ports.clone(),
        text => {
            let range = text.split_once('-').and_then(|(first, last)| {
                let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
                (0 < first && first <= last).then_some(first..=last)
            });
            range.ok_or_else(|| {
                Failure::usage(format!("bad --ports {text:?}")).hint("write them as 31000-32000")
            })?
        }
    };
    let pair = |flag: &'static str, text: &str, separator: char| match text.split_once(separator) {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("bad --{flag}")).hint(format!("write it as NAME{separator}VALUE"))),
    };
    let attributes = asked.attributes.iter().map(|text| pair("attribute", text, '='));
    let credentials = match asked.credentials.as_str() {
        "" => None,
        text => Some(pair("scheduler-credentials", text, ':')?),
    };
    Ok(scheduler::Config {
        listen: asked.listen,
        state_dir: config.state.dir.join("scheduler"),
        access: scheduler::Access {
            token: Some(asked.token.clone()).filter(|token| !token.is_empty()),
            credentials,
        },
        names: asked.names.clone(),
        ports,
        cpus: amount("cpus", asked.cpus)?,
        mem: amount("mem", asked.mem)?,
        disk: amount("disk", asked.disk)?,
        attributes: attributes.collect::<Result<_, _>>()?,
        ..base
    })
}

/// An address in 127.0.0.0/8 with port 53 that no other `waymark dev` of this network namespace takes while this lives.
///
/// Looking whether the port is free is not enough: two that start together would both find it so.
#[derive(Debug)]
pub struct Resolver {
    pub address: SocketAddr,
    /// The kernel gives each abstract name away once, and takes it back when the process ends, in whatever way.
    _claim: UnixDatagram,
}

impl Resolver {
    /// The first address that is free, if this process may have one. Without it, only `exec` and `shell` are lost.
    pub fn claim(config: &Config) -> Option<Self> {
        if config.mode != Mode::Dev
            || !config.runs(PlaneName::Dns)
            || config.dns.listen.iter().any(|address| address.port() == 53)
        {
            return None;
        }
        let mut candidates =
            RESOLVERS.map(|last| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 8, last)), 53));
        let found = candidates.find_map(|address| Self::at(address).ok());
        if found.is_none() {
            tracing::info!("no right to port 53: waymark exec and waymark shell will not work");
        }
        found
    }

    fn at(address: SocketAddr) -> io::Result<Self> {
        let name = unix::SocketAddr::from_abstract_name(format!("waymark/{address}"))?;
        // The claim comes first: whoever has it is alone between the look and the bind.
        let claim = UnixDatagram::bind_addr(&name)?;
        bind::dns(address)?;
        Ok(Self { address, _claim: claim })
    }
}

pub async fn ensure_demo(scheduler: &scheduler::Running) -> Result<(), Failure> {
    let exe =
        std::env::current_exe().map_err(|e| Failure::chain("cannot find this program's own file", &e))?;
    scheduler
        .ensure_app(demo::demo_app_definition(&exe))
        .await
        .map_err(|e| Failure::chain("cannot start the demo app", &e).hint("--no-demo starts without it"))
}

/// Waits until the planes send the demo app traffic, or for as long as a start may take.
pub async fn demo_serves(mut subscriber: Subscriber, mut applied: Applied) {
    let id = AppId::new(DEMO);
    let serves = async {
        loop {
            let snapshot = subscriber.latest();
            let there = snapshot.app(&id).is_some_and(|app| {
                app.n_instances_wanted == 0 || app.instances.iter().any(|i| i.rotation() == Rotation::In)
            });
            if there {
                let _ = applied.reached(snapshot.generation).await;
                return;
            }
            if subscriber.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(DEMO_DEADLINE, serves).await.is_err() {
        tracing::warn!("the demo app {DEMO} does not run yet; waymark app log {DEMO} may say why");
    }
}

/// Where everything listens, and what to try next: the tutorial's lines, with this run's addresses.
pub fn banner(addresses: &Addresses, demo: bool, style: Style) -> String {
    let defaults = Config::defaults(Mode::Dev);
    let mut text = format!("\n{}\n\n", style.bold("Waymark is ready."));
    let mut line = |what: &str, address: String| text.push_str(&format!("  {what:<28} {address}\n"));
    for (what, scheme, address) in [
        ("scheduler API (Marathon)", "http", addresses.scheduler),
        ("stats page", "http", addresses.stats),
        ("HTTP virtual hosts", "http", addresses.http),
        ("HTTPS virtual hosts", "https", addresses.https),
        ("HTTP by app id", "http", addresses.appid),
    ] {
        if let Some(address) = address {
            line(what, format!("{scheme}://{address}/"));
        }
    }
    if let Some(service) = addresses.service {
        line("service ports", format!("{service}:10000…"));
    }
    for address in &addresses.dns {
        line("DNS (UDP and TCP)", address.to_string());
    }
    if !demo {
        text.push_str("\nCtrl-C stops everything.\n\n");
        return text;
    }
    text.push_str(&format!("\n{}\n\n", style.bold("Try, in another terminal:")));
    // Commands ask the usual addresses; whoever moved them has to say so.
    let moved = |address: Option<SocketAddr>, usual: SocketAddr, variable: &str| {
        address
            .filter(|a| *a != usual)
            .map(|a| format!("  export {variable}=http://{a}\n"))
            .unwrap_or_default()
    };
    text.push_str(&moved(addresses.scheduler, defaults.scheduler.listen, "WAYMARK_MARATHON"));
    text.push_str(&moved(addresses.stats, defaults.stats.listen, "WAYMARK_STATS"));
    let service = addresses.service.unwrap_or(defaults.service.address);
    let stats = addresses.stats.unwrap_or(defaults.stats.listen);
    for (command, says) in [
        ("waymark app list".to_owned(), "what runs"),
        (format!("curl http://{service}:{DEMO_PORT}/"), "the instance says who it is"),
        (format!("waymark app update {DEMO} instances=2"), "scale up"),
        (format!("curl http://{service}:{DEMO_PORT}/"), "now two take turns"),
        (format!("waymark dns lookup {DEMO_NAME}"), "its virtual IP"),
        (format!("curl http://$(waymark dns lookup --short {DEMO_NAME}):{DEMO_PORT}/"), "through it"),
        (format!("waymark app update {DEMO} instances=1"), "and back; nobody sees an error"),
    ] {
        text.push_str(&format!("  {command}\n      {}\n", style.dim(says)));
    }
    if addresses.dns53.is_some() {
        text.push_str(&format!(
            "  waymark exec -- curl {DEMO_NAME}:{DEMO_PORT}\n      {}\n",
            style.dim("by name, from inside the cluster (as root)")
        ));
    }
    text.push_str(&format!("  open http://{stats}/ and http://{stats}/haproxy?stats to watch it move\n"));
    text.push_str("\nCtrl-C stops everything, the instances too.\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_claimed_once_at_a_time() {
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let first = Resolver::at(address).unwrap();
        assert_eq!(Resolver::at(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(Resolver::at(address).is_ok());
    }
}
