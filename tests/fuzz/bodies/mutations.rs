//! What checks a fuzz target without a fuzzer: its body on seeds and on thousands of mutations of them, the same in
//! every run. `FUZZ_ROUNDS` makes it longer.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEED: u64 = 1;

/// `telling` are bytes that mean something to the body: they are put in more often than others.
pub fn check<S: AsRef<[u8]>>(seeds: &[S], telling: &[&[u8]], n_rounds: usize, body: fn(&[u8])) {
    let n_rounds =
        std::env::var("FUZZ_ROUNDS").map_or(n_rounds, |n| n.parse().expect("FUZZ_ROUNDS is a number"));
    let mut random = StdRng::seed_from_u64(SEED);
    for seed in seeds {
        body(seed.as_ref());
    }
    for _ in 0..n_rounds {
        let seed = seeds[random.random_range(0..seeds.len())].as_ref();
        let input = mutate(&mut random, seed, telling);
        let ran = std::panic::catch_unwind(|| body(&input));
        assert!(ran.is_ok(), "the input was {}", input.escape_ascii());
    }
}

/// A few bytes changed, taken out, doubled, cut off or put in.
fn mutate(random: &mut StdRng, seed: &[u8], telling: &[&[u8]]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.random_range(0..3) {
        let at = random.random_range(0..bytes.len() + 1);
        let word = telling[random.random_range(0..telling.len())];
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 if at < bytes.len() => bytes[at] = word[0],
            3 => {
                let end = (at + random.random_range(0..40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, word.iter().copied())),
        }
    }
    bytes
}
