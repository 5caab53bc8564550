//! A pool: the endpoints of one service or VIP with their live state, and the pick.
//!
//! A pool is immutable but for the state of its endpoints; a change of members makes a new pool that keeps the state
//! of every endpoint that is in both. It does not connect to anything.

mod affinity;
mod endpoint;

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use event_watcher::catalog::{InstanceId, Rotation};
use foldhash::fast::FixedState;

pub use endpoint::{EndpointState, EndpointView, InFlight};

use crate::policy::{Maglev, Policy, schedule};
use affinity::Affinity;

/// What a pool is made of.
#[derive(Clone, Debug)]
pub struct Member {
    pub instance: InstanceId,
    pub address: SocketAddr,
    pub rotation: Rotation,
    /// Its share of what is new, in relation to the others'. 0: nothing new, as if it were draining.
    pub weight: u16,
}

impl From<(InstanceId, SocketAddr, Rotation)> for Member {
    fn from((instance, address, rotation): (InstanceId, SocketAddr, Rotation)) -> Self {
        Self { instance, address, rotation, weight: 1 }
    }
}

#[derive(Debug)]
pub struct Pool {
    policy: Policy,
    /// In rotation or draining, by address.
    endpoints: Box<[Arc<EndpointState>]>,
    /// Indices of those that get what is new.
    usable: Box<[usize]>,
    shares: Shares,
    affinity: Option<Kept>,
    /// Shared with the pool that this one replaced, so that a change does not start the round anew.
    cursor: Arc<AtomicUsize>,
}

/// Who gets how much, compiled from the weights for the policy. Positions are indices of `usable`.
#[derive(Debug)]
enum Shares {
    Even,
    Turns(Box<[u32]>),
    Hashed(Maglev),
}

#[derive(Debug)]
struct Kept {
    table: Arc<Affinity>,
    /// Positions by endpoint id.
    by_id: Box<[(u32, usize)]>,
}

/// One endpoint that the pool proposes.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Its index in [`Pool::endpoints`].
    pub index: usize,
    pub endpoint: &'a Arc<EndpointState>,
}

impl Pool {
    /// Makes the pool of `members`, leaving out those that are out of rotation. Endpoints of `previous` that are not
    /// members any more are marked out, for those who still hold them.
    pub fn new(
        policy: Policy,
        members: impl IntoIterator<Item = impl Into<Member>>,
        previous: Option<&Self>,
    ) -> Self {
        let mut endpoints: Vec<Arc<EndpointState>> = members
            .into_iter()
            .map(Into::into)
            .filter(|member| member.rotation != Rotation::Out)
            .map(|member| {
                let known = previous.and_then(|pool| pool.find(&member.instance, member.address));
                let state = match known {
                    Some(known) => Arc::clone(known),
                    None => Arc::new(EndpointState::new(member.instance, member.address)),
                };
                state.set_rotation(member.rotation);
                state.set_weight(member.weight);
                state
            })
            .collect();
        endpoints.sort_by(|a, b| (a.address, &a.instance).cmp(&(b.address, &b.instance)));
        endpoints.dedup_by(|a, b| a.address == b.address && a.instance == b.instance);
        for gone in previous.into_iter().flat_map(|pool| &pool.endpoints) {
            if !endpoints.iter().any(|kept| Arc::ptr_eq(kept, gone)) {
                gone.set_rotation(Rotation::Out);
            }
        }
        let usable: Box<[usize]> =
            endpoints.iter().enumerate().filter(|(_, e)| e.is_usable()).map(|(i, _)| i).collect();
        let of_usable = || usable.iter().map(|index| &endpoints[*index]);
        let shares = match policy {
            Policy::Maglev if usable.len() > 1 => {
                Shares::Hashed(Maglev::new(&of_usable().map(|e| (e.address, e.weight())).collect::<Vec<_>>()))
            }
            Policy::RoundRobin | Policy::Random | Policy::Source | Policy::Maglev => {
                let weights: Vec<u16> = of_usable().map(|e| e.weight()).collect();
                schedule(&weights).map_or(Shares::Even, Shares::Turns)
            }
            // They weigh when they compare.
            Policy::LeastConn | Policy::P2c => Shares::Even,
        };
        let cursor = previous.map_or_else(Arc::default, |pool| Arc::clone(&pool.cursor));
        Self { policy, endpoints: endpoints.into(), usable, shares, affinity: None, cursor }
    }

