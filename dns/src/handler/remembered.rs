//! Replies that a worker gave lately, by the bytes of their queries: most names are asked for again before anything
//! changes.
//!
//! It decides nothing. Who puts a reply in vouches that it follows from the query, the zone and the recursion that is
//! offered alone: not from the client, the time or a rotation.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::RecordType;

use super::Recursion;
use crate::stats::Source;
use crate::zone::Zone;

/// Of a query behind its id, which differs each time.
const MAX_QUERY_BYTES: usize = 72;
/// Of a reply behind its id.
const MAX_REPLY_BYTES: usize = 104;
const ID: usize = 2;
/// A socket that is never asked has no places at all.
const FIRST_PLACES: usize = 256;
/// 3 MiB.
const MAX_PLACES: usize = 16_384;

#[derive(Debug)]
pub(super) struct Remembered {
    hasher: FixedState,
    /// A query has one place, and the newest query has it. As many as a power of two, or none.
    places: Box<[Place]>,
    /// Replies that gave way to another query's since the places became more.
    n_displaced: usize,
    /// What the replies follow from. Held, so that no other zone can come to lie at its address.
    zone: Option<Arc<Zone>>,
    recursion: Recursion,
    /// Of the zone and the recursion. A place of another turn is empty.
    turn: u32,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    turn: u32,
    given: Given,
    n_query_bytes: u8,
    n_reply_bytes: u8,
    query: [u8; MAX_QUERY_BYTES],
    reply: [u8; MAX_REPLY_BYTES],
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
    turn: 0,
    given: Given {
        record_type: RecordType::ZERO,
        code: ResponseCode::NoError,
        zone: 0,
        source: Source::None,
    },
    n_query_bytes: 0,
    n_reply_bytes: 0,
    query: [0; MAX_QUERY_BYTES],
    reply: [0; MAX_REPLY_BYTES],
};

impl Remembered {
    pub fn new() -> Self {
        Self {
            hasher: FixedState::with_seed(rand::random()),
            places: Box::default(),
            n_displaced: 0,
            zone: None,
            recursion: Recursion::Unavailable,
            turn: 0,
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
            self.forget();
        }
        let (id, query) = packet.split_at_checked(ID)?;
        let place = self.places.get(self.place_of(query)?)?;
        if place.turn != self.turn || &place.query[..usize::from(place.n_query_bytes)] != query {
            return None;
        }
        out.extend_from_slice(id);
        out.extend_from_slice(&place.reply[..usize::from(place.n_reply_bytes)]);
        Some(place.given)
    }

    /// Keeps the reply to a query for the next who asks the same.
    pub fn put(&mut self, packet: &[u8], reply: &[u8], given: Given) {
        let (Some(query), Some(reply)) = (packet.get(ID..), reply.get(ID..)) else { return };
        if query.len() > MAX_QUERY_BYTES || reply.len() > MAX_REPLY_BYTES {
            return;
        }
        if self.places.is_empty() || (self.n_displaced > self.places.len() && self.places.len() < MAX_PLACES)
        {
            let n = (self.places.len() * 4).clamp(FIRST_PLACES, MAX_PLACES);
            self.places = vec![EMPTY; n].into_boxed_slice();
            self.n_displaced = 0;
        }
        let Some(at) = self.place_of(query) else { return };
        let place = &mut self.places[at];
        self.n_displaced += usize::from(place.turn == self.turn);
        place.turn = self.turn;
        place.given = given;
        place.n_query_bytes = query.len() as u8;
        place.n_reply_bytes = reply.len() as u8;
        place.query[..query.len()].copy_from_slice(query);
        place.reply[..reply.len()].copy_from_slice(reply);
    }

    fn place_of(&self, query: &[u8]) -> Option<usize> {
        let last = self.places.len().checked_sub(1)?;
        Some(self.hasher.hash_one(query) as usize & last)
    }

    fn forget(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        if self.turn == 0 {
            // Places of four thousand million turns ago would be taken for new ones.
            self.places = Box::default();
            self.turn = 1;
        }
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

    #[test]
    fn the_same_question_gets_the_same_reply_under_its_own_id() {
        let (mut remembered, zone) = (Remembered::new(), zone());
        assert_eq!(recall(&mut remembered, &zone, b"\0\x01query"), None);
        remembered.put(b"\0\x01query", b"\0\x01reply", GIVEN);
        assert_eq!(recall(&mut remembered, &zone, b"\xab\xcdquery").as_deref(), Some(&b"\xab\xcdreply"[..]));
        assert_eq!(recall(&mut remembered, &zone, b"\0\x01Query"), None, "the spelling is a part of it");
        assert_eq!(recall(&mut remembered, &zone, b"\0"), None);
        remembered.put(b"\0\x01long", &[0; MAX_REPLY_BYTES + ID + 1], GIVEN);
        assert_eq!(recall(&mut remembered, &zone, b"\0\x01long"), None);
    }

    #[test]
    fn nothing_outlives_its_zone_or_its_recursion() {
        let (mut remembered, zones) = (Remembered::new(), [zone(), zone()]);
        for zone in [&zones[0], &zones[1], &zones[0]] {
            assert_eq!(recall(&mut remembered, zone, b"\0\x01query"), None);
            assert!(remembered.is_of(zone));
            remembered.put(b"\0\x01query", b"\0\x01reply", GIVEN);
            assert!(recall(&mut remembered, zone, b"\0\x01query").is_some());
        }
        let mut out = Vec::new();
        assert!(remembered.reply(&zones[0], Recursion::Available, b"\0\x01query", &mut out).is_none());
    }

    #[test]
    fn places_become_more_when_they_do_not_do_but_have_a_limit() {
        let (mut remembered, zone) = (Remembered::new(), zone());
        let query = |n: u32| [&b"\0\0"[..], &n.to_be_bytes()].concat();
        for n in (0..2).flat_map(|_| 0..100_000) {
            recall(&mut remembered, &zone, &query(n));
            remembered.put(&query(n), b"\0\0reply", GIVEN);
        }
        assert_eq!(remembered.places.len(), MAX_PLACES);
        assert!(recall(&mut remembered, &zone, &query(99_999)).is_some());
    }
}
