//! The section `[dns]`: addresses, foreign names, limits and peculiarities of the DNS server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::DnsCompat;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    pub listen: Vec<SocketAddr>,
    /// Where foreign names are asked: `IP`, `IP:PORT`, or `ZONE=IP`. Absent: the system's own servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Upstreams>,
    pub udp_payload_bytes: u16,
    /// Of the cluster's names.
    #[serde(with = "super::humantime_text")]
    pub ttl: Duration,
    pub compat: DnsCompat,
    pub http: DnsHttp,
    pub dcos: DnsDcos,
    /// `thisnode.thisdcos.directory`; empty: found out.
    pub node_addresses: Vec<IpAddr>,
    /// `public.thisnode.thisdcos.directory`.
    pub public_addresses: Vec<IpAddr>,
    /// `<id>.dcos.directory` stands for `thisdcos.directory`.
    pub cluster_ids: Vec<String>,
    /// What `dig +nsid` shows; absent: the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsid: Option<String>,
    /// 32 hexadecimal digits that nodes of one address share; absent: a random secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie_secret: Option<String>,
    pub rate_limit_per_sec: u32,
    pub rate_limit_slip: u32,
    /// Networks that are not rate limited and may have foreign names resolved; empty: all private ones.
    pub local_networks: Vec<String>,
    pub cache_bytes: usize,
    #[serde(with = "super::humantime_text")]
    pub serve_stale: Duration,
    /// Make this server the host's resolver while it runs.
    pub install: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsHttp {
    /// Mesos-DNS's HTTP API and DNS over HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// PEM files; absent: a certificate that is made at each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsDcos {
    /// dcos-net's HTTP API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// `[]` and `"none"` both mean: answer nothing but our own names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Upstreams {
    Word(NoUpstreams),
    List(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoUpstreams {
    None,
}
