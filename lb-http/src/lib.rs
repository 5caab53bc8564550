//! The HTTP balancer: service ports, virtual hosts and app ids to the instances of an app.
//!
//! Reading order: [`labels`] (what an app's labels ask for), [`table`] (what a snapshot compiles to), [`route`] (which
//! backend a request is for), `proxy` and `outbound` (what is decided about a request), `failover`, `queue`, `exchange`
//! and `upstream` (how it reaches an endpoint), [`http1`] (how it comes from a client, and everything that is bytes),
//! `http2` (whose streams become such exchanges), [`tls`], `secure` and `tcp` (what comes before HTTP, or instead of
//! it), [`health`] (what the balancer's own checks say), [`stats`] (what was counted).
//!
//! Invariants: the request path loads the table once and takes no lock; a worker owns its connections, both sides;
//! counters never go back while an app exists; a bad label never drops an app.

pub mod access;
mod access_log;
mod config;
mod deployment;
pub mod edits;
mod error;
mod exchange;
pub mod explain;
mod failover;
pub mod health;
pub mod http1;
mod http2;
pub mod labels;
mod listeners;
pub mod names;
mod outbound;
mod peek;
mod plane;
mod proxy;
mod queue;
mod reason;
mod request_id;
pub mod route;
mod secure;
mod static_names;
pub mod stats;
mod sticky;
pub mod table;
mod tcp;
pub mod tls;
mod upstream;
mod wait;
mod worker;

pub use config::{AccessLogConfig, Config, Http2, Limits, LogFormat, LoggedApps, Timeouts, Tls};
pub use error::{BindError, StartError};
pub use labels::AcceptProxy;
pub use plane::{Plane, start};
pub use worker::Worker;
