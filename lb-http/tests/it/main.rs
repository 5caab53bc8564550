//! The plane from outside: real sockets, real worker threads, snapshots published as the watcher would.
//!
//! It waits on generations and on sockets, never on time.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod access_log;
mod balancing;
mod checks;
mod differential;
mod failover;
mod fuzz_seeds;
mod http2_cases;
mod http_cases;
mod limits;
mod passthrough;
mod protocol;
mod proxy_protocol;
mod queue;
mod server_tls;
mod splits;
mod statistics;
mod support;
