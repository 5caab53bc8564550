//! What is held goes to disk for a later start, not too often, and comes back from there.
//!
//! How the file looks is [`crate::keep`]'s affair.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Watch, Words};
use crate::error::chain;
use crate::keep;
use crate::watcher::now;

/// What is kept on disk is this much behind what is held.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// Keeping takes at most this share of the time: what is kept of a small cluster is a moment old.
const KEEP_SHARE: u32 = 100;
/// What is kept of a large cluster is never older than this.
const KEEP_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Keeper {
    /// When the next save begins.
    pub(super) due: Option<Instant>,
    busy_since: Option<Instant>,
    not_before: Option<Instant>,
}

impl Watch {
    pub(super) fn commit(&mut self) {
        if self.feed.commit(self.reconcile.state(), Some(&self.framework), self.leaders)
            == crate::hub::Changed::Yes
            && self.config.state_file.is_some()
            && self.keeper.due.is_none()
        {
            let due = now() + KEEP_AFTER;
            self.keeper.due = Some(self.keeper.not_before.map_or(due, |at| due.max(at)));
        }
    }

    pub(super) fn keep_when_due(&mut self) {
        let Some(path) = self.config.state_file.clone() else { return };
        if self.keeper.due.is_none_or(|due| due > now()) || self.keeper.busy_since.is_some() {
            return;
        }
        self.keeper.due = None;
        self.keeper.busy_since = Some(now());
        let (name, framework, apps) =
            (Arc::clone(self.feed.name()), Arc::clone(&self.framework), self.feed.held.apps().clone());
        self.spawn(async move {
            let saving = tokio::task::spawn_blocking(move || keep::save(&path, &name, &framework, &apps));
            Done::Kept(saving.await.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    pub(super) fn kept(&mut self, result: std::io::Result<()>) {
        let now = now();
        if let Some(since) = self.keeper.busy_since.take() {
            self.keeper.not_before = Some(now + ((now - since) * KEEP_SHARE).min(KEEP_AT_LEAST_EVERY));
        }
        if let Err(error) = result {
            if self.stats.n_keep_failures.value() == 0 {
                let path = self.config.state_file.as_ref().map(|path| path.display().to_string());
                tracing::warn!(path, %error, "cannot keep the last good state on disk; serving goes on");
            }
            self.stats.n_keep_failures.add_one();
        }
    }

    /// Serves what an earlier run kept, until the scheduler answers.
    pub(super) fn restore(&mut self) {
        let Some(path): Option<PathBuf> = self.config.state_file.clone() else { return };
        match keep::load(&path, self.feed.name()) {
            Ok(Some(kept)) => {
                self.framework = kept.framework.as_str().into();
                let mut words = Words::default();
                for mut app in kept.apps {
                    words.share(Arc::make_mut(&mut app));
                    self.feed.held.put(app, Vec::new());
                }
                let minutes = kept.age.as_secs() / 60;
                let reason =
                    format!("serving the state kept {minutes} minutes ago; no answer from the scheduler yet");
                let since = now().checked_sub(kept.age).unwrap_or_else(now);
                self.reconcile.restored(since, &reason);
            }
            Ok(None) => {}
            Err(error) => {
                self.feed.rejected("kept_state");
                tracing::warn!(path = %path.display(), reason = chain(&error), "cannot use the kept state");
            }
        }
    }
}
