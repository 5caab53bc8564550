//! 1,000 app changes under 6,000 new connections/s: how many of the connections fail.
//!
//! `cargo bench -p tests --bench changes`, with figures of your own after `--`: changes, changes per second,
//! connections per second. The load is an open loop, and times are from when a connection was due.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

use std::time::Instant;

use tests::churn::Churn;

const PROGRAM: &str = env!("CARGO_BIN_EXE_waymark-under-test");

fn main() -> anyhow::Result<()> {
    let figures: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let figure = |index: usize, default| figures.get(index).copied().unwrap_or(default);
    let churn = Churn {
        n_apps: 100,
        n_changes: figure(0, 1000) as usize,
        changes_per_sec: figure(1, 50),
        connections_per_sec: figure(2, 6000),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = Instant::now();
    let outcome = runtime.block_on(churn.run(PROGRAM))?;
    println!(
        "{} changes of {} apps ({} applied) in {:.0} s under {} new connections/s",
        churn.n_changes,
        churn.n_apps,
        outcome.n_applied,
        began.elapsed().as_secs_f64(),
        churn.connections_per_sec
    );
    println!(
        "failed {} of {}; from due to answered: median {:.2} ms, p99 {:.2} ms, max {:.2} ms; {:?}",
        outcome.n_failed(),
        outcome.n_ok + outcome.n_failed(),
        outcome.quantile(0.5),
        outcome.quantile(0.99),
        outcome.quantile(1.0),
        outcome.failures
    );
    println!("asked for: 0 failed; HAProxy without passing its sockets on: 3.5 per reload");
    Ok(())
}
