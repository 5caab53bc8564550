//! What the balancer is told at its start, validated by whoever reads flags and files. Every default has its reason.
//!
//! Nothing here changes while it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use event_watcher::catalog::AppId;

use crate::http1::chunked;
use crate::http1::scan::HeadLimits;
use crate::labels::{AcceptProxy, Reading};
use crate::tls::MinVersion;

/// Addresses of port 0 are given a free port; [`crate::Plane`] tells which.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where virtual hosts are served. `None`: nowhere.
    pub http_listen: Option<SocketAddr>,
    /// Where virtual hosts are served over TLS. `None`: nowhere.
    pub https_listen: Option<SocketAddr>,
    pub tls: Tls,
    /// Where requests are routed by `X-Marathon-App-Id`. `None`: nowhere.
    pub appid_listen: Option<SocketAddr>,
    /// The address that service ports are opened on.
    pub service_address: IpAddr,
    /// Which apps are served, and how their labels are read.
    pub reading: Reading,
    /// In plain text; over TLS, clients and the balancer agree on a protocol.
    pub http2: Http2,
    /// At the addresses of virtual hosts; service ports have labels for it.
    pub accept_proxy: AcceptProxy,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// `None`: requests are not logged.
    pub access_log: Option<AccessLogConfig>,
    /// How long requests in flight may take to end after the start of a shutdown.
    pub drain_timeout: Duration,
}

/// Whether plain connections may begin with HTTP/2 (RFC 9113 section 3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http2 {
    #[default]
    OverTls,
    WithPriorKnowledge,
}

/// What TLS listeners show and ask for, unless a host has a policy of its own.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// PEM files (chain and key) and directories of them. The first certificate is for clients that name no host.
    pub certificates: Vec<PathBuf>,
    /// PEM texts; they come after the files. With neither, a self-signed certificate is made.
    pub inline_certificates: Vec<String>,
    pub min_version: MinVersion,
}

#[derive(Clone, Debug)]
pub struct AccessLogConfig {
    /// Appended to; `None`: standard output.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    /// Of so many requests one is logged; 1: all.
    pub one_in: u32,
    pub apps: LoggedApps,
}

/// Whose requests are logged where no label of the service says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedApps {
    /// Those that are for no app, too.
    All,
    These(Vec<AppId>),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One object a line.
    Json,
    /// The Common Log Format of NCSA httpd.
    Common,
}

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a whole request head, from its first byte; 408.
    pub client_header: Duration,
    /// Between two pieces of a request's body; 408.
    pub client_body_idle: Duration,
    /// Between two requests of a connection; closed without a word.
    pub client_keepalive: Duration,
    /// For each connect to an endpoint; 503 when no endpoint accepts.
    pub connect: Duration,
    /// From the sent request to the head of the response; 504.
    pub server_head: Duration,
    /// Between two pieces of a response's body; the connection is cut, so that the client sees it.
    pub server_body_idle: Duration,
    /// Without a byte in either direction of an upgraded connection.
    pub tunnel_idle: Duration,
    /// From a request's first byte to the last of its response. `None`: as long as it takes.
    pub request: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub request_line_bytes: usize,
    /// Of all header lines together.
    pub header_bytes: usize,
    pub header_count: usize,
    /// Of one body.
    pub chunk_extension_bytes: usize,
    /// Responses before the last (1xx) to one request.
    pub interim_responses: u32,
    /// Requests that a connection has served in a row before others of its worker have their turn.
    pub pipelining_depth: u32,
    /// Client connections of one listening address, over all workers.
    pub connections_per_listener: usize,
    /// Client connections from one address, over all workers.
    pub connections_per_client: usize,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            http_listen: Some(SocketAddr::new(loopback, 9080)),
            https_listen: None,
            tls: Tls::default(),
            appid_listen: Some(SocketAddr::new(loopback, 9091)),
            service_address: loopback,
            reading: Reading::default(),
            http2: Http2::default(),
            accept_proxy: AcceptProxy::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            access_log: None,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

/// Longer than most requests, short enough for a supervisor to wait for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // A browser sends a head at once; whoever needs longer than this holds connections open on purpose.
            client_header: Duration::from_secs(10),
            client_body_idle: Duration::from_secs(30),
            // Longer than the pause of somebody who reads a page.
            client_keepalive: Duration::from_secs(60),
            // One lost SYN (1 s) and one more (2 s) are survived.
            connect: Duration::from_secs(3),
            server_head: Duration::from_secs(60),
            server_body_idle: Duration::from_secs(30),
            // As HAProxy's tunnel time-out in Marathon-LB's configuration.
            tunnel_idle: Duration::from_secs(3600),
            // Event streams and large downloads have no natural end; a body that stands still has its own limit.
            request: None,
        }
    }
}

impl Limits {
    pub(crate) fn head(&self) -> HeadLimits {
        HeadLimits {
            line_bytes: self.request_line_bytes,
            field_bytes: self.header_bytes,
            n_fields: self.header_count,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // RFC 9112 section 3 asks for at least 8,000.
            request_line_bytes: 16 * 1024,
            header_bytes: 32 * 1024,
            header_count: 100,
            chunk_extension_bytes: chunked::MOST_EXTENSION_BYTES,
            interim_responses: 16,
            pipelining_depth: 16,
            connections_per_listener: 20_000,
            connections_per_client: 512,
        }
    }
}
