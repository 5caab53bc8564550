//! The daemon's configuration: defaults, then the TOML file, then the environment, then flags; later wins.
//!
//! Every flag `--a-b` is the key `a.b` and the variable `WAYMARK_A_B`. It binds nothing and knows no plane: the
//! wiring in `daemon` turns it into each crate's own configuration.

mod layers;
mod sources;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use event_watcher::catalog::VipPool;
use l4_vip::kernel::PlaneChoice;
use l4_vip::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::args::{Compat, DaemonArgs, DevArgs, DnsCompat, Mode, PlaneName, ServeArgs};
use crate::failure::Failure;

pub use layers::Environment;
pub use sources::{Credentials, Sources, WatchedScheduler};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// DC/OS's own resolver addresses, the same on every node.
pub const DCOS_RESOLVERS: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3)),
    IpAddr::V6(Ipv6Addr::new(0xfd01, 0xd, 0, 0, 0, 0, 0xc633, 0x6401)),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    #[serde(skip)]
    pub mode: Mode,
    /// The schedulers' addresses (`serve`), `NAME=URL` where a scheduler of its own begins; `dev` brings its own.
    pub marathon: Vec<String>,
    /// Files of apps with fixed endpoints.
    #[serde(rename = "static")]
    pub static_files: Vec<String>,
    pub planes: Vec<PlaneName>,
    /// Apps of these groups are served over HTTP; `*` is all.
    pub group: Vec<String>,
    /// Whose behaviour counts where ours is different on purpose.
    pub compat: Vec<Compat>,
    /// 0: one per core.
    pub workers: usize,
    /// How long a shutdown waits for what is in flight.
    #[serde(with = "humantime_text")]
    pub drain_timeout: Duration,
    pub scheduler: Scheduler,
    pub http: Http,
    pub https: Https,
    pub service: Service,
    pub appid: AppId,
    pub stats: Stats,
    pub dns: Dns,
    pub vip: Vip,
    pub watch: Watch,
    pub strict: Strict,
    pub state: State,
    pub ready: Ready,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    pub listen: SocketAddr,
    /// Create the demo app.
    pub demo: bool,
    /// Cores, MiB of memory and MiB of disk for instances; 0: the machine's.
    pub cpus: f64,
    pub mem: f64,
    pub disk: f64,
    /// Host ports for instances, `FIRST-LAST`; empty: the scheduler's own choice.
    pub ports: String,
    /// `NAME=VALUE`, for constraints.
    pub attributes: Vec<String>,
    /// Instances only pretend to run.
    pub simulate: bool,
    /// What API requests must bring; empty: nothing. Never shown.
    #[serde(skip_serializing)]
    pub token: String,
    /// `USER:PASSWORD`; empty: nothing. Never shown.
    #[serde(skip_serializing)]
    pub credentials: String,
    /// Names besides localhost that API requests may be addressed to.
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub listen: SocketAddr,
    /// Plain connections may begin with HTTP/2 (prior knowledge); over TLS it is always on offer.
    pub h2c: bool,
    /// Connections to the addresses of virtual hosts (plain and TLS) begin with a PROXY protocol header: a balancer of
    /// layer 4 stands in front.
    pub accept_proxy: bool,
    pub timeouts: HttpTimeouts,
    pub limits: HttpLimits,
    pub access_log: HttpAccessLog,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpAccessLog {
    pub format: AccessLogFormat,
    /// Appended to. Absent: standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Of so many requests one is logged; 1: all.
    pub one_in: u32,
    /// The ids of the apps whose requests are logged; empty: all. A service's own label `ACCESS_LOG` has the last word.
    pub apps: Vec<String>,
    /// Only services whose label says so are logged.
    pub labelled_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    Off,
    Json,
    Common,
}

