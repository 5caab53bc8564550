//! The eBPF plane: a connection to a VIP is given its backend inside `connect()`, and nothing touches a packet after.
//!
//! Programs sit on the socket calls of a control group's processes and read maps; links and maps are pinned, so they
//! outlive this process and are adopted by the next one. It changes no packet, no route and no firewall rule, and
//! needs no compiler: the programs are assembled here.
//!
//! Reading order: [`layout`] (what the maps hold), [`programs`], [`tables`] (how maps are changed), [`inventory`] (how
//! they are read back), [`links`].

mod asm;
mod btf;
mod held;
mod inventory;
mod layout;
mod links;
mod maps;
mod place;
mod programs;
mod stale;
mod steps;
mod sys;
mod tables;
mod tallies;
mod weights;

use std::io;
use std::path::{Path, PathBuf};

use event_watcher::catalog::{Protocol, VipPool};

use self::links::{Links, Program};
use self::maps::Maps;
use self::place::{Cgroup, Pins};
use self::tables::Tables;
use super::{ApplyError, Change, Counted, Frontend, KernelPlane, OpenError, Service};
use crate::stats::{Counts, PlaneKind};

pub use maps::Limits;

#[derive(Clone, Debug, Default)]
pub struct EbpfConfig {
    /// Whose processes are served; the root of the cgroup2 hierarchy when absent.
    pub cgroup: Option<PathBuf>,
    /// Whatever is addressed to one of these and is no VIP is refused.
    pub pools: Vec<VipPool>,
    pub limits: Limits,
}

#[derive(Debug)]
pub struct Ebpf {
    cgroup: Cgroup,
    pins: Pins,
    tables: Tables,
    programs: Vec<Program>,
    /// `None` until the maps hold what they should.
    links: Option<Links>,
}

impl Ebpf {
    /// Makes maps and programs, or adopts the maps of an earlier run. What an earlier run attached stays in force;
    /// nothing new is in force before the first [`KernelPlane::reconcile`].
    pub fn open(config: EbpfConfig) -> Result<Self, OpenError> {
        let EbpfConfig { cgroup, pools, limits } = config;
        let cgroup = Cgroup::open(cgroup.as_deref())?;
        let pins = Pins::open(&cgroup)?;
        place::for_each_unheld(|directory| {
            // Its control group is gone, so nothing in it is attached any more.
            if links::are_defunct(directory) {
                remove_or_warn(directory);
            }
        });
        let opened = Self::load(&pins.path, &pools, limits);
        let (tables, programs) = opened.inspect_err(|_| {
            // Without an earlier run's programs, the maps that were made are nobody's.
            if links::are_defunct(&pins.path) {
                remove_or_warn(&pins.path);
            }
        })?;
        Ok(Self { cgroup, pins, tables, programs, links: None })
    }

    /// The change is in force whether or not this works.
    fn end_stale(&self, gone: &[tables::Gone]) {
        match stale::end_connected(gone, &self.tables.maps) {
            Ok(0) => {}
            Ok(n_ended) => {
                tracing::debug!(n_ended, "connected UDP sockets were told that their backend is gone")
            }
            Err(error) => {
                tracing::warn!(%error, "connected UDP sockets may still send to a backend that is gone")
            }
        }
    }

    fn load(
        directory: &Path,
        pools: &[VipPool],
        limits: Limits,
    ) -> Result<(Tables, Vec<Program>), OpenError> {
        let failed = |what, source: io::Error| {
            let hint = match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    "it needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
                }
                _ => "it needs Linux 5.18 or newer with CONFIG_CGROUP_BPF",
            };
            OpenError::new(what, source, hint)
        };
        let maps = Maps::open(directory, limits).map_err(|e| failed("make eBPF maps".to_owned(), e))?;
        let mut loaded = Vec::new();
        for hook in programs::HOOKS {
            let code = programs::assemble(hook, &maps, pools);
            let fd =
                sys::load_program(&format!("wm_{}", hook.name), hook.program_type(), &code, hook.attach_type)
                    .map_err(|e| failed(format!("load the eBPF program for {}", hook.name), e))?;
            loaded.push(Program { hook, fd });
        }
        Ok((Tables::new(maps, limits), loaded))
    }

    /// Takes off what runs that have ended left, for any control group, if it serves a VIP that `is_ours`. Returns how
    /// many groups that were.
    pub fn remove_left_over(is_ours: &dyn Fn(&Frontend) -> bool) -> io::Result<usize> {
        let mut outcome = Ok(0);
        place::for_each_unheld(|directory| {
            let removed = maps::pinned_frontends(directory).and_then(|frontends| {
                if frontends.iter().any(is_ours) { remove(directory).map(|()| 1) } else { Ok(0) }
            });
            match (&mut outcome, removed) {
                (Ok(n), Ok(more)) => *n += more,
                (Ok(_), Err(error)) => outcome = Err(error),
                (Err(_), _) => {}
            }
        });
        outcome
    }
}

impl KernelPlane for Ebpf {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Ebpf
    }

    /// Of datagrams nothing is told when they have been sent.
    fn counts(&self, protocol: Protocol) -> Counts {
        match protocol {
            Protocol::Tcp => Counts::ALL,
            Protocol::Udp => Counts::NONE,
        }
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), ApplyError> {
        let gone = self.tables.apply(changes)?;
        self.end_stale(&gone);
        Ok(())
    }

    fn reconcile(&mut self, all: &[Service]) -> Result<usize, ApplyError> {
        let n_wrong = self.tables.read()?;
        let changes = self.tables.difference(all);
        let gone = self.tables.apply(&changes)?;
        self.end_stale(&gone);
        let failed = |e| ApplyError::kernel("attach the eBPF programs", e);
        let n_unpinned = self.tables.maps.pin_missing(&self.pins.path).map_err(failed)?;
        let n_links = match &self.links {
            Some(links) if links.are_intact().map_err(failed)? => 0,
            _ => {
                let links = Links::attach(&self.programs, &self.cgroup, &self.pins.path).map_err(failed)?;
                self.links = Some(links);
                maps::remove_other_layouts(&self.pins.path).map_err(failed)?;
                self.programs.len()
            }
        };
        Ok(n_wrong + changes.len() + n_unpinned + n_links)
    }

    /// Sees links that were taken off and pins that were removed. What somebody wrote into the maps is only found by
    /// reading them all, which [`Self::reconcile`] does.
    fn was_changed_by_others(&mut self) -> Result<bool, ApplyError> {
        let failed = |e| ApplyError::kernel("look at the eBPF links", e);
        match &self.links {
            Some(links) => links.are_intact().map(|intact| !intact).map_err(failed),
            None => Ok(false),
        }
    }

    fn count(&mut self) -> Result<Counted, ApplyError> {
        self.tables.counters()
    }

    fn flush(&mut self) -> Result<(), ApplyError> {
        links::detach_all(&self.pins.path)
            .map_err(|e| ApplyError::kernel("take the eBPF programs off", e))?;
        self.links = None;
        remove_or_warn(&self.pins.path);
        Ok(())
    }
}

/// Removes a directory of pins; what was attached by them is attached no more.
fn remove(directory: &Path) -> io::Result<()> {
    links::detach_all(directory)?;
    for entry in std::fs::read_dir(directory)? {
        std::fs::remove_file(entry?.path())?;
    }
    std::fs::remove_dir(directory)
}

fn remove_or_warn(directory: &Path) {
    if let Err(error) = remove(directory) {
        tracing::warn!(%error, directory = %directory.display(), "eBPF pins are left over");
    }
}
