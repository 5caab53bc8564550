//! The daemon's configuration: defaults, then the TOML file, then the environment, then flags; later wins.
//!
//! Every flag `--a-b` is the key `a.b` and the variable `WAYMARK_A_B`. It binds nothing and knows no plane: the
//! wiring in `daemon` turns it into each crate's own configuration.

mod dns;
mod http;
mod layers;
mod sources;
mod vip;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use event_watcher::catalog::VipPool;
use l4_vip::kernel::PlaneChoice;
use l4_vip::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::args::{Compat, DaemonArgs, DevArgs, DnsCompat, Mode, PlaneName, ServeArgs};
use crate::failure::Failure;

pub use dns::{Dns, DnsDcos, DnsHttp, NoUpstreams, Upstreams};
pub use http::{AccessLogFormat, Http, HttpAccessLog, HttpLimits, HttpTimeouts, Https};
pub use layers::Environment;
pub use sources::{Credentials, Sources, WatchedScheduler};
pub use vip::{Vip, VipTcp, VipUdp};

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
                ttl: ::dns::config::DEFAULT_TTL,
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
                rate_limit_per_sec: ::dns::config::DEFAULT_RATE_LIMIT_PER_SEC,
                rate_limit_slip: ::dns::config::DEFAULT_RATE_LIMIT_SLIP,
                local_networks: Vec::new(),
                cache_bytes: ::dns::config::DEFAULT_CACHE_BYTES,
                serve_stale: ::dns::config::DEFAULT_SERVE_STALE,
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

    /// Every key that the mode reads, without secrets.
    pub fn to_table(&self) -> Result<toml::Table, Failure> {
        let mut table = toml::Table::try_from(self.without_secrets())
            .map_err(|e| Failure::chain("cannot write the configuration", &e))?;
        // The other mode's keys say nothing here.
        table.remove(match self.mode {
            Mode::Dev => "marathon",
            Mode::Serve => "scheduler",
        });
        Ok(table)
    }

    pub fn to_toml(&self) -> Result<String, Failure> {
        toml::to_string(&self.to_table()?).map_err(|e| Failure::chain("cannot write the configuration", &e))
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
