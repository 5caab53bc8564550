//! Makes this server the resolver of its host, and takes that back: as a drop-in of systemd-resolved where programs ask
//! that, otherwise in `/etc/resolv.conf`.
//!
//! Every step leaves a host that resolves names, and whoever comes after a crash can finish or take back what was
//! begun. The drop-in lies in `/run` and sends the cluster's zones here; `resolv.conf` keeps the resolvers that were
//! there behind this one, and the file that was there keeps its place as a backup, whatever it is (a link too). It
//! restarts nothing: it says what is to be told. What somebody has edited since is not overwritten.

mod files;
mod resolved;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use self::files::{keep, put_back, read_if_there, remove_if_there, replace};

/// What the files that it wrote begin with.
pub const MARK: &str = "# Written by waymark dns install";
/// What was there before, below the root.
pub const BACKUP: &str = "etc/resolv.conf.before-waymark";
const RESOLV_CONF: &str = "etc/resolv.conf";
const DROP_IN: &str = "run/systemd/resolved.conf.d/waymark.conf";
/// There while systemd-resolved has not been told of a change to the drop-in.
const UNTOLD: &str = "run/systemd/resolved.conf.d/waymark.untold";
/// The C library reads so many and no more.
const MAX_NAMESERVERS: usize = 3;

/// Who asks the resolvers of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    SystemdResolved,
    ResolvConf,
}

/// What has to be told about the change, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    /// Programs read the file themselves.
    Changed,
    /// systemd-resolved has to read its configuration again; then [`Host::told`].
    RestartResolved,
    /// Somebody else has replaced the file since; it stays.
    Superseded,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("no address to install")]
    NoServer,
    #[error("{0} was edited after Waymark had written it")]
    Edited(PathBuf),
    #[error(
        "systemd-resolved has servers for all names (DNS= in {0}) and would ask them for the cluster's, too"
    )]
    GlobalServers(PathBuf),
}

/// A host, by its root directory.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// What an installation writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub style: Style,
    pub path: PathBuf,
    pub text: String,
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Nobodys,
    Theirs,
    Ours,
}

impl Host {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub fn style(&self) -> Style {
        match resolved::is_asked(&self.root) && resolved::global_servers(&self.root).is_none() {
            true => Style::SystemdResolved,
            false => Style::ResolvConf,
        }
    }

    /// What would be written for `servers` (on port 53) that answer for `zones`.
    pub fn plan(&self, style: Style, servers: &[IpAddr], zones: &[String]) -> Result<Plan, InstallError> {
        if servers.is_empty() {
            return Err(InstallError::NoServer);
        }
        match style {
            Style::SystemdResolved => {
                if let Some(path) = resolved::global_servers(&self.root) {
                    return Err(InstallError::GlobalServers(path));
                }
                Ok(Plan { style, path: self.path(DROP_IN), text: marked(&resolved::drop_in(servers, zones)) })
            }
            Style::ResolvConf => {
                let text = marked(&resolv_conf(servers, &self.read_before()?));
                Ok(Plan { style, path: self.path(RESOLV_CONF), text })
            }
        }
    }

    /// Writes the plan, keeping what was there. Again and again is as good as once.
    pub fn apply(&self, plan: &Plan) -> Result<Outcome, InstallError> {
        let whose = self.whose(&plan.path)?;
        let is_written = read_if_there(&plan.path)?.as_deref() == Some(&plan.text);
        if plan.style == Style::SystemdResolved {
            if !is_written {
                replace(&self.path(UNTOLD), "")?;
                replace(&plan.path, &plan.text)?;
            }
            return Ok(self.what_resolved_knows());
        }
        if is_written {
            return Ok(Outcome::Unchanged);
        }
        // What is there now is the host's own, unless it is from an earlier installation, which has kept that.
        if whose != Whose::Ours {
            keep(&plan.path, &self.path(BACKUP))?;
        }
        replace(&plan.path, &plan.text)?;
        Ok(Outcome::Changed)
    }

