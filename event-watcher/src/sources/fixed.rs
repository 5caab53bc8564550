//! Apps with fixed endpoints, from a file: for what no scheduler runs.
//!
//! The file is looked at every second and read when it changed. What cannot be read changes nothing; an app that is
//! wrong is its own problem and keeps its last good version.

mod format;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::catalog::Leaders;
use crate::config::{DEFAULT_FRAMEWORK, Static};
use crate::error::chain;
use crate::hub::Feed;
use crate::reconcile::{Cause, State};
use crate::watcher::{Command, now};

use format::{Entry, FileError};

/// Larger than any file that people keep by hand or a program writes for a cluster.
const MAX_BYTES: u64 = 64 << 20;

pub(crate) struct Fixed {
    config: Static,
    feed: Feed,
    state: State,
    /// What the file was when it was last looked at.
    seen: Option<Print>,
}

/// Enough to tell that a file is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    modified: Option<SystemTime>,
    n_bytes: u64,
    inode: u64,
}

impl Fixed {
    pub(crate) fn new(config: Static, feed: Feed) -> Self {
        let reason = "the file has not been read yet".into();
        Self { config, feed, state: State::Unsynced { cause: Cause::Start, reason }, seen: None }
    }

    pub(crate) async fn run(mut self, mut commands: broadcast::Receiver<Command>, cancel: CancellationToken) {
        loop {
            self.look().await;
            self.feed.commit(&self.state, None, Leaders::default());
            tokio::select! {
                () = cancel.cancelled() => return,
                Ok(_) = commands.recv() => self.seen = None,
                () = tokio::time::sleep(self.config.poll) => {}
            }
        }
    }

    async fn look(&mut self) {
        let (path, seen) = (self.config.file.clone(), self.seen);
        let looking = tokio::task::spawn_blocking(move || read(&path, seen));
        let looked = looking.await.unwrap_or_else(|e| Err(FileError::Io(std::io::Error::other(e))));
        let contents = match looked {
            Ok(Some((print, contents))) => {
                self.seen = Some(print);
                format::read(&contents, &self.config.file, DEFAULT_FRAMEWORK)
            }
            // The same file as before; what was said about it still holds.
            Ok(None) => return,
            Err(error) => {
                self.seen = None;
                Err(error)
            }
        };
        match contents {
            Ok(entries) => self.take(entries),
            Err(error) => {
                let reason: Arc<str> = chain(&error).into();
                if self.state.reason() != Some(&reason) {
                    tracing::warn!(source = %self.feed.name(), file = %self.config.file.display(), %reason, "cannot use a file of static apps; what it said before keeps serving");
                    self.feed.rejected(error.word());
                }
                self.state.lost(now(), Cause::Fetch, &reason);
            }
        }
    }

    fn take(&mut self, entries: Vec<Entry>) {
        let known = entries.iter().filter_map(|entry| entry.id().cloned()).collect();
        self.feed.held.retain(&known);
        let mut problems = Vec::new();
        for entry in entries {
            match entry {
                Entry::Read(update) => self.feed.held.replace(update),
                Entry::Rejected(id, problem) => self.feed.held.set_problems(&id, vec![problem]),
                Entry::Nameless(problem) => problems.push(problem),
            }
        }
        self.feed.held.set_source_problems(problems);
        self.feed.saw_answer();
        self.state.confirmed();
    }
}

/// `None`: it is the file that was seen, or somebody is writing it.
fn read(path: &Path, seen: Option<Print>) -> Result<Option<(Print, String)>, FileError> {
    let before = print(path)?;
    if seen == Some(before) {
        return Ok(None);
    }
    if before.n_bytes > MAX_BYTES {
        return Err(FileError::TooLarge);
    }
    let contents = std::fs::read_to_string(path).map_err(FileError::Io)?;
    // Half of a file may be one.
    Ok((print(path)? == before).then_some((before, contents)))
}

fn print(path: &Path) -> Result<Print, FileError> {
    use std::os::unix::fs::MetadataExt as _;
    let about = std::fs::metadata(path).map_err(FileError::Io)?;
    Ok(Print { modified: about.modified().ok(), n_bytes: about.len(), inode: about.ino() })
}
