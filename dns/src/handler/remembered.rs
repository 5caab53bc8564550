//! Replies that a worker gave lately, by the bytes of their queries: most names are asked for again before anything
//! changes.
//!
//! It decides nothing. Who puts a reply in vouches that it follows from the query, the zone and the recursion that is
//! offered alone: not from the client, the time or a rotation.

use std::hash::BuildHasher as _;
use std::hint::black_box;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use super::Recursion;
use crate::stats::Source;
use crate::wire::HEADER;
use crate::zone::Zone;

/// Of a query behind its id, and of its reply behind the question: an address, an SRV record with the target's address,
/// or an SOA record, and OPT.
const MAX_BYTES: usize = 144;
const ID: usize = 2;
/// Of a message, behind its id.
const HEAD: usize = HEADER - ID;
/// A query may be in any place of its set.
const N_WAYS: usize = 8;
/// A socket that is never asked has no places at all.
const FIRST_SETS: usize = 32;
/// 3 MiB of places.
const MAX_SETS: usize = 2048;
/// Where all places are taken, so many queries pass before one of them takes a place. Were it each one, names that are
/// asked for in turn would all push each other out before they are asked for again.
const STEADINESS: usize = 16;

#[derive(Debug)]
pub(super) struct Remembered {
    hasher: FixedState,
    /// As many as a power of two, or none.
    sets: Box<[Tags]>,
    /// [`N_WAYS`] for each set.
    places: Box<[Place]>,
    /// Queries that found their set full since the places became more.
    n_without_place: usize,
    /// What the replies follow from. Held, so that no other zone can come to lie at its address.
    zone: Option<Arc<Zone>>,
    recursion: Recursion,
}

/// A part of the hash of what each place of a set holds: most places need not be looked at. 0: nothing.
type Tags = [u16; N_WAYS];

/// In the order in which it is read: a usual reply is in its first two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Place {
    given: Given,
    n_query_bytes: u8,
    n_question_bytes: u8,
    n_tail_bytes: u8,
    head: [u8; HEAD],
    /// The query, and behind it the reply's tail.
    bytes: [u8; MAX_BYTES],
}

/// What a reply is counted as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub record_type: RecordType,
    pub code: ResponseCode,
    pub zone: usize,
    pub source: Source,
}

const EMPTY: Place = Place {
    given: Given {
        record_type: RecordType::ZERO,
        code: ResponseCode::NoError,
        zone: 0,
        source: Source::None,
    },
    n_query_bytes: 0,
    n_question_bytes: 0,
    n_tail_bytes: 0,
    head: [0; HEAD],
    bytes: [0; MAX_BYTES],
};

impl Place {
    fn holds(&self, query: &[u8]) -> bool {
        self.bytes[..usize::from(self.n_query_bytes)] == *query
    }

    fn tail(&self) -> &[u8] {
        &self.bytes[usize::from(self.n_query_bytes)..][..usize::from(self.n_tail_bytes)]
    }
}

impl Remembered {
    pub fn new() -> Self {
        Self {
            hasher: FixedState::with_seed(rand::random()),
            sets: Box::default(),
            places: Box::default(),
            n_without_place: 0,
            zone: None,
            recursion: Recursion::Unavailable,
        }
    }

    /// Whether replies that are put in now follow from this zone.
    pub fn is_of(&self, zone: &Arc<Zone>) -> bool {
        self.zone.as_ref().is_some_and(|own| Arc::ptr_eq(own, zone))
    }