    /// Puts back what was there, in either style.
    pub fn remove(&self) -> Result<Outcome, InstallError> {
        let (resolv_conf, backup, drop_in) = (self.path(RESOLV_CONF), self.path(BACKUP), self.path(DROP_IN));
        let (whose, whose_drop_in) = (self.whose(&resolv_conf)?, self.whose(&drop_in)?);
        let has_backup = fs::symlink_metadata(&backup).is_ok();
        let mut outcome = Outcome::Unchanged;
        match whose {
            Whose::Theirs => {
                let is_untouched = read_if_there(&backup)? == read_if_there(&resolv_conf)?;
                if remove_if_there(&backup)? && !is_untouched {
                    outcome = Outcome::Superseded;
                }
            }
            Whose::Ours | Whose::Nobodys if has_backup => {
                put_back(&backup, &resolv_conf)?;
                outcome = Outcome::Changed;
            }
            Whose::Ours => {
                // There was none before.
                remove_if_there(&resolv_conf)?;
                outcome = Outcome::Changed;
            }
            Whose::Nobodys => {}
        }
        if whose_drop_in == Whose::Ours {
            replace(&self.path(UNTOLD), "")?;
            remove_if_there(&drop_in)?;
        }
        for path in [&resolv_conf, &drop_in, &self.path(UNTOLD)] {
            remove_if_there(&files::partial(path))?;
        }
        self.leave_folder();
        Ok(match self.what_resolved_knows() {
            Outcome::Unchanged => outcome,
            restart => restart,
        })
    }

    /// systemd-resolved has been told of all changes.
    pub fn told(&self) -> Result<(), InstallError> {
        remove_if_there(&self.path(UNTOLD))?;
        self.leave_folder();
        Ok(())
    }

    /// Removes the drop-in's folder if nobody has anything in it.
    fn leave_folder(&self) {
        let _ = self.path(DROP_IN).parent().map(fs::remove_dir);
    }

    fn what_resolved_knows(&self) -> Outcome {
        if self.path(UNTOLD).exists() { Outcome::RestartResolved } else { Outcome::Unchanged }
    }

    /// The host's own `resolv.conf`, as it was before any installation.
    fn read_before(&self) -> Result<String, InstallError> {
        let path = self.path(RESOLV_CONF);
        let own = if self.whose(&path)? == Whose::Ours { self.path(BACKUP) } else { path };
        Ok(read_if_there(&own)?.unwrap_or_default())
    }

    fn whose(&self, path: &Path) -> Result<Whose, InstallError> {
        let Some(text) = read_if_there(path)? else { return Ok(Whose::Nobodys) };
        if text.is_empty() && fs::symlink_metadata(self.path(BACKUP)).is_ok() {
            // Somebody was stopped between emptying and writing a file that can only be written in place.
            return Ok(Whose::Ours);
        }
        match text.strip_prefix(MARK) {
            None => Ok(Whose::Theirs),
            Some(rest) => match rest.split_once('\n') {
                Some((head, body)) if head.starts_with(&digest(body)) => Ok(Whose::Ours),
                _ => Err(InstallError::Edited(path.into())),
            },
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }
}

/// The text of a file, with a first line by which it is known again unless it was edited.
fn marked(body: &str) -> String {
    format!("{MARK}{}; waymark dns install --remove takes it back.\n{body}", digest(body))
}

fn digest(body: &str) -> String {
    let digest = Sha1::digest(body.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!(" ({short})")
}

/// This server first; then those of before, so that a host whose Waymark has stopped still resolves names.
fn resolv_conf(servers: &[IpAddr], before: &str) -> String {
    let is = |line: &str, word: &str| line.split_whitespace().next() == Some(word);
    let ours = servers.iter().take(MAX_NAMESERVERS - 1).map(|ip| format!("nameserver {ip}"));
    let theirs = before.lines().filter(|line| is(line, "nameserver")).map(str::to_owned);
    let mut nameservers: Vec<String> = ours.collect();
    for line in theirs {
        if nameservers.len() < MAX_NAMESERVERS && !nameservers.contains(&line) {
            nameservers.push(line);
        }
    }
    let mut text = String::new();
    for line in
        before.lines().filter(|line| ["search", "domain", "options", "sortlist"].iter().any(|w| is(line, w)))
    {
        text += line;
        text.push('\n');
    }
    // As DC/OS has it: the next server after a second.
    text += "options timeout:1 attempts:3\n";
    for line in nameservers {
        text += &line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
