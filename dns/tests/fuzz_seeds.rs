//! The bodies of the fuzz targets (tests/fuzz) on right packets and on a few thousand mutations of them: the same in every
//! run, so that a target neither rots nor has to be built to be checked. `FUZZ_ROUNDS` makes it longer.

#[path = "../../tests/fuzz/bodies/dns_packet.rs"]
mod dns_packet;
#[path = "../../tests/fuzz/bodies/dns_upstream.rs"]
mod dns_upstream;

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// A few bytes changed, taken out, put in or cut off: those that mean something in a packet more often than others.
    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        const TELLING: [u8; 8] = [0, 1, 0x0c, 0x29, 0x3f, 0x40, 0xc0, 0xff];
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                1 if at < bytes.len() => bytes[at] = TELLING[self.below(TELLING.len())],
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => bytes.insert(at, TELLING[self.below(TELLING.len())]),
            }
        }
        bytes
    }
}

fn check(seeds: &[&[u8]], body: fn(&[u8])) {
    let n_rounds = std::env::var("FUZZ_ROUNDS").map_or(20_000, |n| n.parse().expect("a number"));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for seed in seeds {
        body(seed);
    }
    for _ in 0..n_rounds {
        let seed = seeds[random.below(seeds.len())];
        let input = random.mutate(seed);
        let ran = std::panic::catch_unwind(|| body(&input));
        assert!(ran.is_ok(), "the input was {}", input.escape_ascii());
    }
}

#[test]
fn queries() {
    check(
        &[
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x08marathon\x04mesos\0\0\x01\0\x01",
            // With EDNS: a cookie and NSID.
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x06leader\x05mesos\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\x10\0\x0a\0\x08abcdefgh\0\x03\0\0",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05mesos\0\0\x06\0\x01",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04_web\x04_tcp\x08marathon\x05mesos\0\0\x21\0\x01",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x011\x010\x010\x03127\x07in-addr\x04arpa\0\0\x0c\0\x01",
        ],
        dns_packet::run,
    );
}

#[test]
fn answers_of_upstreams() {
    check(
        &[
            b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07Example\x03com\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01",
            b"\x12\x34\x81\x83\0\x01\0\0\0\0\0\x01\x07Example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0",
        ],
        dns_upstream::run,
    );
}
