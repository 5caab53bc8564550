//! The userspace plane from outside: real sockets on loopback addresses, snapshots as the watcher publishes them.
//!
//! It does not measure anything; that is the benchmark's.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod changes;
mod streams;
mod support;
mod tcp;
mod udp;
mod wishes;
