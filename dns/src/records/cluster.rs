//! The names of the cluster as a whole: its scheduler, its agents, this node, and the resolver itself.
//!
//! They come from the configuration, from what the scheduler says about itself, and from what the apps' instances say
//! of their agents; no app is named here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use event_watcher::catalog::{Leaders, Protocol};

use super::{DCOS, Facts, MESOS, Tier};
use crate::config::Config;
use crate::names::{WireName, fragment};

/// Where every Mesos agent listens unless told otherwise.
const AGENT_PORT: u16 = 5051;
/// DC/OS names so many ZooKeeper members, whatever their number: a smaller ensemble is repeated.
const N_ZK_NAMES: usize = 5;

pub(crate) fn of_cluster(config: &Config, framework: &str, leaders: Leaders) -> Facts {
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
    of_masters(config, framework, leaders, &mut facts);
    facts
}

/// Where the cluster is led from: what the scheduler says, else the addresses that are configured for it.
fn of_masters(config: &Config, framework: &str, leaders: Leaders, facts: &mut Facts) {
    // A port that is not known yet, and an address that stands for all, lead nobody anywhere.
    let told = |leader: Option<SocketAddr>| leader.filter(|at| at.port() > 0 && !at.ip().is_unspecified());
    let (scheduler, master) = (told(leaders.scheduler), told(leaders.master));
    let or_configured = |leader: Option<SocketAddr>| match leader {
        Some(leader) => vec![leader],
        None => config.masters.clone(),
    };
    let (schedulers, leading) = (or_configured(scheduler.or(master)), or_configured(master.or(scheduler)));
    let ips = |of: &[SocketAddr]| of.iter().map(SocketAddr::ip).collect::<Vec<IpAddr>>();
    let mut masters = ips(&config.masters);
    masters
        .extend(ips(&leading).into_iter().filter(|leader| !config.masters.iter().any(|m| m.ip() == *leader)));

    let (leader, framework) = (format!("leader.{MESOS}"), fragment(framework));
    let own = (!framework.is_empty()).then(|| format!("{framework}.{MESOS}"));
    let names = [
        (leader.clone(), ips(&leading)),
        (format!("leader.{DCOS}"), ips(&schedulers)),
        (format!("master.{MESOS}"), masters.clone()),
        (format!("master.{DCOS}"), masters.clone()),
    ];
    for (name, addresses) in names.into_iter().chain(own.clone().map(|name| (name, ips(&schedulers)))) {
        facts.host(&name, &addresses);
    }
    for (i, master) in masters.iter().enumerate() {
        facts.host(&format!("master{i}.{MESOS}"), &[*master]);
    }
    let mut service = |name: &str, port: u16, target: &str| {
        let Some(name) = WireName::parse(name) else { return };
        facts.exists(&name);
        if let Some(target) = WireName::parse(target).filter(|_| port > 0) {
            facts.service(&name, Tier::Preferred, port, &target);
        }
    };
    for at in &leading {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            service(&format!("_leader._{protocol}.{MESOS}"), at.port(), &leader);
        }
    }
    for at in &schedulers {
        if let Some(own) = &own {
            service(&format!("_framework._tcp.{own}"), at.port(), own);
        }
    }
    if !config.masters.is_empty() {
        for (i, master) in config.masters.iter().cycle().take(N_ZK_NAMES).enumerate() {
            facts.host(&format!("zk-{}.zk", i + 1), &[master.ip()]);
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
