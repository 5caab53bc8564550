//! VIP → pool: what the plane compiles from snapshots.
//!
//! A VIP keeps its pool's live state, its counters and its identity as long as its key exists; a change of endpoints
//! swaps the pool inside it and touches no other VIP. It opens no sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use event_watcher::catalog::{Delta, Rotation, ServiceId, Snapshot, Vip, VipKey, VipsChanged};

use crate::kernel::{Backend, Frontend, Service};
use crate::policy::Policy;
use crate::pool::{EndpointState, Pool};
use crate::stats::{Counters, PlaneKind, VipView};

#[derive(Debug)]
pub(crate) struct VipState {
    pub(crate) key: VipKey,
    /// Loaded once per connection.
    pub(crate) pool: ArcSwap<Pool>,
    pub(crate) counters: Counters,
    /// Only the control thread looks at the rest.
    control: Mutex<Control>,
}

#[derive(Debug)]
struct Control {
    addresses: Vec<IpAddr>,
    services: Vec<ServiceId>,
    /// Endpoints that are gone from the pool and had connections when they went.
    leaving: Vec<Arc<EndpointState>>,
}

impl VipState {
    fn new(vip: &Vip, policy: Policy) -> Self {
        Self {
            key: vip.key.clone(),
            pool: ArcSwap::from_pointee(Pool::new(policy, [], None)),
            counters: Counters::default(),
            control: Mutex::new(Control {
                addresses: vip.addresses.clone(),
                services: vip.services.clone(),
                leaving: Vec::new(),
            }),
        }
    }

    pub(crate) fn socket_addresses(&self) -> Vec<SocketAddr> {
        self.control().addresses.iter().map(|ip| SocketAddr::new(*ip, self.key.port)).collect()
    }

    /// The service that stands first for the VIP, for problems.
    pub(crate) fn first_service(&self) -> Option<ServiceId> {
        self.control().services.first().cloned()
    }

    /// Takes the endpoints that the snapshot has for this VIP.
    fn refresh(&self, vip: &Vip, snapshot: &Snapshot) {
        let members = vip.services.iter().flat_map(|service| {
            let instances = snapshot.app(&service.app).map_or(&[][..], |app| &app.instances);
            instances.iter().filter_map(|instance| {
                let endpoint = instance.endpoint(service.port_index)?;
                Some((instance.id.clone(), endpoint.address, instance.rotation()))
            })
        });
        let old = self.pool.load_full();
        let new = Pool::new(old.policy(), members, Some(&old));
        let mut control = self.control();
        control.addresses.clone_from(&vip.addresses);
        control.services.clone_from(&vip.services);
        control.leaving.extend(old.endpoints().iter().filter(|e| e.rotation() == Rotation::Out).cloned());
        control.leaving.retain(|endpoint| endpoint.n_in_flight() > 0);
        drop(control);
        self.pool.store(Arc::new(new));
    }

    pub(crate) fn view(&self, listening: &dyn Fn(SocketAddr) -> bool) -> VipView {
        let pool = self.pool.load();
        let control = self.control();
        let leaving = control.leaving.iter().filter(|endpoint| endpoint.n_in_flight() > 0);
        let endpoints: Vec<_> = pool.endpoints().iter().chain(leaving).map(|e| e.view()).collect();
        VipView {
            vip: self.key.target.clone(),
            protocol: self.key.protocol,
            port: self.key.port,
            addresses: control.addresses.clone(),
            listening: control
                .addresses
                .iter()
                .copied()
                .filter(|ip| listening(SocketAddr::new(*ip, self.key.port)))
                .collect(),
            plane: PlaneKind::Userspace,
            policy: pool.policy(),
            services: control.services.clone(),
            n_in_flight: endpoints.iter().map(|e| e.n_in_flight).sum(),
            endpoints,
            counters: self.counters.view(),
        }
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel should serve for a VIP: one service for each of its addresses.
pub(crate) fn services(vip: &VipState) -> Vec<Service> {
    let pool = vip.pool.load();
    let weight = |endpoint: &EndpointState| u16::from(endpoint.is_usable());
    let backends: Vec<Backend> =
        pool.endpoints().iter().map(|e| Backend { address: e.address, weight: weight(e) }).collect();
    let service = |address| Service {
        frontend: Frontend { protocol: vip.key.protocol, address },
        backends: backends.clone(),
        affinity: None,
    };
    vip.socket_addresses().into_iter().map(service).collect()
}

/// The VIPs that are not what they were, when the table itself did not change; `None`: any of them may differ.
pub(crate) fn touched(vips: &Vips, old: &Snapshot, new: &Snapshot) -> Option<Vec<Arc<VipState>>> {
    let delta = Delta::between(old, new);
    if delta.vips_changed == VipsChanged::Yes {
        return None;
    }
    let keys = delta.changed.iter().flat_map(|app| &app.services).flat_map(|service| &service.vips);
    Some(keys.filter_map(|key| vips.get(key).cloned()).collect())
}

/// All VIPs of the newest snapshot. Replaced only when VIPs come, go or move; pools change inside.
pub(crate) type Vips = BTreeMap<VipKey, Arc<VipState>>;

/// The VIPs of `new`. `old` is the snapshot that `known` was compiled from; VIPs that no changed app feeds are not
/// looked at unless the allocation itself changed.
pub(crate) fn compile(known: &Arc<Vips>, old: &Snapshot, new: &Snapshot, policy: Policy) -> Arc<Vips> {
    let delta = Delta::between(old, new);
    if delta.vips_changed == VipsChanged::No {
        for key in delta.changed.iter().flat_map(|app| &app.services).flat_map(|service| &service.vips) {
            if let (Some(state), Some(vip)) = (known.get(key), new.vips.get(key)) {
                state.refresh(vip, new);
            }
        }
        return Arc::clone(known);
    }
    let vips = new.vips.iter().map(|vip| {
        let state = match known.get(&vip.key) {
            Some(state) => Arc::clone(state),
            None => Arc::new(VipState::new(vip, policy)),
        };
        state.refresh(vip, new);
        (vip.key.clone(), state)
    });
    Arc::new(vips.collect())
}
