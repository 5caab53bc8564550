//! How a pool picks: each policy turns "who is usable" into where the walk over the endpoints begins.
//!
//! A policy never decides who is usable; the pool filters before it asks. Failover is not a policy either: it is
//! the next endpoint of the walk.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Names as HAProxy's `balance` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// One after the other, over all workers together.
    #[default]
    RoundRobin,
    /// The fewest requests or connections in flight; equal ones take turns.
    LeastConn,
    Random,
    /// The same client address goes to the same endpoint while the endpoints stay the same.
    Source,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a balancing policy; known are roundrobin, leastconn, random, source")]
pub struct UnknownPolicy(String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "roundrobin" | "static-rr" => Ok(Self::RoundRobin),
            "leastconn" => Ok(Self::LeastConn),
            "random" => Ok(Self::Random),
            "source" => Ok(Self::Source),
            _ => Err(UnknownPolicy(text.to_owned())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "roundrobin",
            Self::LeastConn => "leastconn",
            Self::Random => "random",
            Self::Source => "source",
        })
    }
}
