//! The entry of the `waymark` binary. It does nothing but choose the allocator and the TLS provider, and hand over.

use std::process::ExitCode;

use clap::Parser;
use cli::args::CommandLine;
use cli::failure::Failure;

/// Half the time of the system's allocator for the small, short-lived pieces that requests are made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Fails only when one is installed already, and this is the first line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match CommandLine::try_parse() {
        Ok(line) => cli::commands::run(line),
        Err(error)
            if error.use_stderr()
                && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            Err(Failure::from_clap(&error))
        }
        // Help and version were asked for, or nothing was.
        Err(error) => error.exit(),
    };
    outcome.unwrap_or_else(|failure| {
        failure.report();
        ExitCode::from(failure.code())
    })
}
