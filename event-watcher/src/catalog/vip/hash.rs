//! The two hashes that DC/OS places names with: Erlang's phash2 for IPv4, SHA-1 for IPv6.

use sha1::{Digest, Sha1};

/// SHA-1 as a big-endian number, modulo `modulus`, which is not 0.
pub(super) fn sha1_mod(bytes: &[u8], modulus: u64) -> u64 {
    let modulus = u128::from(modulus);
    Sha1::digest(bytes).iter().fold(0_u128, |rest, byte| (rest * 256 + u128::from(*byte)) % modulus) as u64
}

/// The whole of it, to rank names by.
pub(super) fn sha1(bytes: &[u8]) -> [u8; 20] {
    Sha1::digest(bytes).into()
}

/// Erlang's `erlang:phash2/2` of a binary before the range is applied: Bob Jenkins' lookup2 with Erlang's start values.
pub fn phash2(bytes: &[u8]) -> u32 {
    const GOLDEN: u32 = 0x9e37_79b9;
    /// `13 * GOLDEN`: what phash2 has mixed in before it meets the bytes of a binary.
    const START: u32 = 0x08d1_2e65;
    if bytes.is_empty() {
        return START;
    }
    let (mut a, mut b, mut c) = (GOLDEN, GOLDEN, START);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte));
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        a = a.wrapping_add(word(&chunk[..4]));
        b = b.wrapping_add(word(&chunk[4..8]));
        c = c.wrapping_add(word(&chunk[8..]));
        mix(&mut a, &mut b, &mut c);
    }
    let tail = chunks.remainder();
    let part = |from: usize, to: usize| word(&tail[from.min(tail.len())..to.min(tail.len())]);
    a = a.wrapping_add(part(0, 4));
    b = b.wrapping_add(part(4, 8));
    // The lowest byte of the last word is kept for the length.
    c = c.wrapping_add(bytes.len() as u32).wrapping_add(part(8, 11) << 8);
    mix(&mut a, &mut b, &mut c);
    c
}

fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    macro_rules! step {
        ($x:ident, $y:ident, $z:ident, $shift:tt, $by:literal) => {
            *$x = $x.wrapping_sub(*$y).wrapping_sub(*$z) ^ (*$z $shift $by);
        };
    }
    step!(a, b, c, >>, 13);
    step!(b, c, a, <<, 8);
    step!(c, a, b, >>, 13);
    step!(a, b, c, >>, 12);
    step!(b, c, a, <<, 16);
    step!(c, a, b, >>, 5);
    step!(a, b, c, >>, 3);
    step!(b, c, a, <<, 10);
    step!(c, a, b, >>, 15);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_binary_is_not_mixed() {
        assert_eq!(phash2(b""), 0x08d1_2e65);
    }
}
