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
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&eight_digits((number >> 32) as u32));
    digits[8..].copy_from_slice(&eight_digits(number as u32));
    digits
}

/// All at once: every request has an id.
fn eight_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = u64::MAX / 255;
    let mut nibbles = u64::from(number);
    nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
    nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
    nibbles = (nibbles | nibbles << 4) & (ONES * 0x0f);
    // What is 10 or more reaches 16 with 6 more.
    let letters = ((nibbles + ONES * 6) >> 4) & ONES;
    (nibbles + ONES * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
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
        assert_eq!(&digits(0x0123_4567_89ab_cdef), b"0123456789abcdef");
        assert_eq!(&digits(0xf09a_0000_ffff_9a0f), b"f09a0000ffff9a0f");
    }
}
