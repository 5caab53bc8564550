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

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

/// Reads the command line, carries it out, and reports a failure in one line with a hint.
pub fn main() -> ExitCode {
    // Fails only when one is installed already, and this is the first line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match args::CommandLine::try_parse() {
        Ok(line) => commands::run(line),
        Err(error)
            if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            Err(failure::Failure::from_clap(&error))
        }
        // Help and version were asked for, or nothing was.
        Err(error) => error.exit(),
    };
    outcome.unwrap_or_else(|failure| {
        failure.report();
        ExitCode::from(failure.code())
    })
}
