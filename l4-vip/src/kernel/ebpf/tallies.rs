//! What the programs counted, summed over CPUs and over backends that are gone.
//!
//! An element appears in the map when something is counted for the first time: what is not there is zero.

use std::collections::HashMap;
use std::io;

use super::super::{Counted, Frontend, KernelCounters};
use super::held::Held;
use super::layout::{self, counters};
use super::sys::Map;

/// Counters of every frontend, and of every backend of it.
pub fn read<'a>(map: &Map, held: impl Iterator<Item = (&'a Frontend, &'a Held)>) -> io::Result<Counted> {
    let mut sums: HashMap<u32, KernelCounters> = HashMap::new();
    map.for_each(|key, value| {
        sums.insert(layout::word(key, 0), sum_of_cpus(value));
    })?;
    let of = |id: u32| sums.get(&id).copied().unwrap_or_default();
    let mut counted = Counted::default();
    for (frontend, held) in held {
        let mut total = of(held.value.id);
        total += of(held.value.id | counters::REMOVED);
        for backend in &held.backends {
            let own = of(backend.id);
            total += own;
            counted.backends.push((*frontend, backend.address, own));
        }
        counted.frontends.push((*frontend, total));
    }
    Ok(counted)
}

/// Adds what was counted for a service's backends that are gone to the sum that the service keeps of them. No program
/// writes that, and nothing is lost of what was counted before the backends went.
pub fn keep(map: &Map, service: u32, gone: impl Iterator<Item = u32>) -> io::Result<()> {
    let of = |id: u32| -> io::Result<KernelCounters> {
        Ok(map.lookup_all_cpus(&id.to_ne_bytes())?.map(|value| sum_of_cpus(&value)).unwrap_or_default())
    };
    let mut removed = KernelCounters::default();
    for id in gone {
        removed += of(id)?;
    }
    if removed.n_connections == 0 {
        return Ok(());
    }
    let sum_id = service | counters::REMOVED;
    removed += of(sum_id)?;
    let KernelCounters { n_connections, n_refused, n_connect_failures, bytes_in, bytes_out } = removed;
    // In the order of the layout.
    let first = [n_connections, n_refused, n_connect_failures, bytes_in, bytes_out];
    map.update_first_cpu(&sum_id.to_ne_bytes(), &first)
}

fn sum_of_cpus(value: &[u8]) -> KernelCounters {
    let mut sum = KernelCounters::default();
    for cpu in value.chunks_exact(counters::BYTES) {
        let of = |counter: i16| layout::double(cpu, counter as usize);
        sum += KernelCounters {
            n_connections: of(counters::N_CONNECTIONS),
            n_refused: of(counters::N_REFUSED),
            n_connect_failures: of(counters::N_FAILED),
            bytes_in: of(counters::BYTES_IN),
            bytes_out: of(counters::BYTES_OUT),
        };
    }
    sum
}
