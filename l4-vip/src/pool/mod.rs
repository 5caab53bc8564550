//! A pool: the endpoints of one service or VIP with their live state, and the pick.
//!
//! A pool is immutable but for the state of its endpoints; a change of members makes a new pool that keeps the state
//! of every endpoint that is in both. It does not connect to anything.

mod endpoint;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use event_watcher::catalog::{InstanceId, Rotation};

pub use endpoint::{EndpointState, EndpointView, InFlight};

use crate::policy::Policy;

#[derive(Debug)]
pub struct Pool {
    policy: Policy,
    /// In rotation or draining, by address.
    endpoints: Box<[Arc<EndpointState>]>,
    /// Indices of those in rotation.
    usable: Box<[usize]>,
    /// Shared with the pool that this one replaced, so that a change does not start the round anew.
    cursor: Arc<AtomicUsize>,
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
        members: impl IntoIterator<Item = (InstanceId, SocketAddr, Rotation)>,
        previous: Option<&Self>,
    ) -> Self {
        let mut endpoints: Vec<Arc<EndpointState>> = members
            .into_iter()
            .filter(|(_, _, rotation)| *rotation != Rotation::Out)
            .map(|(instance, address, rotation)| {
                let known = previous.and_then(|pool| pool.find(&instance, address));
                let state = match known {
                    Some(known) => Arc::clone(known),
                    None => Arc::new(EndpointState::new(instance, address)),
                };
                state.set_rotation(rotation);
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
        let usable = endpoints
            .iter()
            .enumerate()
            .filter(|(_, e)| e.rotation() == Rotation::In)
            .map(|(i, _)| i)
            .collect();
        let cursor = previous.map_or_else(Arc::default, |pool| Arc::clone(&pool.cursor));
        Self { policy, endpoints: endpoints.into(), usable, cursor }
    }

    pub fn policy(&self) -> Policy {
        self.policy
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

    /// Proposes every usable endpoint once, best first; those that fail to connect come last, because a bad endpoint
    /// is better than none. `affinity` is a hash of whatever should stay together; only [`Policy::Source`] heeds it.
    pub fn pick(&self, affinity: Option<u64>) -> Choices<'_> {
        let n = self.usable.len();
        let start = match (self.policy, affinity) {
            _ if n < 2 => 0,
            (Policy::Source, Some(hash)) => (hash % n as u64) as usize,
            (Policy::Random, _) => rand::random_range(0..n),
            (Policy::RoundRobin | Policy::Source, _) => self.next_turn(n),
            (Policy::LeastConn, _) => self.least_busy(n),
        };
        Choices { pool: self, start, walked: 0, ejected: Vec::new() }
    }

    fn next_turn(&self, n: usize) -> usize {
        self.cursor.fetch_add(1, Relaxed) % n
    }

    fn least_busy(&self, n: usize) -> usize {
        let first = self.next_turn(n);
        (0..n)
            .map(|step| (first + step) % n)
            .min_by_key(|position| {
                let endpoint = &self.endpoints[self.usable[*position]];
                (endpoint.is_ejected(), endpoint.n_in_flight())
            })
            .unwrap_or(0)
    }
}

/// The walk over the usable endpoints of a pool.
#[derive(Debug)]
pub struct Choices<'a> {
    pool: &'a Pool,
    start: usize,
    walked: usize,
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
            if endpoint.is_ejected() {
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
        for policy in [Policy::RoundRobin, Policy::LeastConn, Policy::Random, Policy::Source] {
            assert_eq!(Pool::new(policy, [], None).pick(Some(1)).count(), 0);
        }
    }
}
