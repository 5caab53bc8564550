//! How snapshots reach the data planes: one publisher, any number of subscribers, only the newest value kept.
//!
//! It queues nothing: a slow reader skips generations and never slows the writer. Every wait is on a generation
//! ("at least this one"), so it cannot miss what happened before it began.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::catalog::{Generation, Snapshot};

/// How far the published snapshot can be trusted to be the present.
#[derive(Clone, Debug, PartialEq)]
pub enum Freshness {
    /// Nothing has been read from the scheduler yet.
    Unsynced {
        reason: Arc<str>,
    },
    Live,
    /// The last good snapshot keeps serving.
    Stale {
        since: Instant,
        reason: Arc<str>,
    },
}

impl Serialize for Freshness {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "state", rename_all = "lowercase")]
        enum Shape<'a> {
            Unsynced { reason: &'a str },
            Live,
            Stale { age_seconds: f64, reason: &'a str },
        }
        match self {
            Self::Unsynced { reason } => Shape::Unsynced { reason },
            Self::Live => Shape::Live,
            Self::Stale { since, reason } => {
                Shape::Stale { age_seconds: since.elapsed().as_secs_f64(), reason }
            }
        }
        .serialize(serializer)
    }
}

/// The writer's end. Only the watcher holds one.
#[derive(Debug)]
pub struct Publisher {
    snapshot: watch::Sender<Arc<Snapshot>>,
    freshness: watch::Sender<Freshness>,
}

/// A reader's end.
#[derive(Clone, Debug)]
pub struct Subscriber {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    freshness: watch::Receiver<Freshness>,
}

/// The publisher is gone; nothing new will come. The last snapshot stays readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the publisher has stopped")]
pub struct Stopped;

pub fn channel() -> (Publisher, Subscriber) {
    let (snapshot, snapshot_rx) = watch::channel(Arc::new(Snapshot::default()));
    let (freshness, freshness_rx) = watch::channel(Freshness::Unsynced { reason: "starting".into() });
    (Publisher { snapshot, freshness }, Subscriber { snapshot: snapshot_rx, freshness: freshness_rx })
}

impl Publisher {
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.send_replace(snapshot);
    }

    pub fn set_freshness(&self, freshness: Freshness) {
        self.freshness.send_if_modified(|current| {
            let differs = *current != freshness;
            *current = freshness;
            differs
        });
    }

    pub fn subscribe(&self) -> Subscriber {
        Subscriber { snapshot: self.snapshot.subscribe(), freshness: self.freshness.subscribe() }
    }
}

impl Subscriber {
    pub fn latest(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    pub fn freshness(&self) -> Freshness {
        self.freshness.borrow().clone()
    }

    /// Waits for a snapshot that this subscriber has not returned from here yet.
    pub async fn changed(&mut self) -> Result<Arc<Snapshot>, Stopped> {
        self.snapshot.changed().await.map_err(|_| Stopped)?;
        Ok(Arc::clone(&self.snapshot.borrow_and_update()))
    }

    pub async fn freshness_changed(&mut self) -> Result<Freshness, Stopped> {
        self.freshness.changed().await.map_err(|_| Stopped)?;
        Ok(self.freshness.borrow_and_update().clone())
    }

    /// Waits for the first snapshot of at least this generation.
    pub async fn reached(&mut self, generation: Generation) -> Result<Arc<Snapshot>, Stopped> {
        let reached = self.snapshot.wait_for(|s| s.generation >= generation).await.map_err(|_| Stopped)?;
        Ok(Arc::clone(&reached))
    }
}

/// What was replaced while readers may still hold it. It is freed here, by the control thread that replaced it: freeing
/// the table of a large cluster takes milliseconds, which are not to be a request's.
#[derive(Debug)]
pub struct Retired<T>(Vec<Arc<T>>);

impl<T> Default for Retired<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Retired<T> {
    pub fn keep(&mut self, replaced: Arc<T>) {
        self.0.push(replaced);
        self.free();
    }

    /// Frees what nobody else holds any more. Answers whether something is left.
    pub fn free(&mut self) -> StillHeld {
        // A reader may take another copy only of what is published.
        self.0.retain(|value| Arc::strong_count(value) > 1);
        if self.0.is_empty() { StillHeld::No } else { StillHeld::Yes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StillHeld {
    No,
    Yes,
}

/// How long the control thread calculates before it looks after everything else that it serves, such as health checks.
const LONGEST_TURN: Duration = Duration::from_millis(2);

/// Lets the control thread's other tasks in while much is compiled.
#[derive(Debug)]
pub struct Pauses {
    since: Instant,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { since: Instant::now() }
    }
}

impl Pauses {
    /// Between two pieces of work.
    pub async fn if_due(&mut self) {
        if self.since.elapsed() > LONGEST_TURN {
            tokio::task::yield_now().await;
            self.since = Instant::now();
        }
    }
}

/// A plane's end of its "applied" mark: which generation its traffic follows now.
#[derive(Debug)]
pub struct AppliedMark(watch::Sender<Generation>);

/// Everybody else's end of it.
#[derive(Clone, Debug)]
pub struct Applied(watch::Receiver<Generation>);

pub fn applied() -> (AppliedMark, Applied) {
    let (mark, applied) = watch::channel(Generation::UNSYNCED);
    (AppliedMark(mark), Applied(applied))
}

impl AppliedMark {
    pub fn set(&self, generation: Generation) {
        self.0.send_replace(generation);
    }
}

impl Applied {
    pub fn generation(&self) -> Generation {
        *self.0.borrow()
    }

    pub async fn changed(&mut self) -> Result<Generation, Stopped> {
        self.0.changed().await.map_err(|_| Stopped)?;
        Ok(*self.0.borrow_and_update())
    }

    pub async fn reached(&mut self, generation: Generation) -> Result<(), Stopped> {
        self.0.wait_for(|g| *g >= generation).await.map(|_| ()).map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { generation: Generation(number), ..Snapshot::default() })
    }

    #[tokio::test]
    async fn a_slow_subscriber_sees_only_the_newest() {
        let (publisher, mut subscriber) = channel();
        publisher.publish(generation(1));
        publisher.publish(generation(2));
        assert_eq!(subscriber.changed().await.unwrap().generation, Generation(2));
        assert_eq!(subscriber.reached(Generation(1)).await.unwrap().generation, Generation(2));
        drop(publisher);
        assert_eq!(subscriber.changed().await.unwrap_err(), Stopped);
        assert_eq!(subscriber.latest().generation, Generation(2));
    }
}
