//! What `dev`, `serve` and `config` take. Absent flags leave the say to the environment, the file and the defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use l4_vip::kernel::PlaneChoice;
use l4_vip::policy::Policy;

/// What `dev` and `serve` share. Absent flags leave the say to the environment, the file and the defaults.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "WAYMARK_CONFIG")]
    pub config: Option<PathBuf>,
    /// HTTP virtual hosts
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<SocketAddr>,
    /// HTTPS virtual hosts
    #[arg(long, value_name = "ADDRESS")]
    pub https_listen: Option<SocketAddr>,
    /// Certificates of the HTTPS virtual hosts: PEM files with chain and key, or directories of them
    #[arg(long, value_name = "FILE[,FILE…]", value_delimiter = ',')]
    pub ssl_certs: Vec<PathBuf>,
    /// Address whose service ports (10000…) are served
    #[arg(long, value_name = "IP")]
    pub service_address: Option<IpAddr>,
    /// HTTP by app id (header X-Marathon-App-Id)
    #[arg(long, value_name = "ADDRESS")]
    pub appid_listen: Option<SocketAddr>,
    /// Stats page, metrics and status
    #[arg(long, value_name = "ADDRESS")]
    pub stats_listen: Option<SocketAddr>,
    /// DNS over UDP and TCP (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub dns_listen: Vec<SocketAddr>,
    /// Mesos-DNS's HTTP API and DNS over HTTPS
    #[arg(long, value_name = "ADDRESS")]
    pub dns_http_listen: Option<SocketAddr>,
    /// dcos-net's HTTP API
    #[arg(long, value_name = "ADDRESS")]
    pub dns_dcos_listen: Option<SocketAddr>,
    /// Who is asked for foreign names: IP[:PORT], ZONE=IP[:PORT], ZONE=none, or none (repeatable)
    #[arg(long, value_name = "[ZONE=]ADDRESS")]
    pub dns_upstreams: Vec<String>,
    /// Whose peculiarities DNS keeps
    #[arg(long, value_name = "SERVER")]
    pub dns_compat: Option<DnsCompat>,
    /// Make Waymark the host's resolver while it runs
    #[arg(long)]
    pub dns_install: bool,
    /// Network that named VIPs get their addresses from (repeatable)
    #[arg(long, value_name = "CIDR")]
    pub vip_pool: Vec<String>,
    /// Serve only apps of this group (label HAPROXY_GROUP); * serves all (repeatable)
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// Serve only ports whose label HAPROXY_0_ENABLED (1, 2 …) is true
    #[arg(long)]
    pub strict_mode: bool,
    /// Behave as another program where Waymark differs on purpose (repeatable)
    #[arg(long, value_enum, value_name = "PROGRAM", value_delimiter = ',')]
    pub compat: Vec<Compat>,
    /// What serves VIPs; auto takes the best that works: ebpf, nft, userspace
    #[arg(long, value_name = "PLANE", value_parser = vip_plane())]
    pub vip_plane: Option<PlaneChoice>,
    /// Control group (cgroup2) whose processes reach VIPs by eBPF; the root when absent
    #[arg(long, value_name = "DIR")]
    pub vip_cgroup: Option<PathBuf>,
    /// Remove everything from the kernel at the end; otherwise VIPs go on working without Waymark
    #[arg(long)]
    pub flush_on_exit: bool,
    /// File of apps with fixed endpoints, TOML or JSON (repeatable)
    #[arg(long = "static", value_name = "[NAME=]FILE")]
    pub static_files: Vec<String>,
    /// How VIPs pick where their labels do not say: roundrobin, leastconn, random, source, maglev, p2c
    #[arg(long, value_name = "POLICY")]
    pub vip_policy: Option<Policy>,
    /// How long a client stays with its endpoint where labels do not say; 0 is not at all
    #[arg(long, value_name = "TIME")]
    pub vip_affinity: Option<String>,
    /// Cut TCP connections through VIPs that are silent for this long; 0 is never
    #[arg(long, value_name = "TIME")]
    pub vip_tcp_idle: Option<String>,
    /// Forget UDP clients of VIPs that are silent for this long
    #[arg(long, value_name = "TIME")]
    pub vip_udp_idle: Option<String>,
    /// UDP clients of VIPs that are remembered at most
    #[arg(long, value_name = "N")]
    pub vip_udp_flows: Option<usize>,
    /// Where state is kept across restarts
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Worker threads; 0 is one per core
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Write the bound addresses as JSON once all planes serve
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct DevArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// The scheduler's API
    #[arg(long, value_name = "ADDRESS")]
    pub scheduler_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Do not create the demo app /dcos-101/app2
    #[arg(long)]
    pub no_demo: bool,
}