impl Default for HttpAccessLog {
    fn default() -> Self {
        // Whoever wants it says where to; a log that nobody reads fills a disk.
        Self { format: AccessLogFormat::Off, file: None, one_in: 1, apps: Vec::new(), labelled_only: false }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Https {
    pub listen: SocketAddr,
    /// PEM files with chain and key, and directories of them; the first is for clients that name no host. Without any
    /// (and without `HAPROXY_SSL_CERT`), a self-signed one is made.
    pub certificates: Vec<PathBuf>,
    /// The oldest version of TLS that is spoken: `1.2` or `1.3`.
    pub min_version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpTimeouts {
    #[serde(with = "humantime_text")]
    pub client_header: Duration,
    #[serde(with = "humantime_text")]
    pub client_body_idle: Duration,
    #[serde(with = "humantime_text")]
    pub client_keepalive: Duration,
    #[serde(with = "humantime_text")]
    pub connect: Duration,
    #[serde(with = "humantime_text")]
    pub server_head: Duration,
    #[serde(with = "humantime_text")]
    pub server_body_idle: Duration,
    #[serde(with = "humantime_text")]
    pub tunnel_idle: Duration,
    /// From a request's first byte to the last of its response; `0s`: no limit.
    #[serde(with = "humantime_text")]
    pub request: Duration,
    /// For room at an instance, where its requests are limited: 503.
    #[serde(with = "humantime_text")]
    pub queue: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpLimits {
    pub request_line_bytes: usize,
    pub header_bytes: usize,
    pub header_count: usize,
    pub connections_per_listener: usize,
    pub connections_per_client: usize,
    /// In flight at one instance, unless a label says otherwise; 0: as many as come.
    pub requests_per_instance: u32,
    /// Of one service, waiting for room at an instance.
    pub queue_per_service: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    pub address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppId {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stats {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    pub listen: Vec<SocketAddr>,
    /// Where foreign names are asked: `IP`, `IP:PORT`, or `ZONE=IP`. Absent: the system's own servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Upstreams>,
    pub udp_payload_bytes: u16,
    /// Of the cluster's names.
    #[serde(with = "humantime_text")]
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
    #[serde(with = "humantime_text")]
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vip {
    pub pool: Vec<String>,
    pub plane: PlaneChoice,
    /// For eBPF. Absent: the root of the cgroup2 hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Leave nothing in the kernel at the end.
    pub flush_on_exit: bool,
    /// Of VIPs whose labels do not say.
    pub policy: Policy,
    /// The same: how long a client without a connection stays with its endpoint. 0: it does not.
    #[serde(with = "humantime_text")]
    pub affinity: Duration,
    pub tcp: VipTcp,
    pub udp: VipUdp,
}

/// Of VIPs that the userspace plane serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VipTcp {
    /// 0: idle connections live for ever.
    #[serde(with = "humantime_text")]
    pub idle: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VipUdp {
    /// At least a second.
    #[serde(with = "humantime_text")]
    pub idle: Duration,
    /// Flows of all workers together.
    pub flows: usize,
}

impl Default for VipUdp {
    fn default() -> Self {
        Self { idle: l4_vip::UDP_IDLE, flows: l4_vip::UDP_FLOWS }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    #[serde(with = "humantime_text")]
    pub resync: Duration,
    #[serde(with = "humantime_text")]
    pub stream_deadline: Duration,
    /// Files, each for one scheduler (`NAME=FILE`) or for all.
    pub ca: Vec<String>,
    pub credentials: Vec<String>,
    pub token_file: Vec<String>,
    pub service_account: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Strict {
    /// Ports are served only when their labels enable them.
    pub mode: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    pub dir: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ready {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Config {
    /// The defaults of a mode. `dev` listens on loopback only and needs no right; `serve` is for a node's own ports.
    pub fn defaults(mode: Mode) -> Self {
        let (address, http_port, https_port, dns, pool) = match mode {
            Mode::Dev => (
                LOCALHOST,
                9080,
                9443,
                vec![SocketAddr::new(LOCALHOST, 8053)],
                vec!["127.11.0.0/16".to_owned()],
            ),
            Mode::Serve => (
                ANY,
                80,
                443,
                DCOS_RESOLVERS.map(|ip| SocketAddr::new(ip, 53)).to_vec(),
                vec!["11.0.0.0/8".to_owned(), "fd01:c::/64".to_owned()],
            ),
        };
        Self {
            mode,
            marathon: Vec::new(),
            static_files: Vec::new(),
            planes: vec![PlaneName::Http, PlaneName::Vip, PlaneName::Dns],
            group: vec!["*".to_owned()],
            compat: Vec::new(),
            workers: 0,
            // On a node, most requests and downloads end within it; at a desk, Ctrl-C must not feel stuck.
            drain_timeout: match mode {
                Mode::Dev => Duration::from_secs(5),
                Mode::Serve => Duration::from_secs(30),
            },
            scheduler: Scheduler {
                listen: SocketAddr::new(LOCALHOST, 8080),
                demo: true,
                cpus: 0.0,
                mem: 0.0,
                disk: 0.0,
                ports: String::new(),
                attributes: Vec::new(),
                simulate: false,
                token: String::new(),
                credentials: String::new(),
                names: Vec::new(),
            },
            http: Http {
                listen: SocketAddr::new(address, http_port),
                h2c: false,
                accept_proxy: false,
                timeouts: HttpTimeouts::default(),
                limits: HttpLimits::default(),
                access_log: HttpAccessLog::default(),
            },
            https: Https {
                listen: SocketAddr::new(address, https_port),
                certificates: Vec::new(),
                min_version: "1.2".to_owned(),
            },
            service: Service { address },
            appid: AppId { listen: SocketAddr::new(address, 9091) },
            stats: Stats { listen: SocketAddr::new(address, 9090) },
            // 1,232 bytes pass every path unfragmented (DNS flag day 2020).
            dns: Dns {
                listen: dns,
                upstreams: None,
                udp_payload_bytes: 1232,
                ttl: dns::config::DEFAULT_TTL,
                compat: DnsCompat::None,
                http: DnsHttp { listen: Some(SocketAddr::new(LOCALHOST, 8123)), ..DnsHttp::default() },
                dcos: DnsDcos {
                    // DC/OS's own port, for programs that read it on every node.
                    listen: (mode == Mode::Serve).then_some(SocketAddr::new(LOCALHOST, 62080)),
                },
                node_addresses: Vec::new(),
                public_addresses: Vec::new(),
                cluster_ids: Vec::new(),
                nsid: None,
                cookie_secret: None,
                rate_limit_per_sec: dns::config::DEFAULT_RATE_LIMIT_PER_SEC,
                rate_limit_slip: dns::config::DEFAULT_RATE_LIMIT_SLIP,
                local_networks: Vec::new(),
                cache_bytes: dns::config::DEFAULT_CACHE_BYTES,
                serve_stale: dns::config::DEFAULT_SERVE_STALE,
                install: false,
            },
            vip: Vip {
                pool,
                // A desk's VIPs are loopback addresses, which userspace serves without any right.
                plane: match mode {
                    Mode::Dev => PlaneChoice::Userspace,
                    Mode::Serve => PlaneChoice::Auto,
                },
                cgroup: None,
                flush_on_exit: false,
                policy: Policy::default(),
                affinity: Duration::ZERO,
                tcp: VipTcp::default(),
                udp: VipUdp::default(),
            },
            // Marathon sends a heartbeat every 10 s, so 15 s without a byte is a dead stream.
            watch: Watch {
                resync: Duration::from_secs(30),
                stream_deadline: Duration::from_secs(15),
                ca: Vec::new(),
                credentials: Vec::new(),
                token_file: Vec::new(),
                service_account: Vec::new(),
            },
            strict: Strict::default(),
            state: State { dir: default_state_dir(mode) },
            ready: Ready::default(),
        }
    }

    /// The configuration of `waymark dev`.
    pub fn of_dev(args: &DevArgs, environment: &Environment) -> Result<Self, Failure> {
        let mut flags = layers::Layer::of_daemon(&args.daemon);
        flags.set_if("scheduler.listen", args.scheduler_listen);
        flags.set_if("scheduler.demo", args.no_demo.then_some(false));
        let agent = &args.agent;
        flags.set_if("scheduler.cpus", agent.cpus);
        flags.set_if("scheduler.mem", agent.mem);
        flags.set_if("scheduler.disk", agent.disk);
        flags.set_if("scheduler.ports", agent.ports.as_ref());
        flags.set_list("scheduler.attributes", &agent.attributes);
        flags.set_if("scheduler.simulate", agent.simulate.then_some(true));
        flags.set_if("scheduler.token", agent.scheduler_token.as_ref());
        flags.set_if("scheduler.credentials", agent.scheduler_credentials.as_ref());
        flags.set_list("scheduler.names", &agent.scheduler_names);
        Self::layered(Mode::Dev, &args.daemon, environment, flags)
    }

    /// The configuration of `waymark serve`.
    pub fn of_serve(args: &ServeArgs, environment: &Environment) -> Result<Self, Failure> {
        let mut flags = layers::Layer::of_daemon(&args.daemon);
        flags.set_list("marathon", &args.marathon);
        flags.set_list("planes", &args.planes);
        flags.set_list("watch.ca", &args.watch_ca);
        flags.set_list("watch.credentials", &args.watch_credentials);
        flags.set_list("watch.token_file", &args.watch_token_file);
        flags.set_list("watch.service_account", &args.watch_service_account);
        let config = Self::layered(Mode::Serve, &args.daemon, environment, flags)?;
        if config.marathon.is_empty() && config.static_files.is_empty() {
            return Err(Failure::usage("no scheduler to watch")
                .hint("waymark serve --marathon http://HOST:8080, or waymark dev to try it without one"));
        }
        Ok(config)
    }

    /// The configuration that a mode would have, without asking for what only a start needs.
    pub fn of_mode(mode: Mode, args: &DaemonArgs, environment: &Environment) -> Result<Self, Failure> {
        Self::layered(mode, args, environment, layers::Layer::of_daemon(args))
    }

    pub fn vip_pools(&self) -> Result<Vec<VipPool>, Failure> {
        let parse = |text: &String| {
            text.parse::<VipPool>().map_err(|e| {
                Failure::usage(format!("bad VIP pool {text:?}: {e}"))
                    .hint("write it as NETWORK/BITS, e.g. --vip-pool 127.11.0.0/16")
            })
        };
        self.vip.pool.iter().map(parse).collect()
    }

    pub fn min_tls_version(&self) -> Result<lb_http::tls::MinVersion, Failure> {
        let parsed = self.https.min_version.parse();
        parsed.map_err(|e| Failure::usage(format!("bad https.min_version: {e}")))
    }

    pub fn runs(&self, plane: PlaneName) -> bool {
        self.planes.contains(&plane)
    }

    /// TOML with every key that the mode reads.
    pub fn to_toml(&self) -> Result<String, Failure> {
        let mut table = toml::Table::try_from(self.without_secrets())
            .map_err(|e| Failure::chain("cannot write the configuration", &e))?;
        // The other mode's keys say nothing here.
        table.remove(match self.mode {
            Mode::Dev => "marathon",
            Mode::Serve => "scheduler",
        });
        toml::to_string(&table).map_err(|e| Failure::chain("cannot write the configuration", &e))
    }

    fn layered(
        mode: Mode,
        args: &DaemonArgs,
        environment: &Environment,
        flags: layers::Layer,
    ) -> Result<Self, Failure> {
        let mut config = layers::merge(mode, args.config.as_deref(), environment, flags)?;
        config.mode = mode;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Failure> {
        self.vip_pools()?;
        self.min_tls_version()?;
        if self.mode == Mode::Dev {
            crate::daemon::scheduler_config(self)?;
        }
        self.sources()?;
        if self.planes.is_empty() {
            return Err(Failure::usage("no plane is enabled").hint("planes are http, vip and dns"));
        }
        // RFC 6891 section 6.2.3: anything below 512 means 512.
        if self.dns.udp_payload_bytes < 512 {
            return Err(Failure::usage("dns.udp_payload_bytes is below 512"));
        }
        Ok(())
    }
}

/// Sections of a file are read before the mode's own values are laid under them; these only fill the gaps.
macro_rules! defaults_of_dev {
    ($($section:ty => $path:ident),*) => { $(
        impl Default for $section {
            fn default() -> Self {
                Config::defaults(Mode::Dev).$path
            }
        }
    )* };
}
defaults_of_dev!(Scheduler => scheduler, Http => http, Https => https, Service => service, AppId => appid, Stats => stats,
                 Dns => dns, Vip => vip, Watch => watch, State => state);

impl Default for Config {
    fn default() -> Self {
        Self::defaults(Mode::Dev)
    }
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            client_header: Duration::from_secs(10),
            client_body_idle: Duration::from_secs(30),
            client_keepalive: Duration::from_secs(60),
            connect: Duration::from_secs(3),
            server_head: Duration::from_secs(60),
            server_body_idle: Duration::from_secs(30),
            tunnel_idle: Duration::from_secs(3600),
            request: Duration::ZERO,
            queue: lb_http::labels::Capacity::default().queue_timeout,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            // RFC 9112 section 3 asks for at least 8,000.
            request_line_bytes: 16_384,
            header_bytes: 32_768,
            header_count: 100,
            connections_per_listener: 20_000,
            connections_per_client: 512,
            requests_per_instance: 0,
            queue_per_service: lb_http::labels::Capacity::default().queue,
        }
    }
}

fn default_state_dir(mode: Mode) -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    match mode {
        Mode::Serve => PathBuf::from("/var/lib/waymark"),
        Mode::Dev => std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            // The base directory specification ignores relative paths.
            .filter(|path| path.is_absolute())
            .or_else(home)
            .unwrap_or_else(std::env::temp_dir)
            .join("waymark"),
    }
}

/// Durations as people write them: `30s`, `1h`.
mod humantime_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|e| D::Error::custom(format!("bad duration {text:?}: {e}; write it as \"30s\"")))
    }
}
