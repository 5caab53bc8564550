//! How many requests, or in mode tcp connections, an endpoint may have at once, and what becomes of the rest:
//! `MAXCONN_INSTANCE`, `QUEUE`, `TIMEOUT_QUEUE`, `STICKY_WHEN_FULL`.
//!
//! Who waits is kept by `queue`; how long, by `failover` and `tcp`.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Mode;
use super::reader::Reader;

/// What labels ask for, and, for those that ask for nothing, what the balancer was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests or connections in flight at one endpoint, over all workers. `None`: as many as come.
    pub per_endpoint: Option<NonZeroU32>,
    /// Those of the service that may wait for room.
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
    let per_endpoint = match mode {
        Mode::Http => default.per_endpoint,
        // A default for requests says nothing about connections, which may be idle for hours.
        Mode::Tcp => None,
    };
    let when_full = reader.parsed("STICKY_WHEN_FULL", "wait or redispatch", |text| match text {
        "wait" => Some(WhenFull::Wait),
        "redispatch" => Some(WhenFull::Redispatch),
        _ => None,
    });
    Capacity {
        per_endpoint: reader.number("MAXCONN_INSTANCE").map_or(per_endpoint, NonZeroU32::new),
        queue: reader.number("QUEUE").unwrap_or(default.queue),
        queue_timeout: reader.duration("TIMEOUT_QUEUE").unwrap_or(default.queue_timeout),
        when_full: when_full.unwrap_or(default.when_full),
    }
}
