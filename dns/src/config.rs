//! What the DNS server can be told, with its defaults.
//!
//! It reads no file and no flag: `cli` fills it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use event_watcher::catalog::VipPool;

use crate::networks::Network;

/// Answers of the cluster change with every deployment; DC/OS gives its names 5 s.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);
/// The largest UDP answer that is not fragmented on any sensible path (DNS flag day 2020).
pub const DEFAULT_UDP_PAYLOAD_BYTES: u16 = 1232;
/// The smallest that every client takes (RFC 1035 section 2.3.4), so nothing below can be configured.
pub const MIN_UDP_PAYLOAD_BYTES: u16 = 512;
/// Above this an answer would be fragmented even on a loopback or jumbo path.
pub const MAX_UDP_PAYLOAD_BYTES: u16 = 4096;

/// Some ten thousand answers.
pub const DEFAULT_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// RFC 8767 section 5 suggests one to three days.
pub const DEFAULT_SERVE_STALE: Duration = Duration::from_secs(86_400);
/// More than any real resolver asks for one name again, and too few to be worth abusing.
pub const DEFAULT_RATE_LIMIT_PER_SEC: u32 = 500;
/// As NSD and Knot: every other one.
pub const DEFAULT_RATE_LIMIT_SLIP: u32 = 2;

/// What DNS over HTTPS shows that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// A certificate that is made at each start and that nobody knows.
    #[default]
    SelfSigned,
    /// PEM.
    Given { certificate: Vec<u8>, key: Vec<u8> },
}

/// Whose peculiarities are kept for clients that have come to rely on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    #[default]
    None,
    /// In the zone `mesos`: 60 s TTL, no regard to health, NOERROR for SRV, SOA and NS of missing names, SOA and NS in
    /// the authority section under the name that was asked, ANY with all there is, NXDOMAIN for names without records.
    MesosDns,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Each is served over UDP and TCP. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Mesos-DNS's HTTP API, DNS over HTTPS, and under `/net` what `dcos_listen` has. `None`: none.
    pub http_listen: Option<SocketAddr>,
    /// dcos-net's HTTP API. `None`: only under `/net`.
    pub dcos_listen: Option<SocketAddr>,
    /// Of DNS over HTTPS.
    pub tls: Tls,
    /// The largest UDP answer, whatever the client offers: [`MIN_UDP_PAYLOAD_BYTES`] to [`MAX_UDP_PAYLOAD_BYTES`].
    pub udp_payload_bytes: u16,
    /// What a client that asks for it is told of which server answered (NSID, RFC 5001); empty: nothing.
    pub nsid: String,
    /// Of DNS cookies (RFC 9018). Nodes that answer on one address share it; `None`: a random one.
    pub cookie_secret: Option<[u8; 16]>,
    /// UDP answers per second about one name, type and outcome to one network (/24, IPv6 /56) that is not local; 0: no
    /// limit.
    pub rate_limit_per_sec: u32,
    /// Every so-manieth answer over the limit is sent empty, so that a real client comes back over TCP; 0: none.
    pub rate_limit_slip: u32,
    /// The cluster's own networks: not limited, and the only ones whose clients get names of other zones resolved.
    pub local_networks: Vec<Network>,
    /// Who is asked for names of other zones. `None`: the system's (`/etc/resolv.conf`). Empty: nobody, REFUSED.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Who is asked for names of a zone instead; the longest zone counts. Nobody: they are refused.
    pub zone_upstreams: Vec<(String, Vec<SocketAddr>)>,
    /// What the answers of upstreams may take, over all workers.
    pub cache_bytes: usize,
    /// How long an answer that is out of date is kept, for when no upstream answers (RFC 8767).
    pub serve_stale: Duration,
    /// Of names under `thisdcos.directory` and the small zones.
    pub ttl: Duration,
    /// Of names under `mesos`.
    pub mesos_ttl: Duration,
    pub compat: Compat,
    /// Where the scheduler listens: `leader.mesos`, `master.mesos`, `<framework>.mesos`, `zk-1.zk`. Empty: these have
    /// no records.
    pub masters: Vec<SocketAddr>,
    /// Of this host, for `thisnode.thisdcos.directory`.
    pub node_addresses: Vec<IpAddr>,
    /// Of this host as the world sees it, for `public.thisnode.thisdcos.directory`.
    pub public_addresses: Vec<IpAddr>,
    /// Names of this cluster: `<id>.dcos.directory` stands for `thisdcos.directory`. DC/OS's are zbase32 keys.
    pub cluster_ids: Vec<String>,
    /// The networks whose reverse zones are served.
    pub vip_pools: Vec<VipPool>,
    /// How long a new VIP name waits for the VIP plane to serve it before it is answered all the same.
    pub vip_wait: Duration,
    /// A TCP client that neither sends a whole query nor takes an answer for so long is disconnected.
    pub tcp_idle: Duration,
    /// Per worker. When full, the connection that was idle longest makes room.
    pub n_tcp_connections_max: usize,
    /// Per worker and client address, likewise.
    pub n_tcp_connections_per_client: usize,
    /// Questions in flight to upstreams, over all workers, each with two sockets at most. When full, further ones are
    /// refused.
    pub n_forwards_max: usize,
    /// How long the two best upstreams are waited for before the next two are tried.
    pub upstream_timeout: Duration,
    /// How long a forwarded query may take over all upstreams.
    pub forward_timeout: Duration,
    /// How long what is in flight may take to finish after the server was told to stop.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8053))],
            http_listen: None,
            dcos_listen: None,
            tls: Tls::SelfSigned,
            udp_payload_bytes: DEFAULT_UDP_PAYLOAD_BYTES,
            nsid: String::new(),
            cookie_secret: None,
            rate_limit_per_sec: DEFAULT_RATE_LIMIT_PER_SEC,
            rate_limit_slip: DEFAULT_RATE_LIMIT_SLIP,
            local_networks: Network::private(),
            upstreams: None,
            zone_upstreams: Vec::new(),
            cache_bytes: DEFAULT_CACHE_BYTES,
            serve_stale: DEFAULT_SERVE_STALE,
            ttl: DEFAULT_TTL,
            mesos_ttl: DEFAULT_TTL,
            compat: Compat::None,
            masters: Vec::new(),
            node_addresses: Vec::new(),
            public_addresses: Vec::new(),
            cluster_ids: Vec::new(),
            vip_pools: Vec::new(),
            // The userspace plane needs milliseconds; a plane that is stuck must not hold names back for long.
            vip_wait: Duration::from_secs(2),
            // As dcos-net; RFC 7766 section 6.2.3 asks for "a few seconds".
            tcp_idle: Duration::from_secs(10),
            n_tcp_connections_max: 1024,
            n_tcp_connections_per_client: 128,
            n_forwards_max: 512,
            upstream_timeout: Duration::from_millis(1500),
            forward_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
