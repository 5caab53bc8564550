//! When to stop: Ctrl-C and SIGTERM. The first asks, the second insists.
//!
//! What stopping means is each part's own business: it watches the token.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Exit code of a stop that was insisted on, as a shell shows SIGINT.
const INTERRUPTED: i32 = 130;

/// Cancels the token on the first signal and ends the process on the second.
pub fn on_signals() -> Result<CancellationToken, Failure> {
    let failed = |e: std::io::Error| Failure::chain("cannot listen for signals", &e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        for n_seen in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if n_seen > 0 {
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("stopping: finishing what is in flight; a second signal stops at once");
            stopping.cancel();
        }
    });
    Ok(stop)
}
