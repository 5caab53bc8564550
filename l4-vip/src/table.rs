//! VIP → pools: what the plane compiles from snapshots, and which addresses it serves them at.
//!
//! A VIP keeps its pools' live state, its counters and its identity as long as its key exists; a change of endpoints
//! swaps a pool inside it and touches no other VIP. It opens no sockets.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use event_watcher::catalog::{
    Delta, Family, Problem, Protocol, Rotation, ServiceId, Snapshot, Vip, VipKey, VipsChanged,
};
use tokio::time::Instant;

use crate::config::Config;
use crate::kernel::serving::Told;
use crate::kernel::{Backend, Frontend, Service};
use crate::labels;
use crate::leaving::{Leaving, Occupied};
use crate::policy::Policy;
use crate::pool::{EndpointState, Member, Pool};
use crate::stats::{Counters, Counts, PlaneKind, VipView};

#[derive(Debug)]
pub(crate) struct VipState {
    pub(crate) key: VipKey,
    /// For the addresses of each family, the endpoints of the same. Loaded once per connection.
    v4: ArcSwap<Pool>,
    v6: ArcSwap<Pool>,
    pub(crate) counters: Counters,
    udp_idle_millis: AtomicU64,
    /// Only the control thread looks at the rest.
    control: Mutex<Control>,
}

#[derive(Debug, Default)]
struct Control {
    addresses: Vec<IpAddr>,
    /// Addresses that were this VIP's, and until when they still serve it.
    moved: Vec<(IpAddr, Instant)>,
    services: Vec<ServiceId>,
    /// Endpoints that are gone from the pool and had connections when they went.
    leaving: Vec<Arc<EndpointState>>,
    /// Labels that could not be read, and moves.
    problems: Vec<Problem>,
}

/// Whom an address belongs to; another VIP when it changes hands. Workers look at it for each connection and client.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) now: ArcSwap<VipState>,
    /// The VIP before, as long as its flows of datagrams go on: they are not the new one's to answer.
    pub(crate) before: ArcSwapOption<VipState>,
}

impl Owner {
    pub(crate) fn new(vip: Arc<VipState>) -> Self {
        Self { now: ArcSwap::new(vip), before: ArcSwapOption::empty() }
    }

    /// Whether a flow of this VIP goes on.
    pub(crate) fn keeps(&self, vip: &Arc<VipState>) -> bool {
        Arc::ptr_eq(&self.now.load(), vip) || self.before.load().as_ref().is_some_and(|b| Arc::ptr_eq(b, vip))
    }
}

/// What the services of a VIP ask for together: for each thing, the first in id order that says something.
struct Wishes {
    policy: Policy,
    affinity: Option<Duration>,
    udp_idle: Duration,
    /// In the order of the services.
    weights: Vec<u16>,
    problems: Vec<Problem>,
}

impl Wishes {
    fn read(vip: &Vip, snapshot: &Snapshot, config: &Config) -> Self {
        let mut problems = Vec::new();
        let said: Vec<_> = vip
            .services
            .iter()
            .filter_map(|service| {
                let app = snapshot.app(&service.app)?;
                Some(labels::read(app, service.port_index, &mut problems))
            })
            .collect();
        let affinity = said.iter().find_map(|labels| labels.affinity).or(config.affinity);
        Self {
            policy: said.iter().find_map(|labels| labels.policy).unwrap_or(config.policy),
            affinity: affinity.filter(|timeout| !timeout.is_zero()),
            udp_idle: said.iter().find_map(|labels| labels.udp_idle).unwrap_or(config.udp_idle),
            weights: said.iter().map(|labels| labels.weight).collect(),
            problems,
        }
    }
}

impl VipState {
    fn new(vip: &Vip, config: &Config) -> Self {
        Self {
            key: vip.key.clone(),
            v4: ArcSwap::from_pointee(Pool::empty(config.policy)),
            v6: ArcSwap::from_pointee(Pool::empty(config.policy)),
            counters: Counters::default(),
            udp_idle_millis: AtomicU64::default(),
            control: Mutex::default(),
        }
    }

    /// The pool of the addresses of the same family.
    pub(crate) fn pool(&self, address: IpAddr) -> &ArcSwap<Pool> {
        match Family::of(address) {
            Family::Ipv4 => &self.v4,
            Family::Ipv6 => &self.v6,
        }
    }

    /// How long a silent UDP flow lives.
    pub(crate) fn udp_idle(&self) -> Duration {
        Duration::from_millis(self.udp_idle_millis.load(Relaxed))
    }

