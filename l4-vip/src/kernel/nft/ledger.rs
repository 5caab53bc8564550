//! What connection tracking has counted of flows to backends: bytes, and connects that came to nothing.
//!
//! It counts every packet of a flow anyway, so no rule has to. Flows that live are read from its table by a thread of
//! their own, because that takes longer than a change of VIPs may; of those that end the kernel tells. What is booked
//! here begins anew with the process, with all that flows which live then have counted.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_watcher::catalog::Protocol;

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
}

#[derive(Debug, Default)]
struct Shared {
    books: Mutex<Books>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Books {
    accounts: Map<Frontend, Account>,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Account {
    backends: Map<SocketAddr, KernelCounters>,
    /// Of all that the frontend has no more.
    departed: KernelCounters,
}

/// Reads and books.
#[derive(Debug)]
struct Clerk {
    shared: Arc<Shared>,
    ends: Socket,
    table: Socket,
    /// What has been booked of flows that live.
    booked: Map<Tuple, Booked>,
    n_readings: u32,
}

#[derive(Clone, Copy, Debug)]
struct Booked {
    id: u32,
    bytes: [u64; 2],
    reading: u32,
}

impl Ledger {
    /// The thread and its sockets live in the network namespace of the caller.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let ends = Socket::open(libc::NETLINK_NETFILTER)?;
        conntrack::hear_ends(&ends)?;
        let table = Socket::open(libc::NETLINK_NETFILTER)?;
        let clerk = Clerk { shared: shared.clone(), ends, table, booked: Map::default(), n_readings: 0 };
        let thread = std::thread::Builder::new().name("vip-ledger".into()).spawn(move || clerk.work())?;
        Ok(Self { shared, thread: Some(thread), has_bytes: false, has_ends: false })
    }

    /// Has connection tracking count the bytes of flows that begin from now on; to be called once it is in use.
    pub(super) fn ask_for_counting(&mut self) {
        let is_on = |file: &str| std::fs::read_to_string(file).is_ok_and(|value| value.trim() != "0");
        self.has_bytes = is_on(ACCOUNTING) || std::fs::write(ACCOUNTING, "1").is_ok();
        self.has_ends = is_on(EVENTS);
        if !self.has_bytes {
            tracing::warn!("bytes of VIPs are not counted: cannot write 1 to {ACCOUNTING}");
        }
    }

    pub(super) fn counts(&self, protocol: Protocol) -> Counts {
        Counts { bytes: self.has_bytes, connect_failures: self.has_ends && protocol == Protocol::Tcp }
    }

    /// These frontends have these backends now, or are gone.
    pub(super) fn follow<'a>(&self, changes: impl Iterator<Item = (Frontend, Option<&'a Service>)>) {
        let mut books = self.shared.lock();
        for (frontend, service) in changes {
            match service {
                None => drop(books.accounts.remove(&frontend)),
                Some(service) => books.accounts.entry(frontend).or_default().follow(service),
            }
        }
    }

    /// These are all there are.
    pub(super) fn follow_all(&self, all: &[Service]) {
        let now: HashSet<Frontend> = all.iter().map(|service| service.frontend).collect();
        self.shared.lock().accounts.retain(|frontend, _| now.contains(frontend));
        self.follow(all.iter().map(|service| (service.frontend, Some(service))));
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
    fn follow(&mut self, service: &Service) {
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

impl Clerk {
    fn work(mut self) {
        let mut due = Instant::now();
        while !self.shared.is_over_within(INTERVAL) {
            let began = Instant::now();
            let mut done = self.hear();
            if began >= due {
                done = done.and_then(|()| self.read());
                due = began + (began.elapsed() * REST).min(LONGEST_REST);
            }
            if let Err(error) = done {
                tracing::warn!(%error, "cannot read what connection tracking has counted of VIPs");
            }
        }
    }

    /// Of flows that have ended.
    fn hear(&mut self) -> io::Result<()> {
        let mut flows = Vec::new();
        let has_lost = conntrack::ended(&mut self.ends, |flow| flows.push(flow))?;
        if has_lost {
            tracing::warn!("more flows ended at once than the kernel could tell: some bytes are not counted");
        }
        self.book_all(&flows, |clerk, account, flow| {
            let before = clerk.booked.remove(&flow.original);
            book(account, flow, before);
            let is_established = flow.status.has(Status::ASSURED);
            if flow.original.protocol == Protocol::Tcp && !is_established {
                account.of(flow.backend).n_connect_failures += 1;
            }
        });
        Ok(())
    }

    /// Of flows that live.
    fn read(&mut self) -> io::Result<()> {
        let mut flows = Vec::new();
        // What is dying has been told of, and may be booked already.
        conntrack::dump(&mut self.table, Status::TRANSLATED, |flow| {
            if !flow.status.has(Status::DYING) {
                flows.push(flow);
            }
        })?;
        self.n_readings = self.n_readings.wrapping_add(1);
        let reading = self.n_readings;
        self.book_all(&flows, |clerk, account, flow| {
            let Some(bytes) = flow.bytes else { return };
            let now = Booked { id: flow.id, bytes, reading };
            book(account, flow, clerk.booked.insert(flow.original, now));
        });
        // Of an end that the kernel could not tell nothing is heard any more; one that it will tell soon was there at
        // the reading before.
        self.booked.retain(|_, booked| reading.wrapping_sub(booked.reading) <= 1);
        Ok(())
    }

    fn book_all(&mut self, flows: &[Flow], mut each: impl FnMut(&mut Self, &mut Account, &Flow)) {
        let shared = self.shared.clone();
        for group in flows.chunks(N_BOOKED) {
            let mut books = shared.lock();
            for flow in group.iter().filter(|flow| flow.is_translated() && !is_refused(flow)) {
                if let Some(account) = books.accounts.get_mut(&flow.frontend()) {
                    each(self, account, flow);
                }
            }
        }
    }
}

impl Account {
    fn of(&mut self, backend: SocketAddr) -> &mut KernelCounters {
        self.backends.get_mut(&backend).unwrap_or(&mut self.departed)
    }
}

fn is_refused(flow: &Flow) -> bool {
    flow.backend.ip() == flow.original.destination.ip() && flow.backend.port().to_be_bytes() == NOBODY
}

/// What has come since the flow was booked `before`.
fn book(account: &mut Account, flow: &Flow, before: Option<Booked>) {
    let before = before.filter(|before| before.id == flow.id).map_or([0; 2], |before| before.bytes);
    let [bytes_in, bytes_out] = flow.bytes.unwrap_or(before);
    let counters = account.of(flow.backend);
    counters.bytes_in += bytes_in.saturating_sub(before[0]);
    counters.bytes_out += bytes_out.saturating_sub(before[1]);
}
