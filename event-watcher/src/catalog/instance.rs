//! One running copy of an app: its state and health as the scheduler reports them, and its addresses.
//!
//! What a plane itself observes of an instance (failed connects, requests in flight) never comes here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The scheduler's id of an instance (a Mesos task id), e.g. `dcos-101_app2.instance-5cf1….._app.1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Where the scheduler says the instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    Staging,
    Starting,
    Running,
    /// Told to stop: it finishes what it has and gets nothing new.
    Killing,
    /// Its agent does not answer; the instance itself may well serve.
    Unreachable,
    /// Ended, in whatever way.
    Terminal,
    /// A state that this version does not know.
    Unknown,
}

/// The scheduler's verdict over all health checks of the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The app has no health checks.
    Unchecked,
    /// Checks exist, no result is known (yet, or after the scheduler's leader changed).
    Unknown,
    /// No result is known, and the instance has had the time to give one, or the scheduler has lost all of them: it is
    /// not taken out for want of a verdict.
    Presumed,
    Healthy,
    Unhealthy,
}

/// The verdict of the readiness check that gates a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// The app has no readiness check, or none is being run now.
    Unchecked,
    Ready,
    NotReady,
}

/// What an instance may be used for. The one rule that all planes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// New requests, connections and DNS answers.
    In,
    /// Finishes what it has; nothing new.
    Draining,
    /// Nothing.
    Out,
}

/// The address of one service of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    pub port_index: usize,
    /// Where other hosts reach it.
    pub address: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    /// The agent's host name or address, as the scheduler spells it.
    pub host: Arc<str>,
    /// `host` as an address, when it is one or could be resolved.
    pub host_address: Option<IpAddr>,
    /// The scheduler's id of the agent.
    pub agent: Option<Arc<str>>,
    /// The app version that it runs.
    pub version: Arc<str>,
    pub state: InstanceState,
    pub health: Health,
    pub readiness: Readiness,
    /// In the scheduler's own spelling.
    pub started_at: Option<Arc<str>>,
    /// The instance's own addresses (container addresses where it has them).
    pub addresses: Vec<IpAddr>,
    /// Sorted by `port_index`; a service without a usable address has none, one on a container network may have
    /// several: one for each address of the instance, the first being the one that HTTP uses.
    pub endpoints: Vec<Endpoint>,
}

impl Instance {
    /// One that runs at this address, as far as is known, and that nobody checks.
    pub fn running(id: InstanceId, address: IpAddr, endpoints: Vec<Endpoint>) -> Self {
        Self {
            id,
            host: address.to_string().into(),
            host_address: Some(address),
            agent: None,
            version: "".into(),
            state: InstanceState::Running,
            health: Health::Unchecked,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![address],
            endpoints,
        }
    }

    pub fn rotation(&self) -> Rotation {
        use InstanceState::{Killing, Running, Staging, Starting, Terminal, Unknown, Unreachable};
        match (self.state, self.health) {
            (Staging | Starting | Terminal | Unknown, _) => Rotation::Out,
            (Killing, _) | (Running | Unreachable, Health::Unhealthy) => Rotation::Draining,
            (Running | Unreachable, Health::Unknown) => Rotation::Out,
            (Running | Unreachable, _) if self.readiness == Readiness::NotReady => Rotation::Out,
            (Running | Unreachable, Health::Healthy | Health::Presumed | Health::Unchecked) => Rotation::In,
        }
    }

    /// The first address of a service.
    pub fn endpoint(&self, port_index: usize) -> Option<&Endpoint> {
        self.endpoints_of(port_index).next()
    }

    /// Every address of a service.
    pub fn endpoints_of(&self, port_index: usize) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(move |e| e.port_index == port_index)
    }
}