    /// Appends the reply to a query that was answered before. Forgets everything when the zone or the recursion is
    /// another than last time.
    pub fn reply(
        &mut self,
        zone: &Arc<Zone>,
        recursion: Recursion,
        packet: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Given> {
        if !self.is_of(zone) || self.recursion != recursion {
            self.zone = Some(Arc::clone(zone));
            self.recursion = recursion;
            self.sets.fill([0; N_WAYS]);
        }
        let (id, query) = packet.split_at_checked(ID)?;
        let place = self.candidates(query).find(|place| place.holds(query))?;
        out.extend_from_slice(id);
        out.extend_from_slice(&place.head);
        out.extend_from_slice(&query[HEAD..HEAD + usize::from(place.n_question_bytes)]);
        out.extend_from_slice(place.tail());
        Some(place.given)
    }

    /// Begins to fetch from memory what [`Self::reply`] will need for a packet: that waits for it, while the fetches
    /// for many packets go on at once.
    pub fn foresee(&self, packet: &[u8]) {
        if let Some(place) = packet.get(ID..).and_then(|query| self.candidates(query).next()) {
            black_box((place.n_query_bytes, place.bytes[MAX_BYTES / 2]));
        }
    }

    /// Places that may hold a query.
    fn candidates(&self, query: &[u8]) -> impl Iterator<Item = &Place> {
        self.set_of(query).into_iter().flat_map(move |(set, tag)| {
            let of_tag = self.sets[set].iter().enumerate().filter(move |(_, known)| **known == tag);
            of_tag.map(move |(way, _)| &self.places[set * N_WAYS + way])
        })
    }

    /// Keeps the reply to a query, whose question it repeats, for the next who asks the same.
    pub fn put(&mut self, packet: &[u8], n_question_bytes: usize, reply: &[u8], given: Given) {
        let (Some(query), Some(head)) = (packet.get(ID..), reply.get(ID..HEADER)) else { return };
        let Some(tail) = reply.get(HEADER + n_question_bytes..) else { return };
        let n_bytes = query.len() + tail.len();
        if n_bytes > MAX_BYTES {
            return;
        }
        if self.sets.is_empty() || (self.n_without_place > self.places.len() && self.sets.len() < MAX_SETS) {
            let n_sets = (self.sets.len() * 4).clamp(FIRST_SETS, MAX_SETS);
            self.sets = vec![[0; N_WAYS]; n_sets].into_boxed_slice();
            self.places = vec![EMPTY; n_sets * N_WAYS].into_boxed_slice();
            self.n_without_place = 0;
        }
        let Some((set, tag)) = self.set_of(query) else { return };
        let Some(way) = self.way_to_fill(set) else { return };
        self.sets[set][way] = tag;
        let place = &mut self.places[set * N_WAYS + way];
        place.given = given;
        place.n_query_bytes = query.len() as u8;
        place.n_question_bytes = n_question_bytes as u8;
        place.n_tail_bytes = tail.len() as u8;
        place.head.copy_from_slice(head);
        place.bytes[..query.len()].copy_from_slice(query);
        place.bytes[query.len()..n_bytes].copy_from_slice(tail);
    }

    /// An empty place of a set, or sometimes one that has to make room.
    fn way_to_fill(&mut self, set: usize) -> Option<usize> {
        if let Some(empty) = self.sets[set].iter().position(|tag| *tag == 0) {
            return Some(empty);
        }
        self.n_without_place = self.n_without_place.wrapping_add(1);
        let turn = self.n_without_place / STEADINESS;
        self.n_without_place.is_multiple_of(STEADINESS).then_some(turn % N_WAYS)
    }

    /// Where a query would be, and its tag.
    fn set_of(&self, query: &[u8]) -> Option<(usize, u16)> {
        let last = self.sets.len().checked_sub(1)?;
        let hash = self.hasher.hash_one(query);
        Some((hash as usize & last, (hash >> 48) as u16 | 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::config::Config;

    const GIVEN: Given =
        Given { record_type: RecordType::A, code: ResponseCode::NoError, zone: 1, source: Source::Zone };

    fn zone() -> Arc<Zone> {
        Arc::new(Zone::new(Authority::new(&Config::default())))
    }

    fn recall(of: &mut Remembered, zone: &Arc<Zone>, packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        of.reply(zone, Recursion::Unavailable, packet, &mut out).map(|_| out)
    }

    /// A message that repeats the question `name`.
    fn message(id: &[u8; 2], name: &[u8], tail: &[u8]) -> Vec<u8> {
        [&id[..], &[7; HEAD], name, tail].concat()
    }

    fn put(into: &mut Remembered, name: &[u8], tail: &[u8]) {
        into.put(&message(b"\0\x01", name, b"opt"), name.len(), &message(b"\0\x01", name, tail), GIVEN);
    }

    fn asked(of: &mut Remembered, zone: &Arc<Zone>, name: &[u8]) -> Option<Vec<u8>> {
        recall(of, zone, &message(b"\xab\xcd", name, b"opt"))
    }

    #[test]
    fn the_same_question_gets_the_same_reply_under_its_own_id() {
        let (mut remembered, zone) = (Remembered::new(), zone());
        assert_eq!(asked(&mut remembered, &zone, b"name"), None);
        put(&mut remembered, b"name", b"answer");
        let expect = message(b"\xab\xcd", b"name", b"answer");
        assert_eq!(asked(&mut remembered, &zone, b"name"), Some(expect));
        assert_eq!(asked(&mut remembered, &zone, b"Name"), None, "the spelling is a part of it");
        assert_eq!(recall(&mut remembered, &zone, b"\0"), None);
        put(&mut remembered, b"long", &[0; MAX_BYTES]);
        assert_eq!(asked(&mut remembered, &zone, b"long"), None);
    }

    #[test]
    fn nothing_outlives_its_zone_or_its_recursion() {
        let (mut remembered, zones) = (Remembered::new(), [zone(), zone()]);
        for zone in [&zones[0], &zones[1], &zones[0]] {
            assert_eq!(asked(&mut remembered, zone, b"name"), None);
            assert!(remembered.is_of(zone));
            put(&mut remembered, b"name", b"answer");
            assert!(asked(&mut remembered, zone, b"name").is_some());
        }
        let (mut out, packet) = (Vec::new(), message(b"\0\x01", b"name", b"opt"));
        assert!(remembered.reply(&zones[0], Recursion::Available, &packet, &mut out).is_none());
    }

    #[test]
    fn names_that_are_asked_for_in_turn_find_places_and_the_places_have_a_limit() {
        let (mut remembered, zone) = (Remembered::new(), zone());
        let mut n_known_of = |names: std::ops::Range<u32>| {
            let mut n_known = 0;
            for _ in 0..3 {
                n_known = 0;
                for n in names.clone() {
                    match asked(&mut remembered, &zone, &n.to_be_bytes()) {
                        Some(_) => n_known += 1,
                        None => put(&mut remembered, &n.to_be_bytes(), b"answer"),
                    }
                }
            }
            (n_known, remembered.places.len())
        };
        let (n_known, _) = n_known_of(0..10_000);
        assert!(n_known > 9_000, "{n_known}");
        let (n_known, n_places) = n_known_of(0..100_000);
        assert_eq!(n_places, MAX_SETS * N_WAYS);
        assert!(n_known > n_places / 2, "{n_known}");
    }
}
