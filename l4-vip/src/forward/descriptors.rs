//! Keeps the last file descriptors of the process for those who must go on when clients have taken all others: the
//! stats page, the watcher, other planes.
//!
//! Linux gives out the lowest free number, so a number near the limit means that hardly any is left. Nothing is
//! counted, and nothing is held.

use std::os::fd::{AsFd, AsRawFd};

/// Descriptors that forwarding leaves alone, when the limit is not so low that a quarter of it is less.
const RESERVE: u64 = 64;

/// The first number that forwarding does not take.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling(u64);

impl Ceiling {
    /// By the process's limit as it is now.
    pub fn of_process() -> Self {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call gets a pointer to a valid rlimit that outlives it.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
            return Self(u64::MAX);
        }
        Self::under(limit.rlim_cur)
    }

    fn under(limit: u64) -> Self {
        Self(limit - RESERVE.min(limit / 4))
    }

    /// Whether this one is beyond what forwarding may take.
    pub fn is_reached_by(self, fd: &impl AsFd) -> bool {
        u64::try_from(fd.as_fd().as_raw_fd()).is_ok_and(|number| number >= self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_limit_is_left() {
        assert_eq!(Ceiling::under(1024).0, 960);
        assert_eq!(Ceiling::under(64).0, 48);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Ceiling::under(2).is_reached_by(&file));
        assert!(!Ceiling::under(u64::MAX).is_reached_by(&file));
    }
}