    pub fn empty(policy: Policy) -> Self {
        Self::new(policy, None::<Member>, None)
    }

    /// Keeps a client's connections together until it has made none for `timeout`. What `previous` knows of its
    /// clients stays known when the time is the same.
    pub fn with_affinity(mut self, timeout: Option<Duration>, previous: Option<&Self>) -> Self {
        self.affinity = timeout.map(|timeout| {
            let known = previous.and_then(|pool| pool.affinity.as_ref()).map(|kept| &kept.table);
            let table = match known.filter(|table| table.timeout() == timeout) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Affinity::new(timeout)),
            };
            let ids = self.usable.iter().enumerate();
            let mut by_id: Box<[(u32, usize)]> =
                ids.map(|(position, index)| (self.endpoints[*index].id, position)).collect();
            by_id.sort_unstable();
            Kept { table, by_id }
        });
        self
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The time-out of session affinity, where clients have it.
    pub fn affinity(&self) -> Option<Duration> {
        self.affinity.as_ref().map(|kept| kept.table.timeout())
    }

    pub fn endpoints(&self) -> &[Arc<EndpointState>] {
        &self.endpoints
    }

    pub fn n_usable(&self) -> usize {
        self.usable.len()
    }

    pub fn find(&self, instance: &InstanceId, address: SocketAddr) -> Option<&Arc<EndpointState>> {
        self.endpoints.iter().find(|e| e.address == address && e.instance == *instance)
    }

    /// [`Self::pick`] for a client: where session affinity keeps it first of all.
    pub fn choose(&self, client: IpAddr) -> Choices<'_> {
        let hash = (self.policy.is_keyed() || self.affinity.is_some()).then(|| client_hash(client));
        let kept = self.affinity.as_ref().zip(hash).and_then(|(kept, hash)| {
            let id = kept.table.find(hash, endpoint::now())?;
            let at = kept.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
            Some(kept.by_id[at].1)
        });
        match kept {
            Some(start) => Choices { pool: self, start, walked: 0, passes_over: None, ejected: Vec::new() },
            None => self.pick(hash),
        }
    }

    /// A client was given this endpoint: with session affinity, it stays there.
    pub fn keep(&self, client: IpAddr, endpoint: &EndpointState) {
        if let Some(kept) = &self.affinity {
            kept.table.keep(client_hash(client), endpoint.id, endpoint::now());
        }
    }

    /// Proposes every usable endpoint once, best first; those that fail to connect come last, because a bad endpoint
    /// is better than none. When more than half of them fail, it is rather the path to them that does, and those that
    /// are left would drown in what the others had: then nobody is passed over. `key` is a hash of whatever should
    /// stay together; only [`Policy::is_keyed`] ones heed it.
    pub fn pick(&self, key: Option<u64>) -> Choices<'_> {
        let n = self.usable.len();
        let start = match (self.policy, key) {
            _ if n < 2 => 0,
            (Policy::Source | Policy::Maglev, Some(hash)) => self.of_share(hash),
            (Policy::Random, _) => self.of_share(rand::random()),
            (Policy::RoundRobin | Policy::Source | Policy::Maglev, _) => {
                self.of_share(self.next_turn() as u64)
            }
            (Policy::LeastConn, _) => self.least_busy(n),
            (Policy::P2c, _) => self.better_of_two(n),
        };
        Choices { pool: self, start, walked: 0, passes_over: None, ejected: Vec::new() }
    }

    fn next_turn(&self) -> usize {
        self.cursor.fetch_add(1, Relaxed)
    }

    fn of_share(&self, number: u64) -> usize {
        match &self.shares {
            Shares::Even => (number % self.usable.len() as u64) as usize,
            Shares::Turns(turns) => turns[(number % turns.len() as u64) as usize] as usize,
            Shares::Hashed(table) => table.position(number),
        }
    }

    /// More than half of those that get what is new are ejected.
    fn is_panicking(&self) -> bool {
        let n_ejected = self.usable.iter().filter(|index| self.endpoints[**index].is_ejected()).count();
        2 * n_ejected > self.usable.len()
    }

    fn least_busy(&self, n: usize) -> usize {
        let first = self.next_turn() % n;
        let passes_over = !self.is_panicking();
        (0..n)
            .map(|step| (first + step) % n)
            .min_by_key(|position| {
                let endpoint = &self.endpoints[self.usable[*position]];
                // In parts of 2¹⁶ of a connection for each unit of weight.
                let load =
                    ((u64::from(endpoint.n_in_flight()) + 1) << 16) / u64::from(endpoint.weight().max(1));
                (passes_over && endpoint.is_ejected(), load)
            })
            .unwrap_or(0)
    }

    fn better_of_two(&self, n: usize) -> usize {
        let first = rand::random_range(0..n);
        let second = (first + rand::random_range(1..n)) % n;
        let now = endpoint::now();
        let cost = |position: usize| {
            let endpoint = &self.endpoints[self.usable[position]];
            match endpoint.is_ejected() && !self.is_panicking() {
                true => f64::INFINITY,
                false => endpoint.cost(now),
            }
        };
        if cost(second) < cost(first) { second } else { first }
    }
}

