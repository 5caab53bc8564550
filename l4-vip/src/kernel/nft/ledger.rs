//! What connection tracking has counted of flows to backends: bytes, and connects that came to nothing.
//!
//! It counts every packet of a flow anyway, so no rule has to. Flows that live are read from its table by a thread of
//! their own, because that takes longer than a change of VIPs may; of those that end the kernel tells. What is booked
//! here begins anew with the process, with all that flows which live then have counted.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol;
use foldhash::quality::RandomState;

use super::conntrack::{self, Flow, Status, Tuple};
use super::ruleset::NOBODY;
use crate::kernel::{Frontend, KernelCounters, Service};
use crate::netlink::Socket;
use crate::stats::Counts;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

const INTERVAL: Duration = Duration::from_millis(250);
/// Reading the table rests so many times as long as it took, and no longer than `LONGEST_REST`.
const REST: u32 = 50;
const LONGEST_REST: Duration = Duration::from_secs(5);
/// Where it had nothing of VIPs.
const IDLE_REST: Duration = Duration::from_secs(1);
/// Flows booked at a time: whoever changes VIPs waits no longer than for these.
const N_BOOKED: usize = 256;

/// Of the network namespace of the caller.
const ACCOUNTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

#[derive(Debug)]
pub(super) struct Ledger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    has_bytes: bool,
    has_ends: bool,
    /// Accounting was off.
    has_switched: bool,
}

