//! An app as the scheduler defines it, with its services (load-balanced ports) and its instances.
//!
//! It does not know which labels mean what: planes read the labels that are theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::vip::VipKey;

/// The absolute path that names an app, e.g. `/dcos-101/app2`. Always begins with `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Reads an id as people and schedulers write it: a missing leading slash, doubled and trailing slashes are mended.
    pub fn new(id: &str) -> Self {
        let mut path = String::with_capacity(id.len() + 1);
        for segment in id.split('/').filter(|s| !s.is_empty()) {
            path.push('/');
            path.push_str(segment);
        }
        if path.is_empty() {
            path.push('/');
        }
        Self(path.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path segments, outermost group first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|s| !s.is_empty())
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// One port of one app, as it is load-balanced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    pub app: AppId,
    pub port_index: usize,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.app, self.port_index)
    }
}

/// Which transports a port definition names (`tcp`, `udp`, `udp,tcp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    pub tcp: bool,
    pub udp: bool,
}

impl Protocols {
    pub const TCP: Self = Self { tcp: true, udp: false };
}

/// A port definition or mapping of an app, at its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    /// The port's name in the definition, when it has one.
    pub name: Option<Arc<str>>,
    /// The port that balancers listen on for it. `None`: the scheduler assigned none.
    pub service_port: Option<u16>,
    pub protocols: Protocols,
    /// Labels of the port definition, as written.
    pub labels: BTreeMap<String, String>,
    /// The VIPs that this service feeds, parsed. What did not parse is a [`super::Problem`].
    pub vips: Vec<VipKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheckProtocol {
    Http,
    Https,
    Tcp,
    Command,
    MesosHttp,
    MesosHttps,
    MesosTcp,
    /// A kind that this version does not know; the scheduler's verdict counts all the same.
    Other,
}

/// What of a health check matters outside the scheduler that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub protocol: HealthCheckProtocol,
    pub path: Option<Arc<str>>,
    pub port_index: Option<usize>,
    /// A port of its own, for all services.
    pub port: Option<u16>,
    /// `None` here and below: the scheduler did not say.
    pub grace_period_seconds: Option<u32>,
    pub interval_seconds: Option<u32>,
    pub timeout_seconds: Option<u32>,
    pub max_consecutive_failures: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub id: AppId,
    /// The scheduler's version of the definition (a timestamp in its own spelling); compared only for equality.
    pub version: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub n_instances_wanted: u32,
    pub services: Vec<Service>,
    pub health_checks: Vec<HealthCheck>,
    /// Sorted by id; includes instances that may not be used (see [`super::Rotation`]).
    pub instances: Vec<Arc<Instance>>,
    /// Ids of the deployments that change this app now.
    pub deployments: Vec<Arc<str>>,
}

impl App {
    /// One that nobody deploys or checks: it has what it should have.
    pub fn settled(id: AppId, services: Vec<Service>, instances: Vec<Arc<Instance>>) -> Self {
        Self {
            id,
            version: "".into(),
            labels: BTreeMap::new(),
            n_instances_wanted: instances.len() as u32,
            services,
            health_checks: Vec::new(),
            instances,
            deployments: Vec::new(),
        }
    }

    /// Takes the instances that are as they were in an earlier version of this app from there: a large cluster would
    /// be in memory twice.
    pub(super) fn share_instances_of(&mut self, earlier: &Self) {
        for instance in &mut self.instances {
            if let Ok(at) = earlier.instances.binary_search_by(|known| known.id.cmp(&instance.id))
                && earlier.instances[at] == *instance
            {
                *instance = Arc::clone(&earlier.instances[at]);
            }
        }
    }

    pub fn service(&self, port_index: usize) -> Option<&Service> {
        self.services.get(port_index)
    }

    /// Looks a label up as the app writes it.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids_are_absolute_paths() {
        for (input, expect) in [
            ("/dcos-101/app2", "/dcos-101/app2"),
            ("dcos-101//app2/", "/dcos-101/app2"),
            ("web", "/web"),
            ("", "/"),
            ("///", "/"),
        ] {
            assert_eq!(AppId::new(input).as_str(), expect, "{input:?}");
        }
        assert_eq!(AppId::new("/a/b").segments().rev().collect::<Vec<_>>(), ["b", "a"]);
    }
}
