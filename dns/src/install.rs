//! Makes this server the resolver of its host, and takes that back: as a drop-in of systemd-resolved where that runs,
//! otherwise in `/etc/resolv.conf`.
//!
//! Every step leaves a host that resolves names. The drop-in lies in `/run` and sends only the cluster's zones here;
//! `resolv.conf` keeps the resolvers that were there behind this one, and the file that was there keeps its place as
//! a backup, whatever it is (a link too). It restarts nothing: it says what is to be told.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What the files that it wrote begin with.
pub const MARK: &str = "# Written by waymark dns install";
/// What was there before, below the root.
pub const BACKUP: &str = "etc/resolv.conf.before-waymark";
const RESOLV_CONF: &str = "etc/resolv.conf";
const RESOLVED: &str = "run/systemd/resolve";
const DROP_IN: &str = "run/systemd/resolved.conf.d/waymark.conf";
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
    /// systemd-resolved has to read its configuration again.
    RestartResolved,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("no address to install")]
    NoServer,
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

impl Host {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub fn style(&self) -> Style {
        match self.path(RESOLVED).is_dir() {
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
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                // `~`: names of these zones come here, and no name is completed with them.
                let zones: Vec<String> = zones.iter().map(|zone| format!("~{zone}")).collect();
                let text =
                    format!("{MARK}\n[Resolve]\nDNS={}\nDomains={}\n", servers.join(" "), zones.join(" "));
                Ok(Plan { style, path: self.path(DROP_IN), text })
            }
            Style::ResolvConf => {
                let before = self.read_before()?;
                Ok(Plan { style, path: self.path(RESOLV_CONF), text: resolv_conf(servers, &before) })
            }
        }
    }

    /// Writes the plan, keeping what was there. Again and again is as good as once.
    pub fn apply(&self, plan: &Plan) -> Result<Outcome, InstallError> {
        let current = read_if_there(&plan.path)?;
        if current.as_deref() == Some(&plan.text) {
            return Ok(Outcome::Unchanged);
        }
        if plan.style == Style::SystemdResolved {
            replace(&plan.path, &plan.text)?;
            return Ok(Outcome::RestartResolved);
        }
        // What is there now is the host's own, unless it is from an earlier installation, which has kept that.
        if !current.is_some_and(|text| text.starts_with(MARK)) {
            self.keep()?;
        }
        replace(&plan.path, &plan.text)?;
        Ok(Outcome::Changed)
    }

    /// Puts back what was there, in either style. What somebody else has written since then stays.
    pub fn remove(&self) -> Result<Outcome, InstallError> {
        let mut outcome = Outcome::Unchanged;
        let (resolv_conf, backup) = (self.path(RESOLV_CONF), self.path(BACKUP));
        let is_ours = read_if_there(&resolv_conf)?.is_some_and(|text| text.starts_with(MARK));
        if fs::symlink_metadata(&backup).is_ok() {
            if is_ours {
                put_back(&backup, &resolv_conf)?;
                outcome = Outcome::Changed;
            } else {
                fs::remove_file(&backup).map_err(|e| InstallError::Write(backup, e))?;
            }
        } else if is_ours {
            // There was none before.
            fs::remove_file(&resolv_conf).map_err(|e| InstallError::Write(resolv_conf, e))?;
            outcome = Outcome::Changed;
        }
        let drop_in = self.path(DROP_IN);
        match fs::remove_file(&drop_in) {
            Ok(()) => outcome = Outcome::RestartResolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(InstallError::Write(drop_in, error)),
        }
        Ok(outcome)
    }

    /// The host's own `resolv.conf`, as it was before any installation.
    fn read_before(&self) -> Result<String, InstallError> {
        let current = read_if_there(&self.path(RESOLV_CONF))?.unwrap_or_default();
        if current.starts_with(MARK) {
            return Ok(read_if_there(&self.path(BACKUP))?.unwrap_or_default());
        }
        Ok(current)
    }

    /// Gives the host's own file a second name, so that at no moment it has none.
    fn keep(&self) -> Result<(), InstallError> {
        let (original, backup) = (self.path(RESOLV_CONF), self.path(BACKUP));
        let failed = |error| InstallError::Write(backup.clone(), error);
        match fs::remove_file(&backup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match fs::hard_link(&original, &backup) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A file that is mounted over (as in a container) cannot be linked.
            Err(_) => fs::copy(&original, &backup).map(drop).map_err(failed),
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }
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
    let mut text = format!("{MARK}; waymark dns install --remove puts back what was here.\n");
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

fn read_if_there(path: &Path) -> Result<Option<String>, InstallError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::Read(path.into(), error)),
    }
}

