//! Waymark: the composition root, the embedded scheduler and the commands.

pub mod demo;
pub mod scheduler;
