//! Named virtual IPs: pools of endpoints, balancing policies, and the planes that forward to them.
//!
//! The userspace plane needs no rights beyond binding the addresses: it follows snapshots, listens on every VIP's
//! addresses, and forwards each connection and each client's datagrams to an endpoint of the VIP's pool.
//!
//! Invariants: the path of a connection takes no lock and waits for nothing before the pick; a VIP's failure to
//! open touches no other VIP; a connection, once established, is never cut because of a snapshot.
//!
//! Reading order: [`policy`] (how a pool picks), [`pool`] (endpoints with live state), `labels`, `table` (VIP → pool),
//! `plane` (control side), `worker` (accepts), [`forward`] (moves bytes), [`proxy_protocol`], [`stats`] (what is told
//! about it).

pub mod addresses;
mod config;
mod drain;
mod error;
pub mod forward;
pub mod kernel;
mod labels;
mod leaving;
pub mod netlink;
mod plane;
pub mod policy;
pub mod pool;
pub mod proxy_protocol;
pub mod stats;
mod table;
mod worker;

pub use config::{CONNECT_TIMEOUT, Config, DRAIN_TIMEOUT, MOVE_OVERLAP, UDP_FLOWS, UDP_IDLE};
pub use error::ListenError;
pub use plane::{Plane, start, start_on};
pub use worker::Worker;