#[derive(Debug, Default)]
struct Shared {
    books: Mutex<Books>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Books {
    accounts: Map<Frontend, Account>,
    /// How often flows ended that the kernel could not tell of.
    n_unheard: u64,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Account {
    backends: Map<SocketAddr, KernelCounters>,
    /// Of all that the frontend has no more.
    departed: KernelCounters,
}

/// Reads.
#[derive(Debug)]
struct Clerk {
    shared: Arc<Shared>,
    /// Of flows that end.
    events: Socket,
    table: Socket,
    journal: Journal,
    has_failed: bool,
}

/// What has been booked of flows that live, by a hash of their addresses.
#[derive(Debug, Default)]
struct Journal {
    flows: Map<u64, Booked>,
    hasher: RandomState,
    n_readings: u32,
}

#[derive(Clone, Copy, Debug)]
struct Booked {
    id: u32,
    reading: u32,
    bytes: [u64; 2],
}

impl Ledger {
    /// The thread and its sockets live in the network namespace of the caller.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let events = Socket::open(libc::NETLINK_NETFILTER)?;
        conntrack::hear_ends(&events)?;
        let table = Socket::open(libc::NETLINK_NETFILTER)?;
        let journal = Journal::default();
        let clerk = Clerk { shared: shared.clone(), events, table, journal, has_failed: false };
        let thread = std::thread::Builder::new().name("vip-ledger".into()).spawn(move || clerk.work())?;
        Ok(Self { shared, thread: Some(thread), has_bytes: false, has_ends: false, has_switched: false })
    }

    /// Has connection tracking count the bytes of flows that begin from now on. To be called when there is a rule that
    /// translates, which loads it.
    pub(super) fn begin_counting(&mut self) {
        let is_on = |file: &str| std::fs::read_to_string(file).is_ok_and(|value| value.trim() != "0");
        let was_on = is_on(ACCOUNTING);
        self.has_switched = !was_on && std::fs::write(ACCOUNTING, "1").is_ok();
        self.has_ends = is_on(EVENTS);
        self.has_bytes = self.has_ends && (was_on || self.has_switched);
        if !self.has_bytes {
            tracing::warn!("bytes of VIPs are not counted: {ACCOUNTING} must be 1 and {EVENTS} not 0");
        }
    }

    /// Leaves the host as it was found.
    pub(super) fn end_counting(&mut self) {
        if std::mem::take(&mut self.has_switched)
            && let Err(error) = std::fs::write(ACCOUNTING, "0")
        {
            tracing::warn!(%error, "cannot write 0 to {ACCOUNTING}");
        }
    }

    pub(super) fn counts(&self, protocol: Protocol) -> Counts {
        Counts { bytes: self.has_bytes, connect_failures: self.has_ends && protocol == Protocol::Tcp }
    }

    /// These frontends have these backends now, or are gone.
    pub(super) fn change<'a>(&self, changes: impl Iterator<Item = (Frontend, Option<&'a Service>)>) {
        let mut books = self.shared.lock();
        for (frontend, service) in changes {
            match service {
                None => drop(books.accounts.remove(&frontend)),
                Some(service) => books.accounts.entry(frontend).or_default().change(service),
            }
        }
    }

    /// These are all there are.
    pub(super) fn change_all(&self, all: &[Service]) {
        let now: HashSet<Frontend> = all.iter().map(|service| service.frontend).collect();
        self.shared.lock().accounts.retain(|frontend, _| now.contains(frontend));
        self.change(all.iter().map(|service| (service.frontend, Some(service))));
    }

    pub(super) fn n_unheard(&self) -> u64 {
        self.shared.lock().n_unheard
    }

    /// Of every frontend, and of every backend that it has.
    pub(super) fn read(
        &self,
    ) -> (Map<Frontend, KernelCounters>, Map<(Frontend, SocketAddr), KernelCounters>) {
        let (mut frontends, mut backends) = (Map::default(), Map::default());
        for (frontend, account) in &self.shared.lock().accounts {
            let mut sum = account.departed;
            for (backend, counters) in &account.backends {
                sum += *counters;
                backends.insert((*frontend, *backend), *counters);
            }
            frontends.insert(*frontend, sum);
        }
        (frontends, backends)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.over.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Account {
    fn change(&mut self, service: &Service) {
        let now: HashSet<SocketAddr> = service.backends.iter().map(|backend| backend.address).collect();
        for (_, counters) in self.backends.extract_if(|backend, _| !now.contains(backend)) {
            self.departed += counters;
        }
        for backend in now {
            self.backends.entry(backend).or_default();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over_within(&self, time: Duration) -> bool {
        let waited = self.over.wait_timeout_while(self.lock(), time, |books| !books.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }
}

impl Account {
    fn of(&mut self, backend: SocketAddr) -> &mut KernelCounters {
        self.backends.get_mut(&backend).unwrap_or(&mut self.departed)
    }
}

impl Clerk {
    fn work(mut self) {
        let mut due = Instant::now();
        while !self.shared.is_over_within(INTERVAL) {
            let began = Instant::now();
            let has_frontends = !self.shared.lock().accounts.is_empty();
            let read = if has_frontends && began >= due { self.read().map(Some) } else { Ok(None) };
            // What ended while the table was read is in both, and the table may have what came in its place.
            let done = self.hear().and_then(|ended| {
                if let Some(living) = read? {
                    let ended: HashSet<Tuple> = ended.iter().map(|flow| flow.original).collect();
                    let n_living = living.len();
                    let living = living.into_iter().filter(|flow| !ended.contains(&flow.original));
                    self.book_living(living);
                    let rest = if n_living == 0 { IDLE_REST } else { began.elapsed() * REST };
                    due = Instant::now() + rest.min(LONGEST_REST);
                }
                Ok(())
            });
            if let Err(error) = &done
                && !self.has_failed
            {
                tracing::warn!(%error, "cannot read what connection tracking has counted of VIPs");
            }
            self.has_failed = done.is_err();
        }
    }

    /// The flows that live.
    fn read(&mut self) -> io::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        conntrack::dump(&mut self.table, Status::TRANSLATED, |flow| {
            // What is dying has been told of.
            if !flow.status.has(Status::DYING) && leads_to_backend(&flow) {
                flows.push(flow);
            }
        })?;
        Ok(flows)
    }

    /// Books and returns the flows that have ended.
    fn hear(&mut self) -> io::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        let has_lost = conntrack::ended(&mut self.events, |flow| {
            if flow.status.has(Status::TRANSLATED) && leads_to_backend(&flow) {
                flows.push(flow);
            }
        })?;
        if has_lost {
            self.shared.lock().n_unheard += 1;
            tracing::warn!("more flows ended at once than the kernel could tell: some bytes are not counted");
        }
        for group in flows.chunks(N_BOOKED) {
            let mut books = self.shared.lock();
            for flow in group {
                self.journal.end(books.accounts.get_mut(&flow.frontend()), flow);
            }
        }
        Ok(flows)
    }

    fn book_living(&mut self, flows: impl Iterator<Item = Flow>) {
        self.journal.n_readings = self.journal.n_readings.wrapping_add(1);
        let mut flows = flows.peekable();
        while flows.peek().is_some() {
            let mut books = self.shared.lock();
            if books.is_over {
                return;
            }
            for flow in flows.by_ref().take(N_BOOKED) {
                self.journal.go_on(books.accounts.get_mut(&flow.frontend()), &flow);
            }
        }
        self.journal.forget_lost();
    }
}

impl Journal {
    fn key(&self, flow: &Flow) -> u64 {
        self.hasher.hash_one(flow.original)
    }

    /// Of a flow that lives. One whose frontend is gone is followed on: it may come back.
    fn go_on(&mut self, account: Option<&mut Account>, flow: &Flow) {
        let Some(bytes) = flow.bytes else { return };
        let now = Booked { id: flow.id, reading: self.n_readings, bytes };
        let key = self.key(flow);
        match account {
            Some(account) => book(account, flow, self.flows.insert(key, now)),
            None => {
                self.flows.entry(key).and_modify(|booked| *booked = now);
            }
        }
    }

    fn end(&mut self, account: Option<&mut Account>, flow: &Flow) {
        let before = self.flows.remove(&self.key(flow));
        let Some(account) = account else { return };
        book(account, flow, before);
        if flow.original.protocol == Protocol::Tcp && !flow.status.has(Status::ASSURED) {
            account.of(flow.backend).n_connect_failures += 1;
        }
    }

    /// Of an end that the kernel could not tell nothing is heard any more; one that it will tell was there at the
    /// reading before.
    fn forget_lost(&mut self) {
        let now = self.n_readings;
        self.flows.retain(|_, booked| now.wrapping_sub(booked.reading) <= 1);
        if self.flows.len() < self.flows.capacity() / 4 {
            self.flows.shrink_to_fit();
        }
    }
}

/// Refused datagrams do not.
fn leads_to_backend(flow: &Flow) -> bool {
    let is_refused =
        flow.backend.ip() == flow.original.destination.ip() && flow.backend.port().to_be_bytes() == NOBODY;
    flow.is_translated() && !is_refused
}

/// What has come since the flow was booked `before`, if that was this one: the kernel may give a number again.
fn book(account: &mut Account, flow: &Flow, before: Option<Booked>) {
    let Some(now) = flow.bytes else { return };
    let is_same = |before: &Booked| {
        before.id == flow.id && before.bytes.iter().zip(now).all(|(before, now)| *before <= now)
    };
    let before = before.filter(is_same).map_or([0; 2], |before| before.bytes);
    let counters = account.of(flow.backend);
    counters.bytes_in += now[0] - before[0];
    counters.bytes_out += now[1] - before[1];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Backend;

    fn flow(id: u32, status: Status, bytes: [u64; 2]) -> Flow {
        let [source, destination, backend] =
            ["10.0.0.9:999", "11.0.0.1:80", "10.0.0.1:31000"].map(|address| address.parse().unwrap());
        let original = Tuple { protocol: Protocol::Tcp, source, destination };
        Flow { original, backend, id, status, bytes: Some(bytes) }
    }

    fn account() -> Account {
        let of = flow(0, Status::ANY, [0; 2]);
        let backends = vec![Backend { address: of.backend, weight: 1 }];
        let mut account = Account::default();
        account.change(&Service { frontend: of.frontend(), backends, affinity: None });
        account
    }

    fn counted(account: &mut Account) -> [u64; 3] {
        let counted = account.of(flow(0, Status::ANY, [0; 2]).backend);
        [counted.bytes_in, counted.bytes_out, counted.n_connect_failures]
    }

    #[test]
    fn bytes_are_booked_once_while_a_flow_lives_and_when_it_ends() {
        let (mut journal, mut account) = (Journal::default(), account());
        journal.go_on(Some(&mut account), &flow(1, Status::ASSURED, [10, 20]));
        journal.go_on(Some(&mut account), &flow(1, Status::ASSURED, [15, 20]));
        journal.end(Some(&mut account), &flow(1, Status::ASSURED, [17, 30]));
        assert_eq!(counted(&mut account), [17, 30, 0]);
        // The next with the same addresses, and even the same number.
        for (id, all) in [(2, [18, 31, 0]), (2, [19, 32, 0])] {
            journal.go_on(Some(&mut account), &flow(id, Status::ASSURED, [1, 1]));
            journal.end(Some(&mut account), &flow(id, Status::ASSURED, [1, 1]));
            assert_eq!(counted(&mut account), all);
        }
        assert!(journal.flows.is_empty());
    }

    #[test]
    fn a_flow_that_took_the_place_of_another_unheard_is_counted_whole() {
        let (mut journal, mut account) = (Journal::default(), account());
        journal.go_on(Some(&mut account), &flow(1, Status::ASSURED, [10, 20]));
        journal.go_on(Some(&mut account), &flow(1, Status::ASSURED, [5, 5]));
        journal.go_on(Some(&mut account), &flow(2, Status::ASSURED, [50, 50]));
        assert_eq!(counted(&mut account), [65, 75, 0]);
    }

    #[test]
    fn who_never_was_established_has_failed() {
        let (mut journal, mut account) = (Journal::default(), account());
        journal.end(Some(&mut account), &flow(1, Status::TRANSLATED, [60, 40]));
        assert_eq!(counted(&mut account), [60, 40, 1]);
    }

    #[test]
    fn a_frontend_that_comes_back_counts_what_came_since() {
        let (mut journal, mut before) = (Journal::default(), account());
        journal.go_on(Some(&mut before), &flow(1, Status::ASSURED, [10, 20]));
        journal.go_on(None, &flow(1, Status::ASSURED, [15, 25]));
        let mut again = account();
        journal.go_on(Some(&mut again), &flow(1, Status::ASSURED, [16, 27]));
        assert_eq!(counted(&mut again), [1, 2, 0]);
    }

    #[test]
    fn what_is_seen_no_more_is_forgotten() {
        let (mut journal, mut account) = (Journal::default(), account());
        journal.go_on(Some(&mut account), &flow(1, Status::ASSURED, [10, 20]));
        for is_there in [true, false] {
            journal.n_readings += 1;
            journal.forget_lost();
            assert_eq!(journal.flows.len(), usize::from(is_there));
        }
    }
}