    /// The service that stands first for the VIP, for problems.
    pub(crate) fn first_service(&self) -> Option<ServiceId> {
        self.control().services.first().cloned()
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.control().problems.clone()
    }

    /// What a kernel plane should serve at one of its addresses.
    pub(crate) fn service(&self, frontend: Frontend) -> Service {
        let pool = self.pool(frontend.address.ip()).load();
        let backend = |endpoint: &Arc<EndpointState>| Backend {
            address: endpoint.address,
            weight: if endpoint.is_usable() { endpoint.weight() } else { 0 },
        };
        Service {
            frontend,
            backends: pool.endpoints().iter().map(backend).collect(),
            affinity: pool.affinity(),
        }
    }

    /// Its addresses, and those that it had a moment ago.
    pub(crate) fn frontends(&self) -> Vec<Frontend> {
        let control = self.control();
        let moved = control.moved.iter().map(|(ip, _)| ip);
        control.addresses.iter().chain(moved).map(|ip| self.frontend(*ip)).collect()
    }

    /// Of a VIP that is gone: see [`Leaving::follow`]. Tells whether any endpoint changed.
    pub(crate) fn give_way(&self, occupied: &Occupied<'_>) -> bool {
        let mut changed = false;
        for slot in [&self.v4, &self.v6] {
            let old = slot.load_full();
            let members: Vec<Member> = old
                .endpoints()
                .iter()
                .filter_map(|endpoint| {
                    let rotation = match occupied.get(&endpoint.address) {
                        Some((instance, rotation)) if **instance == endpoint.instance => *rotation,
                        Some(_) => return None,
                        None => endpoint.rotation(),
                    };
                    let (instance, address) = (endpoint.instance.clone(), endpoint.address);
                    Some(Member { instance, address, rotation, weight: endpoint.weight() })
                })
                .collect();
            let is_same = members.len() == old.endpoints().len()
                && members.iter().all(|member| {
                    let known = old.find(&member.instance, member.address);
                    known.is_some_and(|known| known.rotation() == member.rotation)
                });
            if !is_same {
                let new =
                    Pool::new(old.policy(), members, Some(&old)).with_affinity(old.affinity(), Some(&old));
                slot.store(Arc::new(new));
                changed = true;
            }
        }
        changed
    }

    fn frontend(&self, ip: IpAddr) -> Frontend {
        Frontend { protocol: self.key.protocol, address: SocketAddr::new(ip, self.key.port) }
    }

    /// Takes the endpoints and labels that the snapshot has for this VIP.
    fn refresh(&self, vip: &Vip, snapshot: &Snapshot, config: &Config, outcome: &mut Outcome) {
        let wishes = Wishes::read(vip, snapshot, config);
        let idle_millis = u64::try_from(wishes.udp_idle.as_millis()).unwrap_or(u64::MAX);
        self.udp_idle_millis.store(idle_millis, Relaxed);
        let members: Vec<Member> = vip
            .services
            .iter()
            .filter_map(|service| Some((service, snapshot.app(&service.app)?)))
            .zip(&wishes.weights)
            .flat_map(|((service, app), weight)| {
                app.instances.iter().flat_map(move |instance| {
                    instance.endpoints_of(service.port_index).map(move |endpoint| Member {
                        instance: instance.id.clone(),
                        address: endpoint.address,
                        rotation: instance.rotation(),
                        weight: *weight,
                    })
                })
            })
            .collect();
        let mut control = self.control();
        for (family, slot) in [(Family::Ipv4, &self.v4), (Family::Ipv6, &self.v6)] {
            let old = slot.load_full();
            let of_family = members.iter().filter(|m| Family::of(m.address.ip()) == family).cloned();
            let new =
                Pool::new(wishes.policy, of_family, Some(&old)).with_affinity(wishes.affinity, Some(&old));
            let gone = old.endpoints().iter().filter(|e| e.rotation() == Rotation::Out);
            control.leaving.extend(gone.cloned());
            slot.store(Arc::new(new));
        }
        control.leaving.retain(|endpoint| endpoint.n_in_flight() > 0);
        control.services.clone_from(&vip.services);
        outcome.n_moved += control.set_addresses(&vip.addresses, config.move_overlap);
        let mut problems = wishes.problems;
        problems.extend(self.told_moves(&control));
        if problems != control.problems {
            control.problems = problems;
            outcome.differs = true;
        }
    }

    /// Forgets old addresses whose time is up.
    fn expire(&self, now: Instant) {
        let mut control = self.control();
        let n_before = control.moved.len();
        control.moved.retain(|(_, until)| *until > now);
        if control.moved.len() < n_before {
            // Problems of labels stay; those of moves are told anew.
            let told: Vec<Problem> = self.told_moves(&control).collect();
            control.problems.retain(|p| !p.at.starts_with(MOVED) || told.contains(p));
        }
    }

