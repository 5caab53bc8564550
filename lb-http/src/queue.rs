//! Requests, or in mode tcp connections, that wait for room at the endpoints of one service: first come, first served,
//! over all workers.
//!
//! Only services with a maximum per endpoint come here, and the lock is only taken while somebody waits. How long one
//! may wait, and what is said when there is no room to wait, is decided by `failover` and `tcp`.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use l4_vip::pool::{EndpointState, InFlight, Pool};
use tokio::sync::oneshot;

use crate::stats::{Series, Waiting};

/// No endpoint has as many requests in flight.
const NO_MAXIMUM: u32 = u32::MAX;

#[derive(Debug)]
pub struct Queue {
    most_in_flight: AtomicU32,
    /// As many as are in the list, for whoever ends a request.
    n_waiting: AtomicU32,
    waiting: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next_id: u64,
    waiters: VecDeque<Waiter>,
    /// Of the newest table.
    endpoints: Vec<Arc<EndpointState>>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    /// `None`: any endpoint will do.
    wanted: Option<Arc<EndpointState>>,
    grant: oneshot::Sender<Place>,
}

impl Waiter {
    fn takes(&self, endpoint: &Arc<EndpointState>) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| Arc::ptr_eq(wanted, endpoint))
    }

    fn wants_no_other_than(&self, endpoint: &Arc<EndpointState>) -> bool {
        self.wanted.is_some() && self.takes(endpoint)
    }
}

/// A request's or connection's place among those in flight at an endpoint. Its end lets in the next that waits.
#[derive(Debug)]
pub(crate) struct Place {
    // Dropped in this order: there is room when the next one looks.
    in_flight: InFlight,
    _next: Option<Next>,
}

#[derive(Debug)]
struct Next {
    queue: Arc<Queue>,
    endpoint: Arc<EndpointState>,
}

impl Drop for Next {
    fn drop(&mut self) {
        self.queue.has_room(&self.endpoint);
    }
}

impl Place {
    /// At an endpoint without a maximum.
    pub(crate) fn begin(endpoint: &Arc<EndpointState>) -> Self {
        Self { in_flight: endpoint.begin(), _next: None }
    }

    pub(crate) fn endpoint(&self) -> &Arc<EndpointState> {
        self.in_flight.endpoint()
    }
}

impl l4_vip::forward::tcp::Place for Place {
    fn endpoint(&self) -> &Arc<EndpointState> {
        self.endpoint()
    }
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A request's turn; dropped, it waits no more.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Arc<Queue>,
    id: u64,
    grant: oneshot::Receiver<Place>,
    _counted: Waiting,
}

impl Turn {
    /// `None`: there is nothing to wait for any more; the newest table may know where to go.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Place>> {
        Pin::new(&mut self.grant).poll(cx).map(Result::ok)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut list = self.queue.list();
        if let Some(at) = list.waiters.iter().position(|w| w.id == self.id) {
            list.waiters.remove(at);
            self.queue.n_waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            most_in_flight: AtomicU32::new(NO_MAXIMUM),
            n_waiting: AtomicU32::new(0),
            waiting: Mutex::default(),
        }
    }
}

impl Queue {
    /// What labels ask for now.
    pub(crate) fn set_maximum(&self, per_endpoint: Option<NonZeroU32>) {
        self.most_in_flight.store(per_endpoint.map_or(NO_MAXIMUM, NonZeroU32::get), Relaxed);
    }

    pub(crate) fn n_waiting(&self) -> u32 {
        self.n_waiting.load(Relaxed)
    }

    /// Room at an endpoint that nobody waits for; `None`: the request has to wait, or to go elsewhere.
    pub(crate) fn enter(self: &Arc<Self>, endpoint: &Arc<EndpointState>) -> Option<Place> {
        if self.n_waiting() > 0 && self.list().waiters.iter().any(|w| w.takes(endpoint)) {
            return None;
        }
        self.place(endpoint)
    }

    /// Waits for `wanted`, or for any endpoint; at most `most` may.
    pub(crate) fn wait(
        self: &Arc<Self>,
        pool: &Pool,
        wanted: Option<&Arc<EndpointState>>,
        most: u32,
        counted: &Arc<Series>,
    ) -> Result<Turn, Full> {
        let (sender, grant) = oneshot::channel();
        let mut list = self.list();
        if list.waiters.len() >= most as usize {
            return Err(Full);
        }
        let id = list.next_id;
        list.next_id += 1;
        list.waiters.push_back(Waiter { id, wanted: wanted.map(Arc::clone), grant: sender });
        self.n_waiting.fetch_add(1, Relaxed);
        // Whoever ends a request from now on sees that somebody waits; who ended one before has made the room seen
        // here.
        fence(SeqCst);
        let grants = self.grants(&mut list.waiters, pool.endpoints());
        drop(list);
        tell(grants);
        Ok(Turn { queue: Arc::clone(self), id, grant, _counted: counted.wait() })
    }