/// Readers see the old file or the new one.
fn replace(path: &Path, text: &str) -> Result<(), InstallError> {
    let failed = |error| InstallError::Write(path.into(), error);
    let partial = path.with_extension("waymark-partial");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::rename(&partial, path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                // Mounted over: it can only be written in place.
                fs::remove_file(&partial)?;
                fs::write(path, text)
            }
            other => other,
        }
    };
    write().map_err(failed)
}

fn put_back(backup: &Path, path: &Path) -> Result<(), InstallError> {
    let failed = |error| InstallError::Write(path.into(), error);
    match fs::rename(backup, path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let text = fs::read(backup).map_err(|e| InstallError::Read(backup.into(), e))?;
            fs::write(path, text).map_err(failed)?;
            fs::remove_file(backup).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
    const BEFORE: &str =
        "# theirs\nsearch example\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n";

    fn host() -> (tempfile::TempDir, Host, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let host = Host::new(root.path());
        let path = root.path().join(RESOLV_CONF);
        (root, host, path)
    }

    fn apply(host: &Host) -> Outcome {
        let plan = host.plan(host.style(), &[OWN], &["mesos".into(), "thisdcos.directory".into()]).unwrap();
        host.apply(&plan).unwrap()
    }

    #[test]
    fn resolv_conf_is_taken_over_and_given_back() {
        let (_root, host, path) = host();
        fs::write(&path, BEFORE).unwrap();
        assert_eq!(apply(&host), Outcome::Changed);
        let text = fs::read_to_string(&path).unwrap();
        let servers: Vec<&str> = text.lines().filter(|l| l.starts_with("nameserver")).collect();
        assert_eq!(servers, ["nameserver 198.51.100.1", "nameserver 10.0.0.1", "nameserver 10.0.0.2"]);
        assert!(text.contains("\nsearch example\n"));
        assert_eq!(apply(&host), Outcome::Unchanged);
        assert_eq!(host.remove().unwrap(), Outcome::Changed);
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        assert_eq!(host.remove().unwrap(), Outcome::Unchanged);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn links_missing_files_and_the_work_of_others_are_kept() {
        let (_root, host, path) = host();
        let target = path.with_file_name("real");
        fs::write(&target, BEFORE).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        apply(&host);
        assert!(!path.is_symlink() && fs::read_to_string(&target).unwrap() == BEFORE);
        host.remove().unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("real"));

        fs::remove_file(&path).unwrap();
        apply(&host);
        host.remove().unwrap();
        assert!(!path.exists(), "there was none");

        fs::write(&path, BEFORE).unwrap();
        apply(&host);
        fs::write(&path, "nameserver 10.9.9.9\n").unwrap();
        assert_eq!(host.remove().unwrap(), Outcome::Unchanged);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.9.9.9\n");
        apply(&host);
        host.remove().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.9.9.9\n");
    }

    #[test]
    fn resolved_gets_a_drop_in_for_the_cluster_alone() {
        let (root, host, path) = host();
        fs::write(&path, BEFORE).unwrap();
        fs::create_dir_all(root.path().join(RESOLVED)).unwrap();
        assert_eq!(apply(&host), Outcome::RestartResolved);
        let text = fs::read_to_string(root.path().join(DROP_IN)).unwrap();
        assert!(
            text.ends_with("[Resolve]\nDNS=198.51.100.1\nDomains=~mesos ~thisdcos.directory\n"),
            "{text}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        assert_eq!(host.remove().unwrap(), Outcome::RestartResolved);
        assert!(!root.path().join(DROP_IN).exists());
    }
}
