//! The `waymark` program: the command line, the daemon's wiring, the stats server, and the embedded scheduler.
//!
//! Reading order: `args` (what people can ask for), `config`, `daemon` (how the planes are put together),
//! `admin` (what the stats address answers), `commands` (what the other commands do). What a request, a connection
//! or a query meets lives in the plane crates.

pub mod admin;
pub mod args;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod failure;
pub mod output;
mod planes;
pub mod readiness;
pub mod runtime;
pub mod scheduler;
pub mod shutdown;
