//! Which plane serves: the one that was asked for, or the best that works here, with the reasons against the others.
//!
//! It opens planes and clears away what another plane's run left; it puts nothing in force.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use event_watcher::catalog::{Protocol, VipPool};
use serde::{Deserialize, Serialize};

use super::ebpf::{Ebpf, EbpfConfig, Limits};
use super::nft::{Left, Nft, NftConfig, Ownership};
use super::{Frontend, KernelPlane, OpenError};
use crate::stats::{Counts, PlaneKind};

/// `--vip-plane`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaneChoice {
    /// The best that works: eBPF, nft, userspace.
    Auto,
    Ebpf,
    Nft,
    #[default]
    Userspace,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no VIP plane; they are auto, ebpf, nft and userspace")]
pub struct UnknownPlane(String);

impl FromStr for PlaneChoice {
    type Err = UnknownPlane;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Ebpf, Self::Nft, Self::Userspace]
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| UnknownPlane(text.to_owned()))
    }
}

impl fmt::Display for PlaneChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Nft => "nft",
            Self::Userspace => "userspace",
        })
    }
}

/// What becomes of the kernel's state when the plane stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// It goes on serving, and the next run adopts it.
    #[default]
    Keep,
    Flush,
}

#[derive(Clone, Debug, Default)]
pub struct ChoiceConfig {
    pub wanted: PlaneChoice,
    /// For eBPF; the root of the cgroup2 hierarchy when absent.
    pub cgroup: Option<PathBuf>,
    pub pools: Vec<VipPool>,
}

/// Why a plane that would have been better is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    pub plane: PlaneKind,
    pub reason: String,
}

#[derive(Debug)]
pub struct Chosen {
    pub wanted: PlaneChoice,
    /// `None`: userspace.
    pub kernel: Option<Box<dyn KernelPlane>>,
    pub why_not: Vec<Rejection>,
    config: ChoiceConfig,
}

impl Chosen {
    /// The userspace plane, without a look at the kernel.
    pub fn userspace() -> Self {
        Self {
            wanted: PlaneChoice::Userspace,
            kernel: None,
            why_not: Vec::new(),
            config: ChoiceConfig::default(),
        }
    }

    pub fn kind(&self) -> PlaneKind {
        self.kernel.as_ref().map_or(PlaneKind::Userspace, |plane| plane.kind())
    }

    pub(super) fn counts(&self, protocol: Protocol) -> Counts {
        self.kernel.as_ref().map_or(Counts::ALL, |plane| plane.counts(protocol))
    }

    /// For taking over from other planes, later.
    pub(crate) fn others(&self) -> Others {
        Others { active: self.kind(), pools: self.config.pools.clone() }
    }
}

/// Opens the plane that was asked for. With [`PlaneChoice::Auto`] this always works: userspace needs nothing.
pub fn choose(config: ChoiceConfig) -> Result<Chosen, OpenError> {
    let mut chosen = Chosen { wanted: config.wanted, kernel: None, why_not: Vec::new(), config };
    let candidates: &[Candidate] = match chosen.wanted {
        PlaneChoice::Userspace => &[],
        PlaneChoice::Ebpf => &[Candidate::Ebpf],
        PlaneChoice::Nft => &[Candidate::Nft],
        PlaneChoice::Auto => &[Candidate::Ebpf, Candidate::Nft],
    };
    for candidate in candidates {
        match candidate.open(&chosen.config) {
            Ok(plane) => {
                chosen.kernel = Some(plane);
                break;
            }
            Err(error) if chosen.wanted == PlaneChoice::Auto => {
                let reason = format!("{error}: {}; {}", error.source, error.hint);
                tracing::info!(
                    plane = candidate.kind().as_str(),
                    reason,
                    "this VIP plane cannot be used here"
                );
                chosen.why_not.push(Rejection { plane: candidate.kind(), reason });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(chosen)
}

/// A plane that may not work here.
#[derive(Clone, Copy, Debug)]
enum Candidate {
    Ebpf,
    Nft,
}

impl Candidate {
    fn kind(self) -> PlaneKind {
        match self {
            Self::Ebpf => PlaneKind::Ebpf,
            Self::Nft => PlaneKind::Nft,
        }
    }

    fn open(self, config: &ChoiceConfig) -> Result<Box<dyn KernelPlane>, OpenError> {
        let ChoiceConfig { cgroup, pools, .. } = config.clone();
        match self {
            Self::Ebpf => Ok(Box::new(Ebpf::open(EbpfConfig { cgroup, pools, limits: Limits::default() })?)),
            Self::Nft => Ok(Box::new(Nft::open(NftConfig { pools, ownership: Ownership::Exclusive })?)),
        }
    }
}

/// What other planes' runs may have left in the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Others {
    active: PlaneKind,
    pools: Vec<VipPool>,
}

impl Others {
    /// Takes the VIPs in `served`, and the pools, away from every other plane whose process has ended. Called when
    /// they are served already, so that no connection falls between the two.
    pub(crate) fn take_over(&self, served: &[Frontend]) -> Result<(), OpenError> {
        let is_ours = |frontend: &Frontend| {
            served.contains(frontend) || self.pools.iter().any(|pool| pool.contains(frontend.address.ip()))
        };
        let active = self.active.as_str();
        let n_removed = Ebpf::remove_left_over(&is_ours).map_err(|source| {
            let hint = "remove the directories below /sys/fs/bpf/waymark by hand";
            OpenError::new("take over from an eBPF plane that has stopped", source, hint)
        })?;
        if n_removed > 0 {
            tracing::info!(n_removed, active, "took over from an eBPF plane");
        }
        if self.active != PlaneKind::Nft && Nft::take_over(&self.pools, Left::Connections)? {
            tracing::info!(active, "took over from the nft plane, which keeps its established connections");
        }
        Ok(())
    }

    /// Removes what [`Self::take_over`] left for the sake of established connections.
    pub(crate) fn flush(&self) -> Result<(), OpenError> {
        if self.active != PlaneKind::Nft {
            Nft::take_over(&self.pools, Left::Nothing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [PlaneChoice::Auto, PlaneChoice::Ebpf, PlaneChoice::Nft, PlaneChoice::Userspace] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("ipvs".parse::<PlaneChoice>().is_err());
    }

    #[test]
    fn auto_says_why_not_and_an_explicit_choice_fails() {
        let config =
            |wanted| ChoiceConfig { wanted, cgroup: Some(PathBuf::from("/nonexistent")), pools: Vec::new() };
        let error = choose(config(PlaneChoice::Ebpf)).expect_err("there is no such group");
        assert!(error.hint.contains("--vip-cgroup"), "{error:?}");
        let chosen = choose(config(PlaneChoice::Userspace)).unwrap();
        assert_eq!((chosen.kind(), chosen.why_not.len()), (PlaneKind::Userspace, 0));
    }
}
