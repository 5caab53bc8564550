//! What checks a fuzz target without a fuzzer: its body on seeds and on thousands of mutations of them, the same in every
//! run. `FUZZ_ROUNDS` makes it longer.

/// `telling` are bytes that mean something to the body: they are put in more often than others.
pub fn check<S: AsRef<[u8]>>(seeds: &[S], telling: &[&[u8]], n_rounds: usize, body: fn(&[u8])) {
    let n_rounds =
        std::env::var("FUZZ_ROUNDS").map_or(n_rounds, |n| n.parse().expect("FUZZ_ROUNDS is a number"));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for seed in seeds {
        body(seed.as_ref());
    }
    for _ in 0..n_rounds {
        let seed = seeds[random.below(seeds.len())].as_ref();
        let input = random.mutate(seed, telling);
        let ran = std::panic::catch_unwind(|| body(&input));
        assert!(ran.is_ok(), "the input was {}", input.escape_ascii());
    }
}

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// A few bytes changed, taken out, doubled, cut off or put in.
    fn mutate(&mut self, seed: &[u8], telling: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let word = telling[self.below(telling.len())];
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 if at < bytes.len() => bytes[at] = word[0],
                3 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                4 => bytes.truncate(at),
                _ => drop(bytes.splice(at..at, word.iter().copied())),
            }
        }
        bytes
    }
}
