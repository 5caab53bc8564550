//! Looks up the host names of static servers, again and again: a name may move.
//!
//! Runs on the control side. A name that cannot be looked up keeps its last address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::table::Names;

/// The system's resolver does not tell how long an answer holds.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct StaticNames {
    wanted: watch::Sender<BTreeSet<Arc<str>>>,
    known: watch::Receiver<Names>,
}

impl StaticNames {
    pub(crate) fn start(cancel: CancellationToken) -> Self {
        let (wanted, to_look_up) = watch::channel(BTreeSet::new());
        let (found, known) = watch::channel(Names::new());
        tokio::spawn(keep_looking(to_look_up, found, cancel));
        Self { wanted, known }
    }

    pub(crate) fn want(&self, names: &BTreeSet<Arc<str>>) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted != names;
            if is_new {
                wanted.clone_from(names);
            }
            is_new
        });
    }

    /// Returns what is known when that has changed.
    pub(crate) async fn changed(&mut self) -> Names {
        if self.known.changed().await.is_err() {
            // The task ends only with the plane.
            std::future::pending::<()>().await;
        }
        self.known.borrow_and_update().clone()
    }
}

async fn keep_looking(
    mut wanted: watch::Receiver<BTreeSet<Arc<str>>>,
    found: watch::Sender<Names>,
    cancel: CancellationToken,
) {
    loop {
        let names = wanted.borrow_and_update().clone();
        let mut known = found.borrow().clone();
        known.retain(|name, _| names.contains(name));
        for name in &names {
            match look_up(name).await {
                Some(address) => {
                    known.insert(Arc::clone(name), address);
                }
                None => tracing::warn!(%name, "a static server's name cannot be looked up"),
            }
        }
        found.send_if_modified(|last| {
            let is_new = *last != known;
            *last = known;
            is_new
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL), if !names.is_empty() => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// The lowest of its addresses, so that a resolver that turns them round changes nothing.
async fn look_up(name: &str) -> Option<IpAddr> {
    let answer = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, 0))).await.ok()?.ok()?;
    answer.map(|address| address.ip()).min()
}