/// The same on every node that runs the same program.
fn client_hash(client: IpAddr) -> u64 {
    FixedState::default().hash_one(client)
}

/// The walk over the usable endpoints of a pool.
#[derive(Debug)]
pub struct Choices<'a> {
    pool: &'a Pool,
    start: usize,
    walked: usize,
    /// Whether ejected endpoints come last; decided once for the walk, at the first of them.
    passes_over: Option<bool>,
    /// Passed over in the walk because they were ejected then. Allocates only when there are any.
    ejected: Vec<usize>,
}

impl<'a> Iterator for Choices<'a> {
    type Item = Choice<'a>;

    fn next(&mut self) -> Option<Choice<'a>> {
        let pool = self.pool;
        let n = pool.usable.len();
        while self.walked < n {
            let index = pool.usable[(self.start + self.walked) % n];
            self.walked += 1;
            let endpoint = &pool.endpoints[index];
            if endpoint.is_ejected() && *self.passes_over.get_or_insert_with(|| !pool.is_panicking()) {
                self.ejected.push(index);
            } else {
                return Some(Choice { index, endpoint });
            }
        }
        let index = (!self.ejected.is_empty()).then(|| self.ejected.remove(0))?;
        Some(Choice { index, endpoint: &pool.endpoints[index] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, port: u16, rotation: Rotation) -> (InstanceId, SocketAddr, Rotation) {
        (InstanceId::new(name), SocketAddr::from(([127, 0, 0, 1], port)), rotation)
    }

    const ALL: [Policy; 6] =
        [Policy::RoundRobin, Policy::LeastConn, Policy::Random, Policy::Source, Policy::Maglev, Policy::P2c];

    fn weighted(weights: &[u16]) -> Vec<Member> {
        let members = (1..)
            .zip(weights)
            .map(|(port, weight)| Member { weight: *weight, ..member("i", port, Rotation::In).into() });
        members.collect()
    }

    fn client(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    fn ports(pool: &Pool, affinity: Option<u64>) -> Vec<u16> {
        pool.pick(affinity).map(|c| c.endpoint.address.port()).collect()
    }

    #[test]
    fn round_robin_takes_turns_and_failover_is_the_next() {
        let members = [3, 1, 2].map(|p| member("i", p, Rotation::In));
        let pool = Pool::new(Policy::RoundRobin, members, None);
        let walks: Vec<_> = (0..4).map(|_| ports(&pool, None)).collect();
        assert_eq!(walks, [vec![1, 2, 3], vec![2, 3, 1], vec![3, 1, 2], vec![1, 2, 3]]);
    }

    #[test]
    fn draining_and_out_are_never_picked_and_state_survives() {
        let pool = Pool::new(Policy::RoundRobin, [1, 2, 3].map(|p| member("i", p, Rotation::In)), None);
        let held = Arc::clone(&pool.endpoints()[0]);
        let busy = pool.endpoints()[1].begin();
        let next = Pool::new(
            Policy::RoundRobin,
            [member("i", 2, Rotation::Draining), member("i", 3, Rotation::In), member("i", 4, Rotation::Out)],
            Some(&pool),
        );
        assert_eq!(ports(&next, None), [3]);
        assert_eq!(next.endpoints().len(), 2);
        assert_eq!(next.endpoints()[0].n_in_flight(), 1);
        assert_eq!(held.rotation(), Rotation::Out);
        drop(busy);
        assert_eq!(next.endpoints()[0].n_in_flight(), 0);
        let replaced = Pool::new(Policy::RoundRobin, [member("other", 2, Rotation::In)], Some(&next));
        assert!(
            !Arc::ptr_eq(&replaced.endpoints()[0], &next.endpoints()[0]),
            "another instance on the same port"
        );
    }

    #[test]
    fn least_busy_wins_and_equal_ones_take_turns() {
        let pool = Pool::new(Policy::LeastConn, [1, 2, 3].map(|p| member("i", p, Rotation::In)), None);
        let _first = pool.endpoints()[0].begin();
        let firsts: std::collections::BTreeSet<u16> = (0..4).map(|_| ports(&pool, None)[0]).collect();
        assert_eq!(firsts, [2, 3].into());
    }

    #[test]
    fn source_is_stable_and_walks_on() {
        let pool = Pool::new(Policy::Source, [1, 2, 3].map(|p| member("i", p, Rotation::In)), None);
        assert_eq!(ports(&pool, Some(7)), [2, 3, 1]);
        assert_eq!(ports(&pool, Some(7)), [2, 3, 1]);
    }

    #[test]
    fn an_endpoint_that_fails_to_connect_comes_last_until_it_succeeds() {
        let pool = Pool::new(Policy::Source, [1, 2].map(|p| member("i", p, Rotation::In)), None);
        for _ in 0..endpoint::FAILURES_TO_EJECT {
            pool.endpoints()[0].connect_failed();
        }
        assert_eq!(ports(&pool, Some(0)), [2, 1]);
        pool.endpoints()[0].connect_succeeded();
        assert_eq!(ports(&pool, Some(0)), [1, 2]);
    }

    /// A dead task that is still listed is passed over; below half, what is left would drown, so all take turns again.
    #[test]
    fn w37_the_dead_are_passed_over_until_more_than_half_are() {
        for policy in ALL {
            let pool = Pool::new(policy, [1, 2, 3, 4].map(|p| member("i", p, Rotation::In)), None);
            let firsts = || -> std::collections::BTreeSet<u16> {
                (0..400).map(|n| ports(&pool, Some(client_hash(client(n))))[0]).collect()
            };
            for (n_dead, expect) in [(1, vec![2, 3, 4]), (2, vec![3, 4]), (3, vec![1, 2, 3, 4])] {
                for endpoint in &pool.endpoints()[..n_dead] {
                    // Out for so long that the test need not hurry.
                    endpoint.eject_for(Duration::from_secs(60));
                }
                assert_eq!(firsts(), expect.into_iter().collect(), "{policy}, {n_dead} of 4 are dead");
            }
        }
    }

    /// Many clients meet an instance that does not listen yet; a moment after it does, it is tried again.
    #[test]
    fn failures_while_it_is_ejected_do_not_make_it_longer() {
        let pool = Pool::new(Policy::RoundRobin, [member("i", 1, Rotation::In)], None);
        let endpoint = &pool.endpoints()[0];
        for _ in 0..1000 {
            endpoint.connect_failed();
        }
        let ejected_at = std::time::Instant::now();
        while endpoint.is_ejected() {
            assert!(ejected_at.elapsed() < Duration::from_secs(5));
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_endpoint_ejected_during_the_walk_is_not_proposed_twice() {
        let pool = Pool::new(Policy::Source, [1, 2].map(|p| member("i", p, Rotation::In)), None);
        let mut walk = pool.pick(Some(0));
        for _ in 0..endpoint::FAILURES_TO_EJECT {
            walk.next().inspect(|c| c.endpoint.connect_failed());
        }
        assert!(walk.next().is_none());
    }

    #[test]
    fn an_empty_pool_proposes_nothing() {
        for policy in ALL {
            assert_eq!(Pool::empty(policy).pick(Some(1)).count(), 0);
        }
    }

    #[test]
    fn every_policy_proposes_every_usable_endpoint_once() {
        for policy in ALL {
            let pool = Pool::new(policy, weighted(&[1, 0, 3, 2]), None);
            for n in 0..20 {
                let mut walk: Vec<u16> = pool.choose(client(n)).map(|c| c.endpoint.address.port()).collect();
                walk.sort_unstable();
                assert_eq!(walk, [1, 3, 4], "{policy}");
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        for policy in [Policy::RoundRobin, Policy::Random, Policy::Source, Policy::Maglev] {
            let pool = Pool::new(policy, weighted(&[1, 3, 0]), None);
            let mut counts = [0_u32; 3];
            for n in 0..4000 {
                let first = pool.choose(client(n)).next().unwrap();
                counts[usize::from(first.endpoint.address.port()) - 1] += 1;
            }
            assert_eq!(counts[2], 0);
            assert!((800..1200).contains(&counts[0]), "{policy}: {counts:?}");
        }
        let pool = Pool::new(Policy::LeastConn, weighted(&[1, 3]), None);
        let held: Vec<InFlight> = (0..40).map(|_| pool.pick(None).next().unwrap().endpoint.begin()).collect();
        let first = held.iter().filter(|h| h.endpoint().address.port() == 1).count();
        assert!((9..=11).contains(&first), "{first} of 40");
    }

    #[test]
    fn two_choices_prefer_the_faster_and_the_idler() {
        let pool = Pool::new(Policy::P2c, weighted(&[1, 1]), None);
        let [fast, slow] = [&pool.endpoints()[0], &pool.endpoints()[1]];
        fast.connect_took(Duration::from_millis(1));
        slow.connect_took(Duration::from_millis(50));
        assert!((0..20).all(|_| ports(&pool, None) == [1, 2]));
        let _busy: Vec<InFlight> = (0..99).map(|_| fast.begin()).collect();
        assert!((0..20).all(|_| ports(&pool, None) == [2, 1]));
    }

    #[test]
    fn affinity_outlives_changes_of_the_pool_but_not_of_its_endpoint() {
        let hour = Some(Duration::from_secs(3600));
        let pool = Pool::new(Policy::RoundRobin, weighted(&[1, 1, 1]), None).with_affinity(hour, None);
        let first = |pool: &Pool, n: u32| {
            let endpoint = Arc::clone(pool.choose(client(n)).next().unwrap().endpoint);
            pool.keep(client(n), &endpoint);
            endpoint.address.port()
        };
        let before: Vec<u16> = (0..30).map(|n| first(&pool, n)).collect();
        assert_eq!((0..30).map(|n| first(&pool, n)).collect::<Vec<_>>(), before);
        let used: std::collections::BTreeSet<u16> = before.iter().copied().collect();
        assert_eq!(used.len(), 3, "clients are spread at first");

        let more =
            Pool::new(Policy::RoundRobin, weighted(&[1; 9]), Some(&pool)).with_affinity(hour, Some(&pool));
        assert_eq!((0..30).map(|n| first(&more, n)).collect::<Vec<_>>(), before);
        let less =
            Pool::new(Policy::RoundRobin, weighted(&[0, 1, 1]), Some(&more)).with_affinity(hour, Some(&more));
        for (n, port) in (0..30).zip(before) {
            let now = first(&less, n);
            assert!(now == port || (port == 1 && now != 1), "client {n} went from {port} to {now}");
        }
    }
}
