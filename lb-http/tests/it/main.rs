//! The plane from outside: real sockets, real worker threads, snapshots published as the watcher would.
//!
//! It waits on generations and on sockets, never on time.

mod balancing;
mod failover;
mod limits;
mod protocol;
mod statistics;
mod support;
