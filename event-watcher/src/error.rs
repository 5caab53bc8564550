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
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// A request to the scheduler that brought no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot reach {host}")]
    Connect { host: String, source: reqwest::Error },
    #[error("{host} did not answer within {limit:?}")]
    Silent { host: String, limit: Duration },
    #[error("the answer of {host} broke off")]
    Body { host: String, source: reqwest::Error },
    #[error("{host} answered {status}{}", detail(.message))]
    Status { host: String, status: StatusCode, message: String },
    #[error("{host} refused the credentials ({status})")]
    Auth { host: String, status: StatusCode },
    #[error("the answer of {host} is larger than {limit_bytes} bytes")]
    TooLarge { host: String, limit_bytes: usize },
    #[error("{host} redirects to {target}, which is neither configured nor the leader it names")]
    ForeignRedirect { host: String, target: String },
    #[error("{host} redirects without end")]
    RedirectLoop { host: String },
    #[error("the answer of {host} is not what Marathon would say")]
    Malformed { host: String, source: serde_json::Error },
    /// The endpoint does not exist there (404, 405, 406) or is not an event stream.
    #[error("{host} has no event stream ({why})")]
    NoStream { host: String, why: String },
}

/// An event stream that is over.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
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
            Self::Auth { .. } => FailureKind::Auth,
            Self::NoStream { .. } => FailureKind::NoStream,
            _ => FailureKind::Other,
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
