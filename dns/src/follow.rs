//! Follows the published snapshots: what goes, goes at once; a new VIP's name comes when the VIP itself is served.
//!
//! It compiles nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use event_watcher::catalog::{Generation, Snapshot};
use event_watcher::publish::{Applied, AppliedMark, Retired, StillHeld, Subscriber};
use tokio::time::timeout;

use crate::compile::{Compiler, NewVips};
use crate::zone::Zone;

/// Until a zone that was replaced is looked at again.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Follow {
    pub compiler: Compiler,
    pub zone: Arc<ArcSwap<Zone>>,
    pub mark: AppliedMark,
    pub vips_applied: Option<Applied>,
    pub vip_wait: Duration,
    pub n_vip_waits_expired: Arc<AtomicU64>,
    pub retired: Retired<Zone>,
}

impl Follow {
    pub async fn run(mut self, mut subscriber: Subscriber) {
        let latest = subscriber.latest();
        if latest.is_synced() {
            self.apply(&latest).await;
        }
        loop {
            // Readers hold a zone for the time of one answer.
            let left = self.retired.free() == StillHeld::Yes;
            let changed = tokio::select! {
                changed = subscriber.changed() => changed,
                () = tokio::time::sleep(LONGEST_ANSWER), if left => continue,
            };
            match changed {
                Ok(snapshot) if snapshot.is_synced() => self.apply(&snapshot).await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    async fn apply(&mut self, snapshot: &Snapshot) {
        if self.compiler.apply_without_new_vips(snapshot) == NewVips::Yes {
            if self.zone.load().is_synced() {
                self.publish();
            }
            self.wait_for_vips(snapshot.generation).await;
            self.compiler.apply_new_vips();
        }
        self.publish();
        self.mark.set(snapshot.generation);
    }

    fn publish(&mut self) {
        self.retired.keep(self.zone.swap(Arc::new(self.compiler.zone())));
    }

    async fn wait_for_vips(&mut self, generation: Generation) {
        let Some(vips_applied) = &mut self.vips_applied else { return };
        match timeout(self.vip_wait, vips_applied.reached(generation)).await {
            Ok(Ok(())) => {}
            // The plane has stopped: nobody will ever say more.
            Ok(Err(_)) => self.vips_applied = None,
            Err(_) => {
                self.n_vip_waits_expired.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%generation, "the VIP plane is behind; new VIP names are answered all the same");
            }
        }
    }
}
