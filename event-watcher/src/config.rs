//! What the watcher must be told: where the scheduler is, and how patient to be.
//!
//! Parsing flags, files and environment is the caller's work; [`Config::new`] has the defaults.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::catalog::{Reserved, VipPool};

/// Marathon's own default for `--framework_name`; used until `/v2/info` tells the real one.
pub const DEFAULT_FRAMEWORK: &str = "marathon";
/// A missed event is repaired within this time.
pub const DEFAULT_RESYNC: Duration = Duration::from_secs(30);
/// Marathon writes a heartbeat every 10 s; half a period on top for a busy network.
pub const DEFAULT_STREAM_DEADLINE: Duration = Duration::from_secs(15);
/// One app is fetched at most this often in the long run; a short burst goes through at once.
pub const DEFAULT_COALESCE: Duration = Duration::from_millis(50);
/// How often the whole list is read when the scheduler has no event stream.
pub const DEFAULT_POLL: Duration = Duration::from_secs(5);
/// Also the time within which a scheduler must begin to answer; a deadlocked one accepts and stays silent.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The whole of one answer; a 50 MB list over a slow link fits.
pub const DEFAULT_REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The longest answer that is read.
pub const DEFAULT_MAX_ANSWER_BYTES: usize = 256 << 20;
/// The longest event that is read. Heavy deployment events carry whole groups.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of the members of one scheduler, in the order in which they are tried. A path prefix is kept.
    pub schedulers: Vec<Url>,
    pub credentials: Option<Credentials>,
    /// The framework's name until the scheduler tells its own.
    pub framework: Arc<str>,
    pub vip_pools: Vec<VipPool>,
    /// Addresses that no VIP may have on this node.
    pub reserved: Vec<Reserved>,
    pub resync: Duration,
    pub stream_deadline: Duration,
    pub coalesce: Duration,
    pub poll: Duration,
    pub connect_timeout: Duration,
    pub request_deadline: Duration,
    pub max_answer_bytes: usize,
    pub max_event_bytes: usize,
    /// Where the last good list is kept for a start without a scheduler. `None`: it is not kept.
    pub state_file: Option<PathBuf>,
}

impl Config {
    pub fn new(schedulers: Vec<Url>) -> Self {
        Self {
            schedulers,
            credentials: None,
            framework: DEFAULT_FRAMEWORK.into(),
            vip_pools: Vec::new(),
            reserved: Vec::new(),
            resync: DEFAULT_RESYNC,
            stream_deadline: DEFAULT_STREAM_DEADLINE,
            coalesce: DEFAULT_COALESCE,
            poll: DEFAULT_POLL,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            request_deadline: DEFAULT_REQUEST_DEADLINE,
            max_answer_bytes: DEFAULT_MAX_ANSWER_BYTES,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            state_file: None,
        }
    }
}

/// How the watcher proves who it is. Sent to configured addresses only; never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Basic {
        user: String,
        password: String,
    },
    /// A DC/OS authentication token, sent as `Authorization: token=…`.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Token(_) => "Token(…)",
        })
    }
}
