//! Moves a list's bytes, as they arrive, to a thread that reads them: the list is never in memory whole, and reading it
//! takes no time from whoever watches or serves.

use bytes::Bytes;
use reqwest::Response;
use tokio::sync::{mpsc, oneshot};

use crate::error::FetchError;
use crate::sources::marathon::list::{Answer, ListReader, Malformed, Surroundings};

/// Pieces that may wait for the reading thread; the sender waits beyond.
const MAX_WAITING: usize = 16;
/// Requests come first: the thread gets a tenth of a core when every core is wanted.
const NICENESS: libc::c_int = 10;

pub(super) async fn read(
    mut response: Response,
    host: &str,
    limit_bytes: usize,
    around: Surroundings,
) -> Result<Answer, FetchError> {
    let (sender, pieces) = mpsc::channel(MAX_WAITING);
    let outcome = start(pieces, around).map_err(|source| FetchError::NoThread { source })?;
    let mut n_bytes = 0;
    loop {
        let piece = match response.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(source) => {
                return Err(FetchError::Body { host: host.to_owned(), source: source.without_url() });
            }
        };
        n_bytes += piece.len();
        if n_bytes > limit_bytes {
            return Err(FetchError::TooLarge { host: host.to_owned(), limit_bytes });
        }
        if sender.send(Some(piece)).await.is_err() {
            // It has seen enough; what it made of it is told below.
            break;
        }
    }
    // Only a list that is here to its end may be believed.
    let _ = sender.send(None).await;
    let malformed = |source| FetchError::Malformed { host: host.to_owned(), source };
    match outcome.await {
        Ok(outcome) => outcome.map_err(malformed),
        Err(_) => Err(malformed(Malformed::Json(serde::de::Error::custom("the reading thread broke off")))),
    }
}

type Outcome = Result<Answer, Malformed>;

fn start(
    mut pieces: mpsc::Receiver<Option<Bytes>>,
    around: Surroundings,
) -> std::io::Result<oneshot::Receiver<Outcome>> {
    let (sender, outcome) = oneshot::channel();
    let read = move || {
        // SAFETY: takes numbers only; on Linux, 0 is the calling thread. Without the right to it, nothing changes.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
        let mut reader = ListReader::new(around);
        while let Some(piece) = pieces.blocking_recv() {
            let done = match piece {
                Some(piece) => match reader.push(&piece) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                None => reader.finish(),
            };
            // Nobody waits any more when the deadline has passed.
            let _ = sender.send(done);
            return;
        }
    };
    std::thread::Builder::new().name("list".to_owned()).spawn(read)?;
    Ok(outcome)
}
