//! The names of the cluster as a whole: its scheduler, its agents, this node, and the resolver itself.
//!
//! They come from the configuration and from what the apps' instances say of their agents; no app is named here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use event_watcher::catalog::Protocol;

use super::{DCOS, Facts, MESOS, Tier};
use crate::config::Config;
use crate::names::{WireName, fragment};

/// Where every Mesos agent listens unless told otherwise.
const AGENT_PORT: u16 = 5051;
/// DC/OS names so many ZooKeeper members, whatever their number: a smaller ensemble is repeated.
const N_ZK_NAMES: usize = 5;

pub(crate) fn of_cluster(config: &Config, framework: &str) -> Facts {
    let mut facts = Facts::default();
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    facts.host("localhost", &loopback);
    facts.host("ready.spartan", &loopback[..1]);
    let own: Vec<IpAddr> =
        config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    for name in ["ns.spartan", &format!("ns1.{MESOS}")] {
        facts.host(name, &own);
    }
    for (name, addresses) in [
        ("thisnode.thisdcos.directory", &config.node_addresses),
        ("public.thisnode.thisdcos.directory", &config.public_addresses),
    ] {
        facts.host(name, addresses);
    }
    of_masters(config, framework, &mut facts);
    facts
}

fn of_masters(config: &Config, framework: &str, facts: &mut Facts) {
    let masters: Vec<IpAddr> = config.masters.iter().map(SocketAddr::ip).collect();
    let leader = format!("leader.{MESOS}");
    let mut names = vec![leader.clone(), format!("master.{MESOS}")];
    names.extend(["leader", "master"].map(|name| format!("{name}.{DCOS}")));
    let framework = fragment(framework);
    let scheduler = (!framework.is_empty()).then(|| format!("{framework}.{MESOS}"));
    names.extend(scheduler.clone());
    for name in &names {
        facts.host(name, &masters);
    }
    for (i, master) in masters.iter().enumerate() {
        facts.host(&format!("master{i}.{MESOS}"), &[*master]);
    }
    let mut service = |name: &str, port: u16, target: &str| {
        let Some(name) = WireName::parse(name) else { return };
        facts.exists(&name);
        if let Some(target) = WireName::parse(target) {
            facts.service(&name, Tier::Preferred, port, &target);
        }
    };
    // A scheduler that takes any free port is not known here.
    for master in config.masters.iter().filter(|master| master.port() > 0) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            service(&format!("_leader._{protocol}.{MESOS}"), master.port(), &leader);
        }
        if let Some(scheduler) = &scheduler {
            service(&format!("_framework._tcp.{scheduler}"), master.port(), scheduler);
        }
    }
    if !masters.is_empty() {
        for (i, master) in masters.iter().cycle().take(N_ZK_NAMES).enumerate() {
            facts.host(&format!("zk-{}.zk", i + 1), &[*master]);
        }
    }
}

/// The agents that run anything.
pub(crate) fn of_agents(agents: &[IpAddr]) -> Facts {
    let mut facts = Facts::default();
    if agents.is_empty() {
        return facts;
    }
    let all = format!("slave.{MESOS}");
    facts.host(&all, agents);
    if let (Some(name), Some(target)) =
        (WireName::parse(&format!("_slave._tcp.{MESOS}")), WireName::parse(&all))
    {
        facts.service(&name, Tier::Preferred, AGENT_PORT, &target);
    }
    facts
}
