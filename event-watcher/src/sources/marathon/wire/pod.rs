//! `/v2/pods/::status` as a lenient reader sees it: a pod's definition together with its instances (1.4 and newer).
//!
//! A wrong type in an instance fails that instance; one in the definition, that pod.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Network;

#[derive(Deserialize)]
pub(crate) struct Status<'a> {
    pub id: String,
    pub spec: Spec,
    #[serde(borrow)]
    pub instances: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
pub(crate) struct Spec {
    pub version: Option<String>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
    pub networks: Option<Vec<Network>>,
    pub scaling: Option<Scaling>,
    pub containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
pub(crate) struct Scaling {
    pub instances: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub name: String,
    pub labels: Option<BTreeMap<String, Option<String>>>,
    pub endpoints: Option<Vec<Endpoint>>,
    pub health_check: Option<HealthCheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    pub name: Option<String>,
    pub container_port: Option<u32>,
    pub host_port: Option<u32>,
    pub protocol: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HealthCheck {
    pub http: Option<HttpCheck>,
    pub tcp: Option<TcpCheck>,
    pub grace_period_seconds: Option<u32>,
    pub interval_seconds: Option<u32>,
    pub timeout_seconds: Option<u32>,
    pub max_consecutive_failures: Option<u32>,
}

#[derive(Deserialize)]
pub(crate) struct HttpCheck {
    pub endpoint: Option<String>,
    pub path: Option<String>,
    pub scheme: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct TcpCheck {
    pub endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    pub agent_hostname: Option<String>,
    pub agent_id: Option<String>,
    /// The definition that it runs: `/v2/pods/p::versions/<version>`.
    pub spec_reference: Option<String>,
    pub networks: Option<Vec<InstanceNetwork>>,
    pub containers: Option<Vec<InstanceContainer>>,
}

#[derive(Deserialize)]
pub(crate) struct InstanceNetwork {
    pub addresses: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceContainer {
    pub name: String,
    /// The task's id; none before it was launched.
    pub container_id: Option<String>,
    pub status: Option<String>,
    pub status_since: Option<String>,
    pub conditions: Option<Vec<Condition>>,
    pub endpoints: Option<Vec<InstanceEndpoint>>,
}

/// `{"name": "healthy", "value": "true"}`.
#[derive(Deserialize)]
pub(crate) struct Condition {
    pub name: Option<String>,
    pub value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceEndpoint {
    pub name: Option<String>,
    pub allocated_host_port: Option<u32>,
    /// The verdict of the check that asks this endpoint.
    pub healthy: Option<bool>,
}