    /// The endpoints, or the maximum, are others now. Whoever waited for one that is gone takes any; when there is none
    /// at all, nobody is kept waiting.
    pub(crate) fn follow(self: &Arc<Self>, pool: &Pool) {
        let mut list = self.list();
        list.endpoints = pool.endpoints().to_vec();
        if pool.n_usable() == 0 {
            self.n_waiting.store(0, Relaxed);
            let dismissed = std::mem::take(&mut list.waiters);
            drop(list);
            drop(dismissed);
            return;
        }
        for waiter in &mut list.waiters {
            let is_gone = |e: &Arc<EndpointState>| {
                !e.is_usable() || !pool.endpoints().iter().any(|p| Arc::ptr_eq(p, e))
            };
            if waiter.wanted.as_ref().is_some_and(is_gone) {
                waiter.wanted = None;
            }
        }
        let grants = self.grants(&mut list.waiters, pool.endpoints());
        drop(list);
        tell(grants);
    }

    /// A request at the endpoint has ended.
    fn has_room(self: &Arc<Self>, endpoint: &Arc<EndpointState>) {
        fence(SeqCst);
        if self.n_waiting() == 0 {
            return;
        }
        let mut list = self.list();
        let List { waiters, endpoints, .. } = &mut *list;
        // All of them: one may be worth trying again by now.
        let of_table: &[_] = if endpoints.is_empty() { std::slice::from_ref(endpoint) } else { endpoints };
        let grants = self.grants(waiters, of_table);
        drop(list);
        tell(grants);
    }

    /// Takes from the list whom these endpoints have room for. One that refuses connections always has room, and is
    /// passed over unless all do.
    fn grants(
        self: &Arc<Self>,
        waiters: &mut VecDeque<Waiter>,
        endpoints: &[Arc<EndpointState>],
    ) -> Vec<(oneshot::Sender<Place>, Place)> {
        let usable = || endpoints.iter().filter(|e| e.is_usable());
        let is_last_resort = usable().all(|e| e.is_ejected());
        let mut grants = Vec::new();
        for endpoint in usable() {
            let is_for_any = is_last_resort || !endpoint.is_ejected();
            let fits =
                |w: &Waiter| if is_for_any { w.takes(endpoint) } else { w.wants_no_other_than(endpoint) };
            while let Some(at) = waiters.iter().position(fits)
                && let Some(place) = self.place(endpoint)
                && let Some(waiter) = waiters.remove(at)
            {
                self.n_waiting.fetch_sub(1, Relaxed);
                grants.push((waiter.grant, place));
            }
        }
        grants
    }

