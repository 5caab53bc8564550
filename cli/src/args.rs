//! The command line: every command, flag and environment name, as clap types.
//!
//! It decides nothing: defaults that differ between `dev` and `serve` live in `config`, behaviour in `commands`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use l4_vip::kernel::PlaneChoice;
use l4_vip::policy::Policy;
use url::Url;

/// Where a Marathon-like scheduler answers when nothing else is said; `waymark dev` listens there.
const DEFAULT_MARATHON: &str = "http://127.0.0.1:8080";
/// Where a Waymark's status answers when nothing else is said.
const DEFAULT_STATS: &str = "http://127.0.0.1:9090";

/// Service discovery and virtual IPs for clusters run by a Marathon-like scheduler.
#[derive(Debug, Parser)]
#[command(name = "waymark", version, propagate_version = true, disable_help_subcommand = true)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: a Marathon-compatible scheduler, all planes, and a demo app
    Dev(DevArgs),
    /// Run the planes against a real scheduler
    Serve(ServeArgs),
    /// Work with apps through the Marathon API
    #[command(subcommand)]
    App(AppCommand),
    /// Work with deployments through the Marathon API
    #[command(subcommand)]
    Deployment(DeploymentCommand),
    /// What the named virtual IPs reach now
    #[command(subcommand)]
    Vip(VipCommand),
    /// Ask Waymark's DNS
    #[command(subcommand)]
    Dns(DnsCommand),
    /// What a URL would reach now, and why
    #[command(subcommand)]
    Route(RouteCommand),
    /// Say what each label of app definitions will do, and what is wrong with them
    Check(CheckArgs),
    /// Replace an app by a new version of it, step by step
    #[command(subcommand)]
    Deploy(DeployCommand),
    /// State, freshness and problems of a running Waymark
    Status(ListArgs),
    /// Have everything read again from the schedulers, now
    Sync(SyncArgs),
    /// Watch instances, VIPs and changes live (one look when not on a terminal)
    Top(ListArgs),
    /// Follow what changes, one line per event
    Events(ListArgs),
    /// Run a command inside the cluster: its DNS is Waymark's (needs root)
    Exec(ExecArgs),
    /// Open a shell inside the cluster: its DNS is Waymark's (needs root)
    Shell(StatsArgs),
    /// Print the effective configuration as TOML
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the version
    Version,
    /// The demo app that `waymark dev` runs as instances
    #[command(hide = true)]
    DemoApp,
}

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
    /// Serve only ports whose label HAPROXY_{n}_ENABLED is true
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

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PlaneName {
    Http,
    Vip,
    Dns,
}

/// Servers whose peculiarities can be kept for clients that rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsCompat {
    None,
    MesosDns,
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

/// Programs whose behaviour can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    MarathonLb,
    MesosDns,
}

#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Whose defaults to show
    #[arg(value_enum, default_value = "dev")]
    pub mode: Mode,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    #[default]
    Dev,
    Serve,
}

#[derive(Args, Clone, Debug)]
pub struct MarathonArgs {
    /// The Marathon API (a comma separates several; the first that answers is used)
    #[arg(long, value_name = "URL", env = "WAYMARK_MARATHON", default_value = DEFAULT_MARATHON, value_delimiter = ',')]
    pub marathon: Vec<Url>,
    /// Token for a scheduler that asks for one; user and password go into the URL
    #[arg(long, value_name = "TOKEN", env = "WAYMARK_MARATHON_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// The stats address of the Waymark to ask
    #[arg(long, value_name = "URL", env = "WAYMARK_STATS", default_value = DEFAULT_STATS)]
    pub stats: Url,
}

/// A listing of what a running Waymark knows.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone, Debug)]
pub struct SyncArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// Believe the schedulers even when most of what ran is missing
    #[arg(long)]
    pub accept: bool,
}

