//! Watches a Marathon-like scheduler and publishes what it runs as immutable, numbered snapshots.
//!
//! Reading order: [`catalog`] (the words everybody shares), [`publish`] (how a snapshot reaches the planes), [`watcher`]
//! (the one task that writes), `reconcile` (what it does next), `sources` (how a scheduler is read).
//!
//! Invariants: the catalog does no IO; nothing but the watcher publishes; an event is never state; an answer that
//! failed removes nothing; a bad app never hides a good one.

pub mod catalog;
pub mod config;
pub mod error;
mod keep;
pub mod publish;
mod reconcile;
mod resolver;
mod sources;
pub mod stats;
pub mod watcher;

pub use config::{Config, Credentials};
pub use error::ConfigError;
pub use sources::marathon::read_definition;
pub use sources::marathon::stream::SeenEvent;
pub use stats::StatsView;
pub use watcher::{Handle, start};
