//! The harness of the integration tests and benchmarks: it starts the built program and speaks to it from outside.
//!
//! It knows no type of the program, only processes, sockets and documented formats.

pub mod backend;
pub mod browser;
pub mod cgroup;
pub mod churn;
pub mod client;
pub mod load;
pub mod netns;
pub mod scheduler;
pub mod waymark;
