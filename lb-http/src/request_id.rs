//! Ids for requests that come without one: unique, short to make, and no secret.

use std::cell::Cell;

/// 128 bits in hexadecimal digits.
pub(crate) type RequestId = [u8; 32];

/// Of one worker: a random half, and a count that begins anywhere.
#[derive(Debug)]
pub(crate) struct RequestIds {
    last: Cell<RequestId>,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let random = rand::random::<u128>();
        let last = std::array::from_fn(|i| b"0123456789abcdef"[(random >> (124 - 4 * i)) as usize & 15]);
        Self { last: Cell::new(last) }
    }

    pub(crate) fn next(&self) -> RequestId {
        let mut id = self.last.get();
        // Counted in its digits: to write a number down for each request would take ten times as long.
        for digit in id[16..].iter_mut().rev() {
            *digit = match *digit {
                b'9' => b'a',
                b'f' => b'0',
                other => other + 1,
            };
            if *digit != b'0' {
                break;
            }
        }
        self.last.set(id);
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
        let nearly = RequestIds { last: Cell::new(*b"000000000000000000000000000009ff") };
        assert_eq!(&nearly.next(), b"00000000000000000000000000000a00");
    }
}
