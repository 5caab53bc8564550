//! Watches a Marathon-like scheduler and publishes what it runs as immutable, numbered snapshots.
//!
//! Reading order: [`catalog`] (the words everybody shares), [`publish`] (how a snapshot reaches the planes).

pub mod catalog;
pub mod publish;