    fn told_moves(&self, control: &Control) -> impl Iterator<Item = Problem> {
        control.moved.iter().map(|(old, _)| {
            let family = Family::of(*old);
            let now = control.addresses.iter().find(|ip| Family::of(**ip) == family);
            Problem {
                app: control.services.first().map(|service| service.app.clone()),
                at: format!("{MOVED} {}:{}", self.key.target, self.key.port),
                what: format!(
                    "it was at {old} and is now at {}: another name has the better claim to that address",
                    now.map_or_else(|| "no address".to_owned(), ToString::to_string),
                ),
                hint: "the old address is served for a while yet; programs that keep addresses must look the name up again"
                    .into(),
            }
        }).collect::<Vec<_>>().into_iter()
    }

    pub(crate) fn n_listening(&self, listening: &dyn Fn(Frontend) -> bool) -> usize {
        self.control().addresses.iter().filter(|ip| listening(self.frontend(**ip))).count()
    }

    pub(crate) fn n_in_flight(&self) -> u64 {
        let (v4, v6, control) = (self.v4.load(), self.v6.load(), self.control());
        let all = v4.endpoints().iter().chain(v6.endpoints()).chain(&control.leaving);
        all.map(|endpoint| u64::from(endpoint.n_in_flight())).sum()
    }

    /// Since the VIP is there, whoever served them.
    pub(crate) fn n_connections(&self, kernel: &Told) -> u64 {
        let of_kernel: u64 = match kernel.counted.frontends.is_empty() {
            true => 0,
            false => self.frontends().iter().map(|frontend| kernel.n_connections(frontend)).sum(),
        };
        self.counters.n_connections.value() + of_kernel
    }

    pub(crate) fn view(&self, listening: &dyn Fn(Frontend) -> bool) -> VipView {
        let (v4, v6) = (self.v4.load(), self.v6.load());
        let control = self.control();
        let leaving = control.leaving.iter().filter(|endpoint| endpoint.n_in_flight() > 0);
        let members = v4.endpoints().iter().chain(v6.endpoints());
        let endpoints: Vec<_> = members.chain(leaving).map(|e| e.view()).collect();
        VipView {
            vip: self.key.target.clone(),
            protocol: self.key.protocol,
            port: self.key.port,
            addresses: control.addresses.clone(),
            listening: control.addresses.iter().copied().filter(|ip| listening(self.frontend(*ip))).collect(),
            plane: PlaneKind::Userspace,
            counts: Counts::ALL,
            policy: v4.policy(),
            affinity_seconds: v4.affinity().map(|timeout| timeout.as_secs()),
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

/// How the place of a move begins, to tell its problem from a label's.
const MOVED: &str = "address of VIP";

impl Control {
    /// Returns how many addresses were exchanged for another one.
    fn set_addresses(&mut self, addresses: &[IpAddr], overlap: Duration) -> u64 {
        let moves: Vec<IpAddr> = self
            .addresses
            .iter()
            .copied()
            .filter(|old| !addresses.contains(old))
            .filter(|old| addresses.iter().any(|new| Family::of(*new) == Family::of(*old)))
            .collect();
        self.addresses = addresses.to_vec();
        self.moved.retain(|(old, _)| !addresses.contains(old));
        let until = Instant::now() + overlap;
        self.moved.extend(moves.iter().map(|old| (*old, until)));
        moves.len() as u64
    }
}

/// The VIPs whose endpoints or labels may differ, as long as the table itself does not.
pub(crate) fn touched<'a>(
    vips: &'a Vips,
    old: &Snapshot,
    new: &Snapshot,
) -> impl Iterator<Item = &'a Arc<VipState>> {
    let changed = Delta::between(old, new).changed.into_iter();
    changed
        .flat_map(|app| app.services.iter().flat_map(|s| s.vips.clone()).collect::<Vec<_>>())
        .filter_map(|key| vips.get(&key))
}

/// All VIPs of the newest snapshot. Replaced only when VIPs come, go or move; pools change inside.
pub(crate) type Vips = imbl::OrdMap<VipKey, Arc<VipState>>;

/// What a compilation changed beside pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The VIPs, their addresses or their problems are not what they were.
    pub(crate) differs: bool,
    /// VIPs that were given another address.
    pub(crate) n_moved: u64,
}

