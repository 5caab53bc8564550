//! Watches Marathon-like schedulers and files, and publishes what they run as immutable, numbered snapshots.
//!
//! Reading order: [`catalog`] (the words everybody shares), [`publish`] (how a snapshot reaches the planes),
//! [`watcher`] (what is started), `hub` (how the sources become one catalog), `sources` (how each is read), `reconcile`
//! (what to do next about a scheduler).
//!
//! Invariants: the catalog does no IO; nothing but the hub publishes; an event is never state; an answer that failed
//! removes nothing; a bad app never hides a good one; one source's outage touches no other's apps.

pub mod catalog;
pub mod config;
pub mod error;
mod hub;
mod keep;
pub mod publish;
mod reconcile;
mod resolver;
mod sources;
pub mod stats;
pub mod watcher;

pub use config::{Config, Credentials, Marathon, Source, SourceKind, Static};
pub use error::ConfigError;
pub use hub::{Kind, SourceView};
pub use reconcile::Cause;
pub use sources::marathon::read_definition;
pub use sources::marathon::stream::SeenEvent;
pub use stats::StatsView;
pub use watcher::{Command, Handle, start};
