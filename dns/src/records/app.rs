//! The names of an app and of each of its instances, after Mesos-DNS and dcos-net.
//!
//! They exist as long as the app does; what they lead to are its running instances. Where Mesos-DNS takes the first
//! address of a configured source, `.mesos` names lead to where the app's ports are: the agent when any port is a host
//! port, the container's own addresses otherwise. Where a container has ports of both kinds, SRV records of its own
//! ports lead to a name of its own, so that an address and a port of one SRV answer always belong together. It knows
//! neither VIPs nor the cluster.

use std::net::IpAddr;

use event_watcher::catalog::{App, Instance, Protocol, Service};

use super::{DCOS, Facts, MESOS, Tier};
use crate::config::Compat;
use crate::names::{WireName, canonical, canonical_tail, fragment, label};

pub(crate) fn of_app(app: &App, framework: &str, compat: Compat) -> Facts {
    let mut facts = Facts::default();
    let Some(names) = AppNames::new(app, framework) else { return facts };
    let of_services = names.services.iter().flatten();
    for name in names.both.iter().chain(&names.kinds).chain(of_services).flatten() {
        facts.exists(name);
    }
    for instance in &app.instances {
        names.instance(instance, compat, &mut facts);
    }
    facts
}

/// What one instance contributes to the names of its app, and its own.
pub(crate) fn of_instance(app: &App, instance: &Instance, framework: &str, compat: Compat) -> Facts {
    let mut facts = Facts::default();
    if let Some(names) = AppNames::new(app, framework) {
        names.instance(instance, compat, &mut facts);
    }
    facts
}

/// The label that an app's names begin with.
pub(crate) fn task_label(app: &App) -> String {
    label(&raw_task(app))
}

/// What Marathon calls the tasks of an app: the groups of its path, innermost first.
fn raw_task(app: &App) -> String {
    app.id.segments().rev().collect::<Vec<_>>().join(".")
}

/// The names that all instances of an app share. `None` among them: a name that DNS cannot hold.
struct AppNames {
    task: String,
    /// Mesos-DNS also answers for the name as the scheduler spells it, which differs for apps in groups.
    raw: Option<String>,
    /// Where the app's ports are, and where its agents are.
    places: [WireName; 2],
    /// Those of `task` and `raw` in both places.
    both: [Option<WireName>; 4],
    /// By agent, by container, by whichever the ports are at.
    kinds: [Option<WireName>; 3],
    /// What single containers are named under.
    containers: Option<WireName>,
    /// Ports on agents, over TCP and UDP.
    on_agents: [Option<WireName>; 2],
    /// By port index.
    services: Vec<Vec<Option<WireName>>>,
}

impl AppNames {
    /// `None`: nothing of the names is left that DNS could hold.
    fn new(app: &App, framework: &str) -> Option<Self> {
        let raw = raw_task(app);
        let (task, framework) = (label(&raw), fragment(framework));
        if task.is_empty() || framework.is_empty() {
            return None;
        }
        let raw = Some(raw).filter(|raw| *raw != task);
        let places = [
            WireName::parse(&format!("{framework}.{MESOS}"))?,
            WireName::parse(&format!("{framework}.slave.{MESOS}"))?,
        ];
        let both = in_both(&task, raw.as_deref(), &places);
        let of_kinds = ["agentip", "containerip", "autoip"]
            .map(|kind| WireName::parse(&format!("{framework}.{kind}.{DCOS}")));
        let kinds = of_kinds.each_ref().map(|of_kind| WireName::under(&task, of_kind.as_ref()?));
        let [_, containers, _] = of_kinds;
        let on_agents = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| WireName::under(&format!("_{task}._{protocol}"), &places[1]));
        let services = app.services.iter().map(|service| {
            let of_protocol = |protocol| {
                let name = format!("_{task}._{protocol}");
                let named = port_name(service).map(|port| format!("_{port}.{name}"));
                [Some(name), named].into_iter().flatten()
            };
            protocols(service).flat_map(of_protocol).map(|name| WireName::under(&name, &places[0])).collect()
        });
        let services = services.collect();
        Some(Self { task, raw, places, both, kinds, containers, on_agents, services })
    }

    fn instance(&self, instance: &Instance, compat: Compat, facts: &mut Facts) {
        let Some(tier) = Tier::of(instance, compat) else { return };
        let agent: &[IpAddr] = instance.host_address.as_slice();
        let on_agent = |ip: IpAddr| agent.contains(&ip);
        let own = if instance.addresses.is_empty() { agent } else { &instance.addresses };
        let reached_at =
            if instance.endpoints.iter().any(|e| on_agent(e.address.ip())) { agent } else { own };

        for (name, addresses) in self.kinds.iter().zip([agent, own, reached_at]) {
            facts.addresses(name.as_ref(), tier, addresses);
        }
        let tail = canonical_tail(instance.id.as_str(), instance.agent.as_deref());
        let single = canonical(&self.task, &tail);
        let raw_single = self.raw.as_ref().map(|raw| format!("{raw}{tail}"));
        let singles = in_both(&single, raw_single.as_deref(), &self.places);
        for of_both in [&self.both, &singles] {
            for (name, addresses) in of_both.iter().zip([reached_at, agent, reached_at, agent]) {
                facts.addresses(name.as_ref(), tier, addresses);
            }
        }

        let [Some(target), Some(agent_target), ..] = &singles else { return };
        let is_apart = |ip: IpAddr| !reached_at.contains(&ip) && own.contains(&ip);
        let has_ports_apart = instance.endpoints.iter().any(|e| is_apart(e.address.ip()));
        let container = self.containers.as_ref().filter(|_| has_ports_apart);
        let container = container.and_then(|containers| WireName::under(&single, containers));
        facts.addresses(container.as_ref(), tier, own);
        for endpoint in &instance.endpoints {
            let port = endpoint.address.port();
            if on_agent(endpoint.address.ip()) {
                for name in self.on_agents.iter().flatten() {
                    facts.service(name, tier, port, agent_target);
                }
            }
            let target = container.as_ref().filter(|_| is_apart(endpoint.address.ip())).unwrap_or(target);
            for name in self.services.get(endpoint.port_index).into_iter().flatten().flatten() {
                facts.service(name, tier, port, target);
            }
        }
    }
}

/// `task` in both places, then `raw` in both.
fn in_both(task: &str, raw: Option<&str>, places: &[WireName; 2]) -> [Option<WireName>; 4] {
    let name = |labels: Option<&str>, place| WireName::under(labels?, place);
    [name(Some(task), &places[0]), name(Some(task), &places[1]), name(raw, &places[0]), name(raw, &places[1])]
}

fn protocols(service: &Service) -> impl Iterator<Item = Protocol> {
    let tcp = service.protocols.tcp.then_some(Protocol::Tcp);
    tcp.into_iter().chain(service.protocols.udp.then_some(Protocol::Udp))
}

fn port_name(service: &Service) -> Option<String> {
    service.name.as_deref().map(label).filter(|name| !name.is_empty())
}
