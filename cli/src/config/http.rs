//! The sections `[http]` and `[https]`: addresses, times, limits and the access log of the HTTP balancer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    #[serde(with = "super::humantime_text")]
    pub client_header: Duration,
    #[serde(with = "super::humantime_text")]
    pub client_body_idle: Duration,
    #[serde(with = "super::humantime_text")]
    pub client_keepalive: Duration,
    #[serde(with = "super::humantime_text")]
    pub connect: Duration,
    #[serde(with = "super::humantime_text")]
    pub server_head: Duration,
    #[serde(with = "super::humantime_text")]
    pub server_body_idle: Duration,
    #[serde(with = "super::humantime_text")]
    pub tunnel_idle: Duration,
    /// From a request's first byte to the last of its response; `0s`: no limit.
    #[serde(with = "super::humantime_text")]
    pub request: Duration,
    /// For room at an instance, where its requests are limited: 503.
    #[serde(with = "super::humantime_text")]
    pub queue: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpLimits {
    pub request_line_bytes: usize,
    pub header_bytes: usize,
    pub header_count: usize,
    pub chunk_extension_bytes: usize,
    pub interim_responses: u32,
    pub pipelining_depth: u32,
    pub connections_per_listener: usize,
    pub connections_per_client: usize,
    /// In flight at one instance, unless a label says otherwise; 0: as many as come.
    pub requests_per_instance: u32,
    /// Of one service, waiting for room at an instance.
    pub queue_per_service: u32,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        let of_plane = lb_http::Timeouts::default();
        Self {
            client_header: of_plane.client_header,
            client_body_idle: of_plane.client_body_idle,
            client_keepalive: of_plane.client_keepalive,
            connect: of_plane.connect,
            server_head: of_plane.server_head,
            server_body_idle: of_plane.server_body_idle,
            tunnel_idle: of_plane.tunnel_idle,
            request: of_plane.request.unwrap_or_default(),
            queue: lb_http::labels::Capacity::default().queue_timeout,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        let of_plane = lb_http::Limits::default();
        Self {
            request_line_bytes: of_plane.request_line_bytes,
            header_bytes: of_plane.header_bytes,
            header_count: of_plane.header_count,
            chunk_extension_bytes: of_plane.chunk_extension_bytes,
            interim_responses: of_plane.interim_responses,
            pipelining_depth: of_plane.pipelining_depth,
            connections_per_listener: of_plane.connections_per_listener,
            connections_per_client: of_plane.connections_per_client,
            requests_per_instance: 0,
            queue_per_service: lb_http::labels::Capacity::default().queue,
        }
    }
}
