//! The names of an app and of each of its instances, after Mesos-DNS and dcos-net.
//!
//! They exist as long as the app does; what they lead to are its running instances. Where Mesos-DNS takes the first
//! address of a configured source, `.mesos` names lead to where the app's ports are: the agent when any port is a
//! host port, the container's own addresses otherwise, so that an address and a port of one SRV answer always belong
//! together. It knows neither VIPs nor the cluster.

use std::net::IpAddr;

use event_watcher::catalog::{App, Instance, Protocol, Service};

use super::{DCOS, Facts, MESOS, Tier};
use crate::config::Compat;
use crate::names::{WireName, canonical, canonical_tail, fragment, label};

pub(crate) fn of_app(app: &App, framework: &str, compat: Compat) -> Facts {
    let mut facts = Facts::default();
    let Some(names) = AppNames::new(app, framework) else { return facts };
    let AppNames { task, raw, framework, here, agents } = &names;
    for name in std::iter::once(task).chain(raw) {
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
        names.instance(app, instance, compat, &mut facts);
    }
    facts
}

/// What one instance contributes to the names of its app, and its own.
pub(crate) fn of_instance(app: &App, instance: &Instance, framework: &str, compat: Compat) -> Facts {
    let mut facts = Facts::default();
    if let Some(names) = AppNames::new(app, framework) {
        names.instance(app, instance, compat, &mut facts);
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

struct AppNames {
    task: String,
    /// Mesos-DNS also answers for the name as the scheduler spells it, which differs for apps in groups.
    raw: Option<String>,
    framework: String,
    here: String,
    agents: String,
}

impl AppNames {
    /// `None`: nothing of the names is left that DNS could hold.
    fn new(app: &App, framework: &str) -> Option<Self> {
        let raw = raw_task(app);
        let (task, framework) = (label(&raw), fragment(framework));
        if task.is_empty() || framework.is_empty() {
            return None;
        }
        let agents = format!("{framework}.slave.{MESOS}");
        let here = format!("{framework}.{MESOS}");
        Some(Self { raw: Some(raw).filter(|raw| *raw != task), task, framework, here, agents })
    }

    fn instance(&self, app: &App, instance: &Instance, compat: Compat, facts: &mut Facts) {
        let Some(tier) = Tier::of(instance, compat) else { return };
        let Self { task, raw, framework, here, agents } = self;
        let agent: &[IpAddr] = instance.host_address.as_slice();
        let on_agent = |ip: IpAddr| agent.contains(&ip);
        let own = if instance.addresses.is_empty() { agent } else { &instance.addresses };
        let reached_at =
            if instance.endpoints.iter().any(|e| on_agent(e.address.ip())) { agent } else { own };

        for (kind, addresses) in [("agentip", agent), ("containerip", own), ("autoip", reached_at)] {
            facts.addresses(&format!("{task}.{framework}.{kind}.{DCOS}"), tier, addresses);
        }
        let (id, agent_id) = (instance.id.as_str(), instance.agent.as_deref());
        let single = canonical(task, id, agent_id);
        let raw_single = raw.as_ref().map(|raw| format!("{raw}{}", canonical_tail(id, agent_id)));
        for name in [Some(task), Some(&single), raw.as_ref(), raw_single.as_ref()].into_iter().flatten() {
            facts.addresses(&format!("{name}.{here}"), tier, reached_at);
            facts.addresses(&format!("{name}.{agents}"), tier, agent);
        }

        let (Some(target), Some(agent_target)) =
            (WireName::parse(&format!("{single}.{here}")), WireName::parse(&format!("{single}.{agents}")))
        else {
            return;
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
}

fn protocols(service: &Service) -> impl Iterator<Item = Protocol> {
    let tcp = service.protocols.tcp.then_some(Protocol::Tcp);
    tcp.into_iter().chain(service.protocols.udp.then_some(Protocol::Udp))
}

fn port_name(service: &Service) -> Option<String> {
    service.name.as_deref().map(label).filter(|name| !name.is_empty())
}
