//! Ids for requests that come without one: unique, short to make, and no secret.

use std::cell::Cell;

/// 128 bits in hexadecimal digits.
pub(crate) type RequestId = [u8; 32];

/// Of one worker: a random half, and a count.
#[derive(Debug)]
pub(crate) struct RequestIds {
    worker: u64,
    n: Cell<u64>,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let [worker, n] = [(); 2].map(|()| foldhash::fast::RandomState::default()).map(|state| {
            use std::hash::BuildHasher;
            state.hash_one(std::time::Instant::now())
        });
        Self { worker, n: Cell::new(n) }
    }

    pub(crate) fn next(&self) -> RequestId {
        let n = self.n.get().wrapping_add(1);
        self.n.set(n);
        let mut id = [0; 32];
        for (digit, shift) in id.iter_mut().zip((0..128).step_by(4).rev()) {
            let number = u128::from(self.worker) << 64 | u128::from(n);
            *digit = b"0123456789abcdef"[(number >> shift) as usize & 15];
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let (a, b) = (RequestIds::new(), RequestIds::new());
        let mut ids: Vec<RequestId> = (0..100).flat_map(|_| [a.next(), b.next()]).collect();
        assert!(ids.iter().flatten().all(u8::is_ascii_hexdigit));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 200);
    }
}
