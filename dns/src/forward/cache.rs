//! Answers of upstreams for as long as they may be kept, and the questions that are being asked now, so that each is
//! asked once however many clients wait for it.
//!
//! All workers share it: a name that one has resolved is resolved for all. A shard's lock is held for a look-up, never
//! while anything is waited for; the server's own names do not come here.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::watch;
use tokio::time::Instant;

use super::question::{Key, Spelled};
use super::stored::{Age, Stored};

const N_SHARDS: usize = 16;
/// What an entry costs beside the answer itself, roughly.
const ENTRY_BYTES: usize = 256;
/// An answer that is asked for again in the last tenth of its life is renewed before it ends.
const PREFETCH_FRACTION: u32 = 10;
/// Not worth renewing early: it would be asked for all the time.
const MIN_PREFETCH_LIFETIME: Duration = Duration::from_secs(10);
/// What clients are told of an answer that is out of date (RFC 8767 section 4).
pub(super) const STALE_TTL: u32 = 30;

/// What became of a question; `None` while nobody knows.
pub(crate) type Resolution = Option<Result<Arc<Stored>, Unresolved>>;

/// No upstream answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unresolved;

/// A question that is being asked.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub spelled: Arc<Spelled>,
    pub resolution: watch::Receiver<Resolution>,
}

impl Flight {
    /// Whoever asks may have ended without a word; the question is then anybody's.
    fn is_on_its_way(&self) -> bool {
        self.resolution.has_changed().is_ok()
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: FixedState,
    max_bytes_per_shard: usize,
    /// How long an answer that is out of date is kept, for when nobody answers any more.
    stale: Duration,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Key, Entry, FixedState>,
    /// Who is looked at next when room is needed, first in, first out.
    order: VecDeque<Key>,
    n_bytes: usize,
    flights: HashMap<Key, Flight, FixedState>,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    came: Instant,
    /// Asked for since it was last looked at for room.
    used: bool,
}

/// What is known about a question now.
#[derive(Debug)]
pub(crate) struct Known {
    pub answer: Option<Answer>,
    pub flight: Option<Flight>,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub stored: Arc<Stored>,
    pub age: Age,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    /// Fresh, and to be renewed.
    Ending,
    Stale,
}

impl Cache {
    pub fn new(max_bytes: usize, stale: Duration) -> Self {
        Self {
            shards: (0..N_SHARDS).map(|_| Mutex::default()).collect(),
            hasher: FixedState::with_seed(rand::random()),
            max_bytes_per_shard: max_bytes / N_SHARDS,
            stale,
        }
    }

    pub fn look_up(&self, key: &Key) -> Known {
        let mut shard = self.shard(key);
        let flight = shard.flights.get(key).filter(|flight| flight.is_on_its_way()).cloned();
        let Some(entry) = shard.entries.get_mut(key) else { return Known { answer: None, flight } };
        let age = entry.came.elapsed();
        let lifetime = entry.stored.lifetime;
        let state = if age > lifetime + self.stale {
            return Known { answer: None, flight };
        } else if age >= lifetime {
            State::Stale
        } else if entry.used
            && lifetime >= MIN_PREFETCH_LIFETIME
            && lifetime - age < lifetime / PREFETCH_FRACTION
        {
            State::Ending
        } else {
            State::Fresh
        };
        entry.used = true;
        let age = match state {
            State::Stale => Age::Stale(STALE_TTL),
            _ => Age::Seconds(age.as_secs() as u32),
        };
        Known { answer: Some(Answer { stored: Arc::clone(&entry.stored), age, state }), flight }
    }

    /// Announces that a question is being asked. `Err`: somebody else has announced it already.
    pub fn take_off(&self, spelled: Arc<Spelled>) -> Result<(Flight, Pilot), Flight> {
        let key = spelled.key.clone();
        let mut shard = self.shard(&key);
        if let Some(flight) = shard.flights.get(&key).filter(|flight| flight.is_on_its_way()) {
            return Err(flight.clone());
        }
        let (announce, resolution) = watch::channel(None);
        let flight = Flight { spelled, resolution };
        shard.flights.insert(key.clone(), flight.clone());
        Ok((flight, Pilot { key, announce }))
    }

    /// Ends a flight: keeps what may be kept and tells everybody who waits.
    pub fn land(&self, pilot: Pilot, resolved: Result<Arc<Stored>, Unresolved>) {
        let mut shard = self.shard(&pilot.key);
        shard.flights.remove(&pilot.key);
        if let Ok(stored) = &resolved
            && !stored.lifetime.is_zero()
        {
            shard.insert(pilot.key.clone(), Arc::clone(stored), self.max_bytes_per_shard);
        }
        drop(shard);
        // Nobody may be waiting any more.
        let _ = pilot.announce.send(Some(resolved));
    }

    /// Entries, and the bytes that they take.
    pub fn size(&self) -> (usize, usize) {
        let shards = self.shards.iter().map(|shard| lock(shard));
        shards.fold((0, 0), |(n, bytes), shard| (n + shard.entries.len(), bytes + shard.n_bytes))
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(self.hasher.hash_one(key) >> 40) as usize % N_SHARDS])
    }
}

/// Whoever asks the question that was announced. Without it being landed, those who wait learn that nobody will.
#[derive(Debug)]
pub(crate) struct Pilot {
    key: Key,
    announce: watch::Sender<Resolution>,
}

impl Shard {
    fn insert(&mut self, key: Key, stored: Arc<Stored>, max_bytes: usize) {
        let n_bytes = ENTRY_BYTES + stored.n_bytes();
        let entry = Entry { stored, came: Instant::now(), used: false };
        match self.entries.insert(key.clone(), entry) {
            Some(old) => self.n_bytes -= ENTRY_BYTES + old.stored.n_bytes(),
            None => self.order.push_back(key),
        }
        self.n_bytes += n_bytes;
        // Each pass takes a mark or an entry away, so this ends.
        while self.n_bytes > max_bytes {
            let Some(key) = self.order.pop_front() else { return };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.order.push_back(key);
                }
                _ => {
                    if let Some(old) = self.entries.remove(&key) {
                        self.n_bytes -= ENTRY_BYTES + old.stored.n_bytes();
                    }
                }
            }
        }
    }
}

/// Nothing that panics happens while a shard is locked; even so it would stay whole.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
