//! Ids for requests that come without one: unique, short to make, and no secret.

use std::cell::Cell;

/// 128 bits in hexadecimal digits.
pub(crate) type RequestId = [u8; 32];

/// Of one worker: a random half, and a count that begins anywhere.
#[derive(Debug)]
pub(crate) struct RequestIds {
    worker: [u8; 16],
    n: Cell<u64>,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        Self { worker: digits(rand::random()), n: Cell::new(rand::random()) }
    }

    pub(crate) fn next(&self) -> RequestId {
        let n = self.n.get().wrapping_add(1);
        self.n.set(n);
        let mut id = [0; 32];
        id[..16].copy_from_slice(&self.worker);
        id[16..].copy_from_slice(&digits(n));
        id
    }
}

fn digits(number: u64) -> [u8; 16] {
    std::array::from_fn(|i| b"0123456789abcdef"[(number >> (60 - 4 * i)) as usize & 15])
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
