//! What the DNS server can be told, with its defaults.
//!
//! It reads no file and no flag: `cli` fills it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Answers of the cluster change with every deployment; DC/OS gives its names 5 s.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);
/// The largest UDP answer that is not fragmented on any sensible path (DNS flag day 2020).
pub const DEFAULT_UDP_PAYLOAD_BYTES: u16 = 1232;
/// The smallest that every client takes (RFC 1035 section 2.3.4), so nothing below can be configured.
pub const MIN_UDP_PAYLOAD_BYTES: u16 = 512;
/// Above this an answer would be fragmented even on a loopback or jumbo path.
pub const MAX_UDP_PAYLOAD_BYTES: u16 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Each is served over UDP and TCP. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The largest UDP answer, whatever the client offers: [`MIN_UDP_PAYLOAD_BYTES`] to [`MAX_UDP_PAYLOAD_BYTES`].
    pub udp_payload_bytes: u16,
    /// Who is asked for names of other zones. `None`: the system's (`/etc/resolv.conf`). Empty: nobody, REFUSED.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Of names under `thisdcos.directory` and the small zones.
    pub ttl: Duration,
    /// Of names under `mesos`.
    pub mesos_ttl: Duration,
    /// Addresses of the scheduler: `leader.mesos`, `master.mesos`, `<framework>.mesos`. Empty: these have no records.
    pub masters: Vec<IpAddr>,
    /// How long a new VIP name waits for the VIP plane to serve it before it is answered all the same.
    pub vip_wait: Duration,
    /// A TCP client that neither sends a whole query nor takes an answer for so long is disconnected.
    pub tcp_idle: Duration,
    /// Per worker. When full, the connection that was idle longest makes room.
    pub n_tcp_connections_max: usize,
    /// Per worker and client address, likewise.
    pub n_tcp_connections_per_client: usize,
    /// Forwarded queries in flight, over all workers. When full, further ones are refused.
    pub n_forwards_max: usize,
    /// How long one upstream is waited for before the next is tried.
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
            udp_payload_bytes: DEFAULT_UDP_PAYLOAD_BYTES,
            upstreams: None,
            ttl: DEFAULT_TTL,
            mesos_ttl: DEFAULT_TTL,
            masters: Vec::new(),
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
