//! How many requests an endpoint may have at once, and what becomes of the rest: `MAXCONN_INSTANCE`, `QUEUE`,
//! `TIMEOUT_QUEUE`, `STICKY_WHEN_FULL`.
//!
//! Who waits for how long is kept by `queue` and `failover`.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Mode;
use super::reader::Reader;

/// What labels ask for, and, for those that ask for nothing, what the balancer was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests in flight at one endpoint, over all workers. `None`: as many as come.
    pub per_endpoint: Option<NonZeroU32>,
    /// Requests of the service that may wait for room.
    pub queue: u32,
    /// How long each of them may.
    pub queue_timeout: Duration,
    pub when_full: WhenFull,
}

/// What a request does whose cookie names an endpoint that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for it, as in HAProxy.
    #[default]
    Wait,
    /// Another endpoint with room is as good; the client is given its cookie.
    Redispatch,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            per_endpoint: None,
            // More than this would wait longer than people do, and hold their connections.
            queue: 1024,
            // As `timeout queue` in Marathon-LB's configuration.
            queue_timeout: Duration::from_secs(30),
            when_full: WhenFull::Wait,
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>, mode: Mode) -> Capacity {
    let default = reader.reading.capacity;
    let named = reader.number("MAXCONN_INSTANCE").map(NonZeroU32::new);
    if mode == Mode::Tcp && named.flatten().is_some() {
        let what = "only requests are counted; this service is mode tcp".to_owned();
        reader.problem("MAXCONN_INSTANCE", what, "it has no effect");
    }
    let when_full = reader.parsed("STICKY_WHEN_FULL", "wait or redispatch", |text| match text {
        "wait" => Some(WhenFull::Wait),
        "redispatch" => Some(WhenFull::Redispatch),
        _ => None,
    });
    Capacity {
        per_endpoint: named.unwrap_or(default.per_endpoint),
        queue: reader.number("QUEUE").unwrap_or(default.queue),
        queue_timeout: reader.duration("TIMEOUT_QUEUE").unwrap_or(default.queue_timeout),
        when_full: when_full.unwrap_or(default.when_full),
    }
}
