//! What can go wrong between the watcher and the scheduler, one enum per boundary.
//!
//! No message holds a credential, and none repeats its source: the chain is printed at the edge.

use std::time::Duration;

use reqwest::StatusCode;

/// The configuration cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no scheduler address is given")]
    NoScheduler,
    #[error("the scheduler address {0} is not an http:// or https:// URL with a host")]
    NotHttp(String),
    #[error("the credentials hold a character that an HTTP header cannot carry")]
    Credentials,
    #[error("cannot use the certificates in {path}: {why}")]
    Authorities { path: String, why: String },
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("two sources have the name {0:?}")]
    SameName(String),
}

/// A request to the scheduler that brought no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cannot reach {host}")]
    Connect { host: String, source: reqwest::Error },
    #[error("{host} did not answer within {limit:?}")]
    Silent { host: String, limit: Duration },
    #[error("the answer of {host} broke off")]
    Body { host: String, source: reqwest::Error },
    #[error("{host} answered {status}{}", detail(.message))]
    Status { host: String, status: StatusCode, message: String },
    #[error("there are no credentials for {host}")]
    NoCredentials { host: String, source: crate::sources::marathon::auth::AuthError },
    #[error("the answer of {host} is compressed, which was not asked for")]
    Compressed { host: String },
    #[error("no thread could be started to read the answer")]
    NoThread { source: std::io::Error },
    #[error("the members do not agree on who leads them: {}", claims.join(", "))]
    SplitBrain { claims: Vec<String> },
    #[error("most members follow another leader than {host}")]
    NotTheLeader { host: String },
    #[error("{host} refused the credentials ({status})")]
    Auth { host: String, status: StatusCode },
    #[error("the answer of {host} is larger than {limit_bytes} bytes")]
    TooLarge { host: String, limit_bytes: usize },
    #[error("{host} redirects to {target}, which is neither configured nor the leader it names")]
    ForeignRedirect { host: String, target: String },
    #[error("{host} redirects without end")]
    RedirectLoop { host: String },
    #[error("the answer of {host} is not what Marathon would say")]
    Malformed { host: String, source: crate::sources::marathon::list::Malformed },
    /// The endpoint does not exist there (404, 405, 406) or is not an event stream.
    #[error("{host} has no event stream ({why})")]
    NoStream { host: String, why: String },
}

/// An event stream that is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the scheduler closed the event stream")]
    Closed,
    #[error("the event stream broke off")]
    Broken(#[source] reqwest::Error),
    #[error("the event stream was silent for {0:?}")]
    Silent(Duration),
    #[error("the event stream makes no sense")]
    Endless(#[source] crate::sources::marathon::sse::Endless),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl FetchError {
    pub(crate) fn kind(&self) -> crate::reconcile::FailureKind {
        use crate::reconcile::FailureKind;
        match self {
            Self::Auth { .. } | Self::NoCredentials { .. } => FailureKind::Auth,
            Self::SplitBrain { .. } | Self::NotTheLeader { .. } => FailureKind::SplitBrain,
            Self::NoStream { .. } => FailureKind::NoStream,
            _ => FailureKind::Other,
        }
    }
}

impl FetchError {
    /// The word that metrics count it under.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Silent { .. } => "timeout",
            Self::Body { .. } => "truncated",
            Self::Status { .. } => "status",
            Self::Auth { .. } | Self::NoCredentials { .. } => "auth",
            Self::TooLarge { .. } => "too_large",
            Self::ForeignRedirect { .. } | Self::RedirectLoop { .. } => "redirect",
            Self::Malformed { .. } => "malformed",
            Self::Compressed { .. } => "compressed",
            Self::NoStream { .. } => "no_stream",
            Self::NoThread { .. } => "no_thread",
            Self::SplitBrain { .. } | Self::NotTheLeader { .. } => "split_brain",
        }
    }
}

impl StreamError {
    pub(crate) fn kind(&self) -> crate::reconcile::FailureKind {
        match self {
            Self::Silent(_) => crate::reconcile::FailureKind::Silent,
            _ => crate::reconcile::FailureKind::Other,
        }
    }

    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken(_) => "broken",
            Self::Silent(_) => "silent",
            Self::Endless(_) => "endless",
        }
    }
}

/// An error with all its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
