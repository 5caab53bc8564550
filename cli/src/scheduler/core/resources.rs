//! What the one agent has to give, what instances take of it, and why one does not fit.
//!
//! Not here: ports (`scheduler::ports`) and constraints (`constraint`).

use crate::scheduler::app::App;

/// Sums of fractions of a core are compared with this much slack.
const ROUNDING: f64 = 1e-6;

/// Cores, and MiB of memory and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resources {
    pub cpus: f64,
    pub mem: f64,
    pub disk: f64,
}

/// Why an instance did not fit, by Marathon's names, in the order in which offers are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    UnfulfilledRole,
    UnfulfilledConstraint,
    NoCorrespondingReservationFound,
    InsufficientCpus,
    InsufficientMemory,
    InsufficientDisk,
    InsufficientGpus,
    InsufficientPorts,
}

impl Lack {
    pub const ALL: [Lack; 8] = [
        Lack::UnfulfilledRole,
        Lack::UnfulfilledConstraint,
        Lack::NoCorrespondingReservationFound,
        Lack::InsufficientCpus,
        Lack::InsufficientMemory,
        Lack::InsufficientDisk,
        Lack::InsufficientGpus,
        Lack::InsufficientPorts,
    ];
}

impl Resources {
    pub fn of(app: &App) -> Self {
        Self { cpus: app.cpus, mem: app.mem, disk: app.disk }
    }

    /// What there is too little of to take `wanted` besides `used`.
    pub fn lack(&self, used: &Self, wanted: &Self) -> Option<Lack> {
        [
            (self.cpus, used.cpus, wanted.cpus, Lack::InsufficientCpus),
            (self.mem, used.mem, wanted.mem, Lack::InsufficientMemory),
            (self.disk, used.disk, wanted.disk, Lack::InsufficientDisk),
        ]
        .into_iter()
        .find(|(all, used, wanted, _)| used + wanted > all + ROUNDING)
        .map(|(_, _, _, lack)| lack)
    }

    pub fn take(&mut self, wanted: &Self) {
        self.cpus += wanted.cpus;
        self.mem += wanted.mem;
        self.disk += wanted.disk;
    }

    pub fn give_back(&mut self, taken: &Self) {
        self.cpus = (self.cpus - taken.cpus).max(0.0);
        self.mem = (self.mem - taken.mem).max(0.0);
        self.disk = (self.disk - taken.disk).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lack_is_told() {
        let agent = Resources { cpus: 1.0, mem: 100.0, disk: 10.0 };
        let mut used = Resources::default();
        for (cpus, mem, disk, expect) in [
            (1.0, 100.0, 10.0, None),
            (1.1, 200.0, 0.0, Some(Lack::InsufficientCpus)),
            (0.1, 101.0, 11.0, Some(Lack::InsufficientMemory)),
            (0.1, 1.0, 11.0, Some(Lack::InsufficientDisk)),
        ] {
            assert_eq!(agent.lack(&used, &Resources { cpus, mem, disk }), expect);
        }
        let tenth = Resources { cpus: 0.1, mem: 1.0, disk: 0.0 };
        for _ in 0..10 {
            assert_eq!(agent.lack(&used, &tenth), None);
            used.take(&tenth);
        }
        assert_eq!(agent.lack(&used, &tenth), Some(Lack::InsufficientCpus));
        used.give_back(&tenth);
        assert_eq!(agent.lack(&used, &tenth), None);
    }
}