/// What every command that changes an app takes.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub marathon: MarathonArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Return when every plane has applied the change
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration, requires = "wait")]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// List apps
    List {
        #[command(flatten)]
        marathon: MarathonArgs,
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show an app as JSON
    Show {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// A past version of the definition
        #[arg(long, value_name = "VERSION")]
        app_version: Option<String>,
    },
    /// Create an app from its JSON definition
    Add {
        #[command(flatten)]
        change: ChangeArgs,
        /// A file, an http(s) URL, or - for standard input
        #[arg(value_name = "FILE|URL|-", default_value = "-")]
        source: String,
    },
    /// Change keys of an app: key=value …, or a JSON object on standard input
    Update {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// A value is JSON when it parses as JSON, otherwise text
        #[arg(value_name = "KEY=VALUE")]
        words: Vec<String>,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Set the number of instances
    Scale {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        instances: u32,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Replace all instances, keeping the definition
    Restart {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Kill the instances of an app; the scheduler starts new ones
    Kill {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Start no new ones: scale the app down by as many
        #[arg(long)]
        scale: bool,
        /// Only the instances on this host
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Remove an app and its instances
    Remove {
        #[command(flatten)]
        change: ChangeArgs,
        id: String,
        /// Override a deployment that holds the app
        #[arg(long)]
        force: bool,
    },
    /// Print what the instances of an app wrote (embedded scheduler only)
    Log {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// Only this instance
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum DeploymentCommand {
    /// List running deployments
    List {
        #[command(flatten)]
        marathon: MarathonArgs,
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Follow a deployment until it ends
    Watch {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
        /// Give up after this long
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Stop a deployment where it is
    Stop {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
    },
    /// Stop a deployment and go back to what was before it
    Rollback {
        #[command(flatten)]
        marathon: MarathonArgs,
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum VipCommand {
    /// List virtual IPs
    List(ListArgs),
    /// One virtual IP with its backends
    Show {
        #[command(flatten)]
        list: ListArgs,
        /// Its name (dcos-101app2.marathon, with or without .l4lb.thisdcos.directory), label or address
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Look a name up
    Lookup {
        #[command(flatten)]
        stats: StatsArgs,
        name: String,
        /// Record type
        #[arg(value_name = "TYPE", default_value = "A")]
        record_type: String,
        /// Only the data: addresses for A and AAAA
        #[arg(long, conflicts_with = "json")]
        short: bool,
        /// JSON instead of text
        #[arg(long)]
        json: bool,
        /// The server to ask; learnt from the running Waymark when absent
        #[arg(long, value_name = "ADDRESS", env = "WAYMARK_DNS", value_parser = parse_dns_server)]
        server: Option<SocketAddr>,
        /// Say where the answer comes from, and why there is none
        #[arg(long, conflicts_with = "short")]
        trace: bool,
    },
    /// Make Waymark the resolver of this host, or take that back
    Install(InstallArgs),
}

#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct InstallArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Show what would be written, and write nothing
    #[arg(long, group = "what")]
    pub print: bool,
    /// Write it, keeping what was there
    #[arg(long, group = "what")]
    pub apply: bool,
    /// Put back what was there
    #[arg(long, group = "what")]
    pub remove: bool,
    /// Waymark's DNS address with port 53 (repeatable); learnt from the running Waymark when absent
    #[arg(long, value_name = "IP")]
    pub address: Vec<IpAddr>,
    /// Who resolves names on this host; found out when absent
    #[arg(long, value_enum)]
    pub style: Option<ResolverStyle>,
    /// The root directory of the host
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Stay, and put back what was there when this process has ended
    #[arg(long, value_name = "PID", requires = "apply")]
    pub until_exit_of: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResolverStyle {
    Resolved,
    ResolvConf,
}

#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Explain what a URL would reach
    Explain {
        #[command(flatten)]
        list: ListArgs,
        url: Url,
        /// By app id (header X-Marathon-App-Id) instead of by host
        #[arg(long, value_name = "ID")]
        app: Option<String>,
    },
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// App definitions: one app, a list, or what /v2/apps answers; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// As the daemon's --group
    #[arg(long, value_name = "GROUP", default_value = "*")]
    pub group: Vec<String>,
    /// As the daemon's --strict-mode
    #[arg(long)]
    pub strict_mode: bool,
    /// As the daemon's --compat
    #[arg(long, value_enum, value_name = "PROGRAM", value_delimiter = ',')]
    pub compat: Vec<Compat>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum DeployCommand {
    /// Start the new version beside the old one, move traffic over, remove the old one; run again to resume
    Bluegreen(BluegreenArgs),
}

#[derive(Args, Clone, Debug)]
pub struct BluegreenArgs {
    /// The app's definition, with the labels HAPROXY_DEPLOYMENT_GROUP and HAPROXY_DEPLOYMENT_ALT_PORT
    pub file: PathBuf,
    #[command(flatten)]
    pub marathon: MarathonArgs,
    #[command(flatten)]
    pub stats: StatsArgs,
    /// Instances of the new version to begin with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub initial_instances: u64,
    /// Grow the new version by this many instances in each step, instead of by half
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub linear_increase: u64,
    /// Let each step rest for so long before the next one
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub step_delay: Duration,
    /// Give up on a step after this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub max_wait: Duration,
    /// Split the traffic: stop when the new version has N instances and the old one the rest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub new_instances: Option<u64>,
    /// Run before old instances are stopped, with three JSON arguments: the old app, the ids of the instances, the new
    /// app. Unless it succeeds nothing is stopped
    #[arg(long, value_name = "PROGRAM")]
    pub pre_kill_hook: Option<PathBuf>,
    /// End a split: all instances become the new version's
    #[arg(long, group = "ending")]
    pub complete_cur: bool,
    /// End a split: all instances become the previous version's
    #[arg(long, group = "ending")]
    pub complete_prev: bool,
    /// Go back: restore the old version and remove the new one
    #[arg(long, group = "ending")]
    pub abort: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    #[command(flatten)]
    pub stats: StatsArgs,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn vip_plane() -> impl TypedValueParser<Value = PlaneChoice> {
    PossibleValuesParser::new(["auto", "ebpf", "nft", "userspace"])
        .try_map(|word| word.parse::<PlaneChoice>())
}

/// `IP` or `IP:PORT`; the port is 53 unless said.
fn parse_dns_server(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)))
        .map_err(|_| "expected IP or IP:PORT".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_interface_parse() {
        for line in [
            "dev --no-demo --scheduler-listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --https-listen 127.0.0.1:0 --service-address 127.0.0.1 \
             --appid-listen 127.0.0.1:0 --stats-listen 127.0.0.1:0 --dns-listen 127.0.0.1:0 --dns-listen [::1]:0 \
             --vip-pool 127.11.0.0/16 --vip-pool fd01:c::/64 --vip-plane auto --vip-cgroup /x --flush-on-exit --state-dir /tmp/x --ready-file /tmp/y --config /tmp/z",
            "serve --marathon http://a:8080,http://b:8080 --planes http,vip,dns",
            "dev --cpus 2 --mem 512 --disk 100 --ports 31000-31100 --simulate --attribute rack=r1",
            "dev --scheduler-token secret --scheduler-credentials a:b --scheduler-name marathon.example",
            "app list --json --marathon http://h:1 --token secret",
            "app show /dcos-101/app2",
            "app add -",
            "app add app.json --wait",
            "app update /dcos-101/app2 instances=2 --force",
            "app update /dcos-101/app2 --wait --timeout 30s instances=2",
            "app scale web 3",
            "app restart web",
            "app kill web --scale",
            "app remove web",
            "app log web",
            "deployment list",
            "deployment watch 1",
            "deployment stop 1",
            "deployment rollback 1",
            "vip list --json",
            "vip show dcos-101app2.marathon",
            "dns lookup --short dcos-101app2.marathon.l4lb.thisdcos.directory",
            "dns lookup x SRV --server 127.0.0.1:8053",
            "route explain http://a.test/x",
            "check app.json other.json --json --compat marathon-lb --strict-mode --group external",
            "deploy bluegreen app.json --max-wait 30s",
            "deploy bluegreen app.json --abort",
            "serve --marathon http://a:8080 --group external --group internal --strict-mode --compat marathon-lb",
            "dns lookup x SRV --trace --json",
            "dns install --print",
            "dns install --apply --address 198.51.100.1 --root /tmp/x --style resolv-conf --until-exit-of 1",
            "dns install --remove",
            "serve --marathon http://a:8080 --compat mesos-dns --dns-http-listen 127.0.0.1:0 --dns-dcos-listen 127.0.0.1:0 \
             --dns-upstreams 10.0.0.1 --dns-upstreams corp.example=10.0.0.2 --dns-install",
            "status --json",
            "top",
            "top --json",
            "events",
            "sync",
            "sync --accept --json",
            "serve --marathon one=http://a:8080,http://b:8080 --marathon two=https://c --watch-ca two=/x --static legacy=/y",
            "exec -- curl -s http://x",
            "exec curl -s http://x",
            "shell",
            "config",
            "config serve --config x.toml",
            "completions bash",
            "version",
        ] {
            let words = std::iter::once("waymark").chain(line.split_whitespace());
            if let Err(error) = CommandLine::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn exec_takes_every_word_of_the_command() {
        let line = ["waymark", "exec", "--", "curl", "-s", "--json", "x"];
        let Ok(CommandLine { command: Command::Exec(args) }) = CommandLine::try_parse_from(line) else {
            panic!("exec does not parse");
        };
        assert_eq!(args.command, ["curl", "-s", "--json", "x"]);
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        for line in [
            "",
            "frobnicate",
            "dns install",
            "dns install --apply --remove",
            "app scale web x",
            "app list --nope",
            "dev --http-listen nowhere",
            "exec",
        ] {
            let words = std::iter::once("waymark").chain(line.split_whitespace());
            let error = CommandLine::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
