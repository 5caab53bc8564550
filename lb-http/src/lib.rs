//! The HTTP balancer: service ports, virtual hosts and app ids to the instances of an app.
//!
//! Reading order: [`labels`] (what an app's labels ask for), [`table`] (what a snapshot compiles to), [`route`] (which
//! backend a request is for), `proxy` (the path of a request; the HTTP/1.1 message path stands behind its seam),
//! `failover` and `upstream` (how it reaches an endpoint), [`stats`] (what was counted).
//!
//! Invariants: the request path loads the table once and takes no lock; a worker owns its connections, both sides;
//! counters never go back while an app exists; a bad label never drops an app.

pub mod access;
mod body;
mod client;
mod config;
mod deployment;
pub mod edits;
mod error;
pub mod explain;
mod failover;
mod guard;
mod headers;
pub mod labels;
mod listeners;
pub mod names;
mod plane;
mod proxy;
pub mod route;
mod static_names;
pub mod stats;
mod sticky;
pub mod table;
mod upgrade;
mod upstream;
mod worker;

pub use config::{Config, Limits, Timeouts};
pub use error::BindError;
pub use plane::{Plane, start};
pub use worker::Worker;
