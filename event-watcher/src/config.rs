//! What the watcher must be told: where apps come from, and how patient to be.
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
/// How often the files of a static source are looked at.
pub const DEFAULT_FILE_POLL: Duration = Duration::from_secs(1);
/// The name of the only scheduler when nobody gave it one.
pub const DEFAULT_SOURCE: &str = "marathon";
/// Also the time within which a scheduler must begin to answer; a deadlocked one accepts and stays silent.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The whole of one answer; a 50 MB list over a slow link fits.
pub const DEFAULT_REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The longest answer that is read.
pub const DEFAULT_MAX_ANSWER_BYTES: usize = 256 << 20;
/// The longest event that is read. Heavy deployment events carry whole groups.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1 << 20;

/// Everything that is watched, merged into one catalog.
#[derive(Clone, Debug)]
pub struct Config {
    /// In the order in which they win when two have an app of the same id. Names are unique.
    pub sources: Vec<Source>,
    pub vip_pools: Vec<VipPool>,
    /// Addresses that no VIP may have on this node.
    pub reserved: Vec<Reserved>,
}

/// Something that apps come from.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: Arc<str>,
    pub kind: SourceKind,
}

#[derive(Clone, Debug)]
pub enum SourceKind {
    Marathon(Box<Marathon>),
    Static(Static),
}

/// One scheduler, with all its members.
#[derive(Clone, Debug)]
pub struct Marathon {
    /// Addresses of the members of one scheduler, in the order in which they are tried. A path prefix is kept.
    pub schedulers: Vec<Url>,
    pub credentials: Option<Credentials>,
    /// PEM file with the only authorities that are trusted. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The framework's name until the scheduler tells its own.
    pub framework: Arc<str>,
    pub resync: Duration,
    pub stream_deadline: Duration,
    pub coalesce: Duration,
    pub poll: Duration,
    pub connect_timeout: Duration,
    pub request_deadline: Duration,
    pub max_answer_bytes: usize,
    pub max_event_bytes: usize,
    /// Where the last good state is kept for a start without a scheduler. `None`: it is not kept.
    pub state_file: Option<PathBuf>,
}

/// Apps with fixed endpoints, from files.
#[derive(Clone, Debug)]
pub struct Static {
    /// TOML, or JSON when the name ends in `.json`.
    pub file: PathBuf,
    pub poll: Duration,
}

impl Config {
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, vip_pools: Vec::new(), reserved: Vec::new() }
    }

    /// One scheduler under the usual name.
    pub fn of_one(marathon: Marathon) -> Self {
        Self::new(vec![Source {
            name: DEFAULT_SOURCE.into(),
            kind: SourceKind::Marathon(Box::new(marathon)),
        }])
    }
}

impl Marathon {
    pub fn new(schedulers: Vec<Url>) -> Self {
        Self {
            schedulers,
            credentials: None,
            ca_file: None,
            framework: DEFAULT_FRAMEWORK.into(),
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

impl Static {
    pub fn new(file: PathBuf) -> Self {
        Self { file, poll: DEFAULT_FILE_POLL }
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
    /// A file that holds such a token. Read again when the token is refused.
    TokenFile(PathBuf),
    /// A DC/OS service account file: who to log in as, with which key, and where.
    ServiceAccountFile(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { .. } => f.write_str("Basic(…)"),
            Self::Token(_) => f.write_str("Token(…)"),
            Self::TokenFile(path) => write!(f, "TokenFile({})", path.display()),
            Self::ServiceAccountFile(path) => write!(f, "ServiceAccountFile({})", path.display()),
        }
    }
}
