//! Services of an app or pod: protocols and VIPs of each port, and the VIPs that labels of the whole name for a port.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Problems;
use super::ports::{Port, Target};
use crate::catalog::{Protocol, Protocols, Service, ServiceId, VipKey, VipLabel};

/// `at` is where the port stands in the definition.
pub(super) fn service(
    id: ServiceId,
    port: &Port,
    at: impl Fn() -> String,
    framework: &str,
    problems: &mut Problems,
) -> Service {
    let protocols = protocols(port.protocol.as_deref(), || format!("{}.protocol", at()), problems);
    let mut vips = Vec::new();
    // Exactly these two spellings, whatever follows: DC/OS's `handle_vip_labels`.
    for (key, value) in port.labels.iter().filter(|(key, _)| key.starts_with("VIP") || key.starts_with("vip"))
    {
        match VipLabel::parse(value, framework) {
            Ok(label) => vips.extend(vip_keys(&label, protocols)),
            Err(error) => {
                problems.add(format!("{}.labels.{key}", at()), error.to_string(), "this VIP is not served")
            }
        }
    }
    vips.sort();
    vips.dedup();
    Service {
        id,
        name: port.name.as_deref().map(Arc::from),
        service_port: port.service_port,
        protocols,
        labels: port.labels.clone(),
        vips,
    }
}

fn protocols(text: Option<&str>, at: impl FnOnce() -> String, problems: &mut Problems) -> Protocols {
    let Some(text) = text else { return Protocols::TCP };
    let mut protocols = Protocols { tcp: false, udp: false };
    let mut unknown = None;
    for part in text.split(',').map(str::trim) {
        if part.eq_ignore_ascii_case("tcp") {
            protocols.tcp = true;
        } else if part.eq_ignore_ascii_case("udp") {
            protocols.udp = true;
        } else {
            unknown = Some(part);
        }
    }
    if let Some(unknown) = unknown {
        problems.add(at(), format!("{unknown:?} is neither tcp nor udp"), "this protocol is not served");
    }
    protocols
}

fn vip_keys(label: &VipLabel, protocols: Protocols) -> impl Iterator<Item = VipKey> {
    let tcp = protocols.tcp.then(|| label.for_protocol(Protocol::Tcp));
    let udp = protocols.udp.then(|| label.for_protocol(Protocol::Udp));
    tcp.into_iter().chain(udp)
}

/// `VIP_PORT<n>` labels of a task: `tcp://name:port` for its n-th host port (DC/OS's `handle_task_vip_label`). `owner`
/// is whose ports are meant.
pub(super) fn task_vip_labels(
    labels: &BTreeMap<String, String>,
    owner: usize,
    ports: &[Port],
    services: &mut [Service],
    framework: &str,
    problems: &mut Problems,
) {
    for (key, value) in labels {
        let Some(prefix) = key.get(..8).filter(|p| p.eq_ignore_ascii_case("VIP_PORT")) else { continue };
        let read = || {
            let n: usize =
                key[prefix.len()..].parse().map_err(|_| "the label's name has no port index".to_owned())?;
            let service = ports
                .iter()
                .position(|p| p.owner == owner && p.target == Target::HostPort(n))
                .ok_or_else(|| format!("there is no host port {n}"))?;
            let (protocol, vip) = match value.split_once("://") {
                Some(("tcp", vip)) => (Protocol::Tcp, vip),
                Some(("udp", vip)) => (Protocol::Udp, vip),
                _ => return Err(format!("{value:?} does not begin with tcp:// or udp://")),
            };
            let label = VipLabel::parse(vip, framework).map_err(|e| e.to_string())?;
            Ok((service, label.for_protocol(protocol)))
        };
        match read() {
            Ok((index, vip)) => {
                let vips = &mut services[index].vips;
                if let Err(at) = vips.binary_search(&vip) {
                    vips.insert(at, vip);
                }
            }
            Err(what) => problems.add(format!("labels.{key}"), what, "this VIP is not served"),
        }
    }
}