/// The VIPs of `new`. `old` is the snapshot that `known` was compiled from; VIPs that no changed app feeds are not
/// looked at unless the allocation itself changed. What goes is `leaving`.
pub(crate) fn compile(
    known: &Arc<Vips>,
    leaving: &mut Leaving,
    old: &Snapshot,
    new: &Snapshot,
    config: &Config,
) -> (Arc<Vips>, Outcome) {
    let delta = Delta::between(old, new);
    let mut outcome = Outcome { differs: leaving.follow(old, new), ..Outcome::default() };
    if delta.vips_changed == VipsChanged::No {
        for key in delta.changed.iter().flat_map(|app| &app.services).flat_map(|service| &service.vips) {
            if let (Some(state), Some(vip)) = (known.get(key), new.vips.get(key)) {
                state.refresh(vip, new, config, &mut outcome);
            }
        }
        return (Arc::clone(known), outcome);
    }
    outcome.differs = true;
    let mut vips = Vips::clone(known);
    let of_services = delta.changed.iter().flat_map(|app| &app.services).flat_map(|service| &service.vips);
    let touched: BTreeSet<&VipKey> = new.vips.changed_since(&old.vips).chain(of_services).collect();
    let mut gone = Vec::new();
    for key in touched {
        let Some(vip) = new.vips.get(key) else {
            gone.extend(vips.remove(key).map(|state| (key.clone(), state)));
            continue;
        };
        let state = match known.get(key).or_else(|| leaving.get(key)) {
            Some(state) => Arc::clone(state),
            None => Arc::new(VipState::new(vip, config)),
        };
        state.refresh(vip, new, config, &mut outcome);
        vips.insert(key.clone(), state);
    }
    leaving.take_in(gone, &vips, config.removal_overlap);
    (Arc::new(vips), outcome)
}

/// Every address, port and protocol that is served.
#[derive(Debug, Default)]
pub(crate) struct Frontends {
    /// Those that VIPs have, then those that they, or VIPs that are gone, had a moment ago and nobody has now.
    pub(crate) served: BTreeMap<Frontend, Arc<VipState>>,
    /// Of those for datagrams that another VIP had a moment ago, that one.
    pub(crate) before: BTreeMap<Frontend, Arc<VipState>>,
    /// When the first address that a VIP had a moment ago must be looked at again.
    pub(crate) look_at: Option<Instant>,
}

impl Frontends {
    /// What a kernel plane should serve. Who had the address before keeps its flows and gets no new ones.
    pub(crate) fn service(&self, frontend: Frontend, owner: &VipState) -> Service {
        let mut service = owner.service(frontend);
        if let Some(before) = self.before.get(&frontend) {
            for Backend { address, .. } in before.service(frontend).backends {
                if service.backends.iter().all(|own| own.address != address) {
                    service.backends.push(Backend { address, weight: 0 });
                }
            }
        }
        service
    }

    /// The services that concern this VIP, at addresses that it has or had.
    pub(crate) fn services_of(&self, vip: &Arc<VipState>) -> Vec<Service> {
        let concerns = |other: Option<&Arc<VipState>>| other.is_some_and(|other| Arc::ptr_eq(other, vip));
        let own = vip.frontends().into_iter().filter_map(|frontend| {
            let owner = self.served.get(&frontend)?;
            let is_concerned = concerns(Some(owner)) || concerns(self.before.get(&frontend));
            is_concerned.then(|| self.service(frontend, owner))
        });
        own.collect()
    }
}

pub(crate) fn frontends(vips: &Vips, leaving: &mut Leaving) -> Frontends {
    let now = Instant::now();
    let (mut served, mut before) = (BTreeMap::new(), BTreeMap::new());
    let mut moved = Vec::new();
    for vip in vips.values() {
        vip.expire(now);
        let control = vip.control();
        served.extend(control.addresses.iter().map(|ip| (vip.frontend(*ip), Arc::clone(vip))));
        moved.extend(control.moved.iter().map(|(ip, until)| (*until, vip.frontend(*ip), vip)));
    }
    for (vip, until) in leaving.until(now) {
        let addresses = vip.control().addresses.clone();
        moved.extend(addresses.into_iter().map(|ip| (until, vip.frontend(ip), vip)));
    }
    let mut look_at = None;
    for (until, frontend, vip) in moved {
        match served.entry(frontend) {
            btree_map::Entry::Vacant(place) => drop(place.insert(Arc::clone(vip))),
            btree_map::Entry::Occupied(_) if frontend.protocol == Protocol::Udp => {
                before.insert(frontend, Arc::clone(vip));
            }
            btree_map::Entry::Occupied(_) => {}
        }
        look_at = Some(look_at.map_or(until, |look_at: Instant| look_at.min(until)));
    }
    Frontends { served, before, look_at }
}

#[cfg(test)]
mod tests;
