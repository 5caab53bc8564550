//! What the watcher counts while it runs, for metrics and the status page.
//!
//! Relaxed atomics: each number is right on its own, together they are no snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        /// The counters at one moment.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        pub struct StatsView {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            pub fn view(&self) -> StatsView {
                StatsView { $($name: self.$name.value(),)* }
            }
        }
    };
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Event streams that were opened.
    n_streams_opened,
    /// Event streams that ended, for whatever reason.
    n_streams_lost,
    /// Streams given up because no byte came within the deadline (among the lost).
    n_streams_silent,
    /// Attempts to open a stream that failed.
    n_connect_failures,
    /// Events that named an app to look at again.
    n_events_relevant,
    /// Events that took an endpoint out before any fetch (among the relevant).
    n_events_retiring,
    /// Events about nothing that is watched.
    n_events_ignored,
    /// Events that could not be read: answered with a full fetch.
    n_events_unreadable,
    /// Events left out because they were larger than the bound.
    n_events_oversized,
    /// Events left out because the watcher was busy: answered with a full fetch.
    n_events_dropped,
    n_app_fetches,
    n_list_fetches,
    n_fetch_failures,
    /// Answers left out because a newer one had been applied already.
    n_answers_outdated,
    /// Apps in answers that could not be read; their last good version keeps serving.
    n_apps_rejected,
    /// Tasks in answers that could not be read or were listed twice.
    n_tasks_skipped,
    /// Apps that were skipped because their text was the same as in the last list.
    n_apps_unchanged,
    n_snapshots_published,
    /// Times that the last good list could not be kept on disk.
    n_keep_failures,
}
