//! What differs between two snapshots, by app.
//!
//! Unchanged apps share their `Arc` between snapshots, so this compares pointers, never contents.

use std::sync::Arc;

use super::app::{App, AppId};
use super::snapshot::Snapshot;

#[derive(Debug, Default)]
pub struct Delta {
    /// Apps that are new or differ, in id order.
    pub changed: Vec<Arc<App>>,
    /// Apps that are gone, in id order.
    pub removed: Vec<AppId>,
    /// The table of VIPs differs.
    pub vips_changed: VipsChanged,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VipsChanged {
    #[default]
    No,
    Yes,
}

impl Delta {
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let mut delta = Self {
            vips_changed: if Arc::ptr_eq(&old.vips, &new.vips) { VipsChanged::No } else { VipsChanged::Yes },
            ..Self::default()
        };
        if Arc::ptr_eq(&old.apps, &new.apps) {
            return delta;
        }
        for (id, app) in new.apps.iter() {
            if !old.apps.get(id).is_some_and(|known| Arc::ptr_eq(known, app)) {
                delta.changed.push(Arc::clone(app));
            }
        }
        delta.removed = old.apps.keys().filter(|id| !new.apps.contains_key(*id)).cloned().collect();
        delta
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty() && self.vips_changed == VipsChanged::No
    }
}
