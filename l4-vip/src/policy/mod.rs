//! How a pool picks: each policy turns "who is usable" into where the walk over the endpoints begins.
//!
//! A policy never decides who is usable; the pool filters before it asks. Failover is not a policy either: it is
//! the next endpoint of the walk. A preference for the client's zone or host would be a filter before the policy, in
//! the pool's list of usable endpoints; nothing tells zones yet.

mod ewma;
mod maglev;
mod weighted;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub(crate) use ewma::PeakEwma;
pub(crate) use maglev::Maglev;
pub(crate) use weighted::schedule;

/// Names as HAProxy's `balance` has them, where it has them. All heed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// One after the other, over all workers together; by weight, evenly spread, when weights differ.
    #[default]
    RoundRobin,
    /// The fewest requests or connections in flight for its weight; equal ones take turns.
    LeastConn,
    Random,
    /// The same client address goes to the same endpoint while the endpoints stay the same.
    Source,
    /// As `Source`, but when an endpoint comes or goes, hardly any other endpoint's clients move.
    Maglev,
    /// The better of two random endpoints, by connect time (peak EWMA) and what is in flight.
    P2c,
}

impl Policy {
    /// Whether it goes by a hash of the client.
    pub fn is_keyed(self) -> bool {
        matches!(self, Self::Source | Self::Maglev)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a balancing policy; known are {KNOWN}")]
pub struct UnknownPolicy(String);

/// For messages.
pub const KNOWN: &str = "roundrobin, leastconn, random, source, maglev, p2c";

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "roundrobin" | "static-rr" | "weighted" => Ok(Self::RoundRobin),
            "leastconn" => Ok(Self::LeastConn),
            "random" => Ok(Self::Random),
            "source" | "iphash" => Ok(Self::Source),
            "maglev" => Ok(Self::Maglev),
            "p2c" | "ewma" => Ok(Self::P2c),
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
            Self::Maglev => "maglev",
            Self::P2c => "p2c",
        })
    }
}
