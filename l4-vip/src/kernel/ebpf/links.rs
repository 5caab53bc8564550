//! Attaching: one pinned link for each hook, made or adopted, and taken off again.
//!
//! An adopted link gets the new program put in the old one's place at once, so no call is ever without one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::place::Cgroup;
use super::programs::{HOOKS, Hook};
use super::sys::{self, LinkInfo};

#[derive(Debug)]
pub struct Program {
    pub hook: Hook,
    pub fd: OwnedFd,
}

#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    pin: PathBuf,
    info: LinkInfo,
}

#[derive(Debug)]
pub struct Links(Vec<Link>);

impl Links {
    /// Attaches every program. When one cannot be attached, those that were attached here are taken off again.
    pub fn attach(programs: &[Program], cgroup: &Cgroup, directory: &Path) -> io::Result<Self> {
        let mut links: Vec<Link> = Vec::with_capacity(programs.len());
        let mut made: Vec<PathBuf> = Vec::new();
        for program in programs {
            let pin = pin_path(directory, program.hook);
            match attach_one(program, cgroup, &pin, &mut made) {
                Ok(link) => links.push(link),
                Err(error) => {
                    for pin in made {
                        // It is attached no more once the link's last descriptor closes.
                        let _ = std::fs::remove_file(pin);
                    }
                    let what = format!("{}: {error}", program.hook.name);
                    return Err(io::Error::new(error.kind(), what));
                }
            }
        }
        Ok(Self(links))
    }

    /// Whether all are attached, run our programs and are pinned.
    pub fn are_intact(&self) -> io::Result<bool> {
        for link in &self.0 {
            if sys::link_info(link.fd.as_fd())? != link.info || !link.pin.try_exists()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn attach_one(program: &Program, cgroup: &Cgroup, pin: &Path, made: &mut Vec<PathBuf>) -> io::Result<Link> {
    if let Some(fd) = sys::open_pinned(pin)? {
        // A link whose group is gone, or that somebody took off, cannot be attached again.
        if sys::link_info(fd.as_fd())?.cgroup_id == cgroup.id {
            sys::replace(fd.as_fd(), program.fd.as_fd())?;
            return Ok(Link { info: sys::link_info(fd.as_fd())?, fd, pin: pin.to_owned() });
        }
        std::fs::remove_file(pin)?;
    }
    let fd = sys::attach(program.fd.as_fd(), cgroup.fd(), program.hook.attach_type)?;
    sys::pin(fd.as_fd(), pin)?;
    made.push(pin.to_owned());
    Ok(Link { info: sys::link_info(fd.as_fd())?, fd, pin: pin.to_owned() })
}

/// Takes every program off, whoever attached it. Calls that run at this moment end as they began.
pub fn detach_all(directory: &Path) -> io::Result<()> {
    // What takes VIPs away goes first, so that nobody is given a backend whose name could not be turned back.
    for hook in HOOKS.iter().rev() {
        match std::fs::remove_file(pin_path(directory, *hook)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the links pinned here are attached nowhere.
pub fn are_defunct(directory: &Path) -> bool {
    HOOKS.iter().all(|hook| match sys::open_pinned(&pin_path(directory, *hook)) {
        Ok(Some(link)) => sys::link_info(link.as_fd()).is_ok_and(|info| info.cgroup_id == 0),
        Ok(None) => true,
        Err(_) => false,
    })
}

fn pin_path(directory: &Path, hook: Hook) -> PathBuf {
    directory.join(format!("link_{}", hook.name))
}
