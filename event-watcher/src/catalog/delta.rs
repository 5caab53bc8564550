//! What differs between two snapshots, by app.
//!
//! Unchanged apps share their `Arc` between snapshots, and so do whole ranges of them: what two snapshots share is
//! skipped, so this costs what differs.

use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::app::{App, AppId};
use super::snapshot::Snapshot;

#[derive(Debug, Default)]
pub struct Delta {
    /// Apps that are new, differ or have moved to another scheduler, in id order.
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
        for item in old.apps.diff(&new.apps) {
            match item {
                DiffItem::Add(_, app) => delta.changed.push(Arc::clone(app)),
                DiffItem::Update { old: (_, known), new: (_, app) } if !Arc::ptr_eq(known, app) => {
                    delta.changed.push(Arc::clone(app));
                }
                DiffItem::Update { .. } => {}
                DiffItem::Remove(id, _) => delta.removed.push(id.clone()),
            }
        }
        let n_changed = delta.changed.len();
        for item in old.frameworks.diff(&new.frameworks) {
            let (DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _)) =
                item;
            delta.changed.extend(new.app(id).map(Arc::clone));
        }
        if delta.changed.len() > n_changed {
            delta.changed.sort_by(|a, b| a.id.cmp(&b.id));
            delta.changed.dedup_by(|a, b| a.id == b.id);
        }
        delta
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty() && self.vips_changed == VipsChanged::No
    }
}