/// What the embedded scheduler has to give, and to whom.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Scheduler")]
pub struct AgentArgs {
    /// Cores for instances [default: the machine's]
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Memory for instances in MiB [default: the machine's]
    #[arg(long, value_name = "MIB")]
    pub mem: Option<f64>,
    /// Disk for instances in MiB [default: what is free]
    #[arg(long, value_name = "MIB")]
    pub disk: Option<f64>,
    /// Host ports for instances [default: 31000-32000]
    #[arg(long, value_name = "FIRST-LAST")]
    pub ports: Option<String>,
    /// Attribute of this machine for constraints (repeatable)
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    pub attributes: Vec<String>,
    /// Only pretend to run instances: for tests of what watches a scheduler
    #[arg(long)]
    pub simulate: bool,
    /// Token that API requests must bring; needed beyond loopback, unless there are credentials
    #[arg(long, value_name = "TOKEN")]
    pub scheduler_token: Option<String>,
    /// User and password that API requests must bring instead
    #[arg(long, value_name = "USER:PASSWORD")]
    pub scheduler_credentials: Option<String>,
    /// Name besides localhost that API requests may be addressed to (repeatable)
    #[arg(long = "scheduler-name", value_name = "NAME")]
    pub scheduler_names: Vec<String>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// The scheduler's addresses (repeatable with a name for each of several schedulers)
    #[arg(long, value_name = "[NAME=]URL[,URL…]", value_delimiter = ',')]
    pub marathon: Vec<String>,
    /// PEM file with the authorities that sign the scheduler's certificate, instead of the system's
    #[arg(long, value_name = "[NAME=]FILE")]
    pub watch_ca: Vec<String>,
    /// File with USER:PASSWORD for the scheduler
    #[arg(long, value_name = "[NAME=]FILE")]
    pub watch_credentials: Vec<String>,
    /// File with a DC/OS authentication token
    #[arg(long, value_name = "[NAME=]FILE")]
    pub watch_token_file: Vec<String>,
    /// DC/OS service account file (uid, private_key, login_endpoint)
    #[arg(long, value_name = "[NAME=]FILE")]
    pub watch_service_account: Vec<String>,
    /// Which planes to run
    #[arg(long, value_name = "PLANE[,PLANE…]", value_delimiter = ',')]
    pub planes: Vec<PlaneName>,
}

#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Whose defaults to show
    #[arg(value_enum, default_value = "dev")]
    pub mode: Mode,
    /// JSON instead of TOML
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    #[default]
    Dev,
    Serve,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PlaneName {
    Http,
    Vip,
    Dns,
}

impl PlaneName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Vip => "vip",
            Self::Dns => "dns",
        }
    }
}

/// Servers whose peculiarities can be kept for clients that rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsCompat {
    None,
    MesosDns,
}

/// Programs whose behaviour can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    MarathonLb,
    MesosDns,
}

fn vip_plane() -> impl TypedValueParser<Value = PlaneChoice> {
    PossibleValuesParser::new(["auto", "ebpf", "nft", "userspace"])
        .try_map(|word| word.parse::<PlaneChoice>())
}
