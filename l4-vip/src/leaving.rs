//! VIPs that are gone and still served, for as long as somebody may hold an answer of DNS about them.
//!
//! Names go first, addresses later: whoever looked a name up a moment ago finds the VIP as it was. Established
//! connections are not its affair: they outlive their VIP anyway.
//!
//! It is not kept across a restart, although the kernel planes still hold such VIPs then: nothing in the kernel tells
//! one that was removed a second ago from one that was removed while no agent ran, an hour ago, whose instances'
//! ports are other apps' by now. Serving that would be worse than refusing whoever looked up a name in those few
//! seconds.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::{Delta, InstanceId, Rotation, Snapshot, VipKey};
use tokio::time::Instant;

use crate::table::{VipState, Vips};

#[derive(Debug, Default)]
pub(crate) struct Leaving(BTreeMap<VipKey, (Arc<VipState>, Instant)>);

/// The instances of changed apps, by where they are reached.
pub(crate) type Occupied<'a> = HashMap<SocketAddr, (&'a InstanceId, Rotation)>;

impl Leaving {
    /// Takes in what is `gone`, and lets go of what has come back.
    pub(crate) fn take_in(&mut self, gone: Vec<(VipKey, Arc<VipState>)>, now: &Vips, overlap: Duration) {
        self.0.retain(|key, _| !now.contains_key(key));
        if overlap.is_zero() {
            return;
        }
        let until = Instant::now() + overlap;
        self.0.extend(gone.into_iter().map(|(key, vip)| (key, (vip, until))));
    }

    /// The state of a VIP that comes back goes on.
    pub(crate) fn get(&self, key: &VipKey) -> Option<&Arc<VipState>> {
        self.0.get(key).map(|(vip, _)| vip)
    }

    /// Instances that are being stopped get nothing new, and where another instance is now, none of an old one's.
    /// Tells whether anything changed.
    pub(crate) fn follow(&self, old: &Snapshot, new: &Snapshot) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let changed = Delta::between(old, new).changed;
        let instances = changed.iter().flat_map(|app| &app.instances);
        let occupied: Occupied<'_> = instances
            .flat_map(|instance| {
                let of = (&instance.id, instance.rotation());
                instance.endpoints.iter().map(move |endpoint| (endpoint.address, of))
            })
            .collect();
        self.0.values().fold(false, |any, (vip, _)| vip.give_way(&occupied) || any)
    }

    /// Those that are served still, with the end of that. Forgets the others.
    pub(crate) fn until(&mut self, now: Instant) -> impl Iterator<Item = (&Arc<VipState>, Instant)> {
        self.0.retain(|_, (_, until)| *until > now);
        self.0.values().map(|(vip, until)| (vip, *until))
    }
}