    fn place(self: &Arc<Self>, endpoint: &Arc<EndpointState>) -> Option<Place> {
        let in_flight = endpoint.begin_below(self.most_in_flight.load(Relaxed))?;
        let next = Next { queue: Arc::clone(self), endpoint: Arc::clone(endpoint) };
        Some(Place { in_flight, _next: Some(next) })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not under the lock: a place whose request has given up meanwhile comes back at once.
fn tell(grants: Vec<(oneshot::Sender<Place>, Place)>) {
    for (grant, place) in grants {
        drop(grant.send(place));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use event_watcher::catalog::{InstanceId, Rotation};
    use l4_vip::policy::Policy;

    use super::*;

    fn pool(rotations: &[Rotation], previous: Option<&Pool>) -> Pool {
        let members = (1..).zip(rotations).map(|(port, rotation)| {
            (InstanceId::new(&format!("i{port}")), ([127, 0, 0, 1], port).into(), *rotation)
        });
        Pool::new(Policy::RoundRobin, members, previous)
    }

    struct Service {
        queue: Arc<Queue>,
        series: Arc<Series>,
        pool: Pool,
    }

    impl Service {
        fn new(most: u32, n_endpoints: usize) -> Self {
            let queue = Arc::new(Queue::default());
            queue.set_maximum(NonZeroU32::new(most));
            Self { queue, series: Series::new(1), pool: pool(&vec![Rotation::In; n_endpoints], None) }
        }

        fn endpoint(&self, index: usize) -> &Arc<EndpointState> {
            &self.pool.endpoints()[index]
        }

        fn wait(&self, wanted: Option<usize>) -> Turn {
            let wanted = wanted.map(|index| self.endpoint(index));
            self.queue.wait(&self.pool, wanted, 3, &self.series).expect("there is room to wait")
        }
    }

    fn poll(turn: &mut Turn) -> Poll<Option<Place>> {
        turn.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn granted(turn: &mut Turn) -> Place {
        match poll(turn) {
            Poll::Ready(Some(place)) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_came_first_is_first_and_nobody_overtakes() {
        let service = Service::new(1, 1);
        let held = service.queue.enter(service.endpoint(0)).unwrap();
        assert!(service.queue.enter(service.endpoint(0)).is_none(), "the maximum");
        let (mut first, mut second) = (service.wait(None), service.wait(None));
        assert_eq!(service.series.n_waiting(), 2);
        drop(held);
        assert!(service.queue.enter(service.endpoint(0)).is_none(), "it is the first one's");
        assert!(poll(&mut second).is_pending());
        let place = granted(&mut first);
        drop(first);
        assert!(service.queue.enter(service.endpoint(0)).is_none(), "the second waits");
        drop(place);
        drop(granted(&mut second));
        drop(second);
        assert_eq!((service.series.n_waiting(), service.series.most_waiting()), (0, 2));
        assert!(service.queue.enter(service.endpoint(0)).is_some());
        assert_eq!(service.endpoint(0).n_in_flight(), 0);
    }

    #[test]
    fn who_wants_one_endpoint_waits_for_it_and_others_go_by() {
        let service = Service::new(1, 2);
        let (a, b) = (service.queue.enter(service.endpoint(0)), service.queue.enter(service.endpoint(1)));
        let (mut sticky, mut any) = (service.wait(Some(0)), service.wait(None));
        drop(b);
        assert!(poll(&mut sticky).is_pending());
        let place = granted(&mut any);
        assert!(Arc::ptr_eq(place.endpoint(), service.endpoint(1)));
        drop(a);
        assert!(Arc::ptr_eq(granted(&mut sticky).endpoint(), service.endpoint(0)));
    }

    #[test]
    fn so_many_wait_and_no_more_and_who_leaves_makes_room() {
        let service = Service::new(1, 1);
        let held = service.queue.enter(service.endpoint(0)).unwrap();
        let mut turns: Vec<Turn> = (0..3).map(|_| service.wait(None)).collect();
        assert_eq!(service.queue.wait(&service.pool, None, 3, &service.series).err(), Some(Full));
        drop(turns.remove(0));
        turns.push(service.wait(None));
        drop(held);
        // Granted, but never looked at: the place goes to the next one.
        drop(turns.remove(0));
        drop(granted(&mut turns[0]));
        drop(turns);
        assert_eq!(service.endpoint(0).n_in_flight(), 0);
    }

    #[test]
    fn a_change_of_endpoints_or_maximum_is_heard_of() {
        let mut service = Service::new(1, 1);
        let _held = service.queue.enter(service.endpoint(0)).unwrap();
        let mut sticky = service.wait(Some(0));
        service.pool = pool(&[Rotation::Draining, Rotation::In], Some(&service.pool));
        service.queue.follow(&service.pool);
        let place = granted(&mut sticky);
        assert!(Arc::ptr_eq(place.endpoint(), service.endpoint(1)), "the new one, as its own drains");

        let mut any = service.wait(None);
        assert!(poll(&mut any).is_pending());
        service.queue.set_maximum(NonZeroU32::new(2));
        service.queue.follow(&service.pool);
        drop(granted(&mut any));

        service.queue.set_maximum(NonZeroU32::new(1));
        let mut last = service.wait(None);
        service.queue.follow(&pool(&[Rotation::Out, Rotation::Out], Some(&service.pool)));
        assert!(matches!(poll(&mut last), Poll::Ready(None)), "nobody is left to wait for");
        assert_eq!(service.queue.n_waiting(), 0);
    }

    /// Each place is given to one, and none is lost: what a race between an end and a beginning would break.
    #[test]
    fn many_threads_share_few_places() {
        let service = Service::new(2, 2);
        let most_seen = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    for n in 0..2000 {
                        let endpoint = service.endpoint(n % 2);
                        let place = service.queue.enter(endpoint).unwrap_or_else(|| {
                            let wanted = (n % 3 == 0).then_some(endpoint);
                            let series = &service.series;
                            let mut turn = service.queue.wait(&service.pool, wanted, 9, series).unwrap();
                            let wait = std::future::poll_fn(|cx| turn.poll(cx));
                            let wait = async {
                                tokio::time::timeout(std::time::Duration::from_secs(10), wait).await
                            };
                            runtime.block_on(wait).expect("a place that was given back is given on").unwrap()
                        });
                        most_seen.fetch_max(place.endpoint().n_in_flight(), Relaxed);
                    }
                });
            }
        });
        assert!(most_seen.load(Relaxed) <= 2);
        assert_eq!((service.queue.n_waiting(), service.endpoint(0).n_in_flight()), (0, 0));
        assert_eq!(service.endpoint(1).n_in_flight(), 0);
    }
}
