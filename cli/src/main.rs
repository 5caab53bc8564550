//! The entry of the `waymark` binary. It chooses the allocator and hands over.

use std::process::ExitCode;

/// hyper allocates small, short-lived pieces for each request; this allocator is the cheaper one for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
