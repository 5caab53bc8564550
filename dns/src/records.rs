//! What names an app, a VIP or the cluster contributes, and which address or port each leads to.
//!
//! Pure: it does not know what other sources say about the same name (`compile` merges), nor how answers look.

use std::net::IpAddr;

use event_watcher::catalog::{App, Instance, InstanceState, Protocol, Rotation, Service, VipName};

use crate::names::{WireName, canonical, fragment, label};

pub(crate) const MESOS: &str = "mesos";
pub(crate) const L4LB: &str = "l4lb.thisdcos.directory";
pub(crate) const DCOS: &str = "dcos.thisdcos.directory";

/// How good an answer is. Only the best of a name are given out: a failing instance is better than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    Preferred,
    /// Runs, but is not (yet, or any more) healthy.
    LastResort,
}

impl Tier {
    /// `None`: an instance that starts, stops or has ended is never an answer.
    fn of(instance: &Instance) -> Option<Self> {
        match (instance.rotation(), instance.state) {
            (Rotation::In, _) => Some(Self::Preferred),
            (_, InstanceState::Running | InstanceState::Unreachable) => Some(Self::LastResort),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// The name exists, if only to say that it has no records now.
    Exists,
    Address(IpAddr),
    Service {
        port: u16,
        target: WireName,
    },
}

/// One thing that a source says about a name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub name: WireName,
    pub tier: Tier,
    pub data: Data,
}

/// Collects facts; names that DNS cannot hold (too long) are left out, which concerns that name alone.
#[derive(Debug, Default)]
pub(crate) struct Facts(pub Vec<Fact>);

impl Facts {
    pub fn exists(&mut self, name: &str) {
        self.0.extend(WireName::parse(name).map(|name| Fact {
            name,
            tier: Tier::Preferred,
            data: Data::Exists,
        }));
    }

    pub fn addresses(&mut self, name: &str, tier: Tier, addresses: &[IpAddr]) {
        let Some(name) = WireName::parse(name) else { return };
        let fact = |ip: &IpAddr| Fact { name: name.clone(), tier, data: Data::Address(*ip) };
        self.0.extend(addresses.iter().map(fact));
    }

    fn service(&mut self, name: &str, tier: Tier, port: u16, target: &WireName) {
        let data = Data::Service { port, target: target.clone() };
        self.0.extend(WireName::parse(name).map(|name| Fact { name, tier, data }));
    }
}

/// The names of an app, after Mesos-DNS and dcos-net. They exist as long as the app does; what they lead to are its
/// running instances. Where Mesos-DNS takes the first address of a configured source, `.mesos` names lead to where
/// the app's ports are: the agent when any port is a host port, the container's own addresses otherwise, so that an
/// address and a port of one SRV answer always belong together.
pub(crate) fn of_app(app: &App, framework: &str) -> Facts {
    let mut facts = Facts::default();
    let raw = app.id.segments().rev().collect::<Vec<_>>().join(".");
    let (task, framework) = (label(&raw), fragment(framework));
    if task.is_empty() || framework.is_empty() {
        return facts;
    }
    let agents = format!("{framework}.slave.{MESOS}");
    let here = format!("{framework}.{MESOS}");
    // Mesos-DNS also answers for the name as the scheduler spells it, which differs for apps in groups.
    let raw = Some(raw).filter(|raw| *raw != task);
    for name in [Some(&task), raw.as_ref()].into_iter().flatten() {
        facts.exists(&format!("{name}.{here}"));
        facts.exists(&format!("{name}.{agents}"));
    }
    for kind in ["agentip", "containerip", "autoip"] {
        facts.exists(&format!("{task}.{framework}.{kind}.{DCOS}"));
    }
    for service in &app.services {
        for protocol in protocols(service) {
            facts.exists(&format!("_{task}._{protocol}.{here}"));
            if let Some(port) = port_name(service) {
                facts.exists(&format!("_{port}._{task}._{protocol}.{here}"));
            }
        }
    }

    for instance in &app.instances {
        let Some(tier) = Tier::of(instance) else { continue };
        let agent: &[IpAddr] = instance.host_address.as_slice();
        let on_agent = |ip: IpAddr| agent.contains(&ip);
        let own = if instance.addresses.is_empty() { agent } else { &instance.addresses };
        let reached_at =
            if instance.endpoints.iter().any(|e| on_agent(e.address.ip())) { agent } else { own };

        for (kind, addresses) in [("agentip", agent), ("containerip", own), ("autoip", reached_at)] {
            facts.addresses(&format!("{task}.{framework}.{kind}.{DCOS}"), tier, addresses);
        }
        let id = instance.id.as_str();
        let single = canonical(&task, id, instance.agent.as_deref());
        for name in [Some(&task), Some(&single), raw.as_ref()].into_iter().flatten() {
            facts.addresses(&format!("{name}.{here}"), tier, reached_at);
            facts.addresses(&format!("{name}.{agents}"), tier, agent);
        }

        let (Some(target), Some(agent_target)) =
            (WireName::parse(&format!("{single}.{here}")), WireName::parse(&format!("{single}.{agents}")))
        else {
            continue;
        };
        for endpoint in &instance.endpoints {
            let port = endpoint.address.port();
            if on_agent(endpoint.address.ip()) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    facts.service(&format!("_{task}._{protocol}.{agents}"), tier, port, &agent_target);
                }
            }
            let Some(service) = app.service(endpoint.port_index) else { continue };
            for protocol in protocols(service) {
                facts.service(&format!("_{task}._{protocol}.{here}"), tier, port, &target);
                if let Some(name) = port_name(service) {
                    facts.service(&format!("_{name}._{task}._{protocol}.{here}"), tier, port, &target);
                }
            }
        }
    }
    facts
}

/// A named VIP: its addresses, and an SRV record for each of its ports so that they can be found out. A VIP that got
/// no address still exists.
pub(crate) fn of_vip(name: &VipName, addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Facts {
    let mut facts = Facts::default();
    let full = format!("{name}.{L4LB}");
    facts.exists(&full);
    facts.addresses(&full, Tier::Preferred, addresses);
    if let Some(target) = WireName::parse(&full) {
        for (protocol, port) in ports {
            facts.service(&format!("_{port}._{protocol}.{full}"), Tier::Preferred, *port, &target);
        }
    }
    facts
}

fn protocols(service: &Service) -> impl Iterator<Item = Protocol> {
    let tcp = service.protocols.tcp.then_some(Protocol::Tcp);
    tcp.into_iter().chain(service.protocols.udp.then_some(Protocol::Udp))
}

fn port_name(service: &Service) -> Option<String> {
    service.name.as_deref().map(label).filter(|name| !name.is_empty())
}
