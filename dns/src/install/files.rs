//! Files of a host that are replaced, kept and put back in steps of which each can be the last.
//!
//! It does not know what is in them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::InstallError;

/// Whoever looks names up reads it.
const MODE: u32 = 0o644;

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, InstallError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::Read(path.into(), error)),
    }
}

/// False: it was not there.
pub(super) fn remove_if_there(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(InstallError::Write(path.into(), error)),
    }
}

/// What a crash may leave of [`replace`].
pub(super) fn partial(path: &Path) -> PathBuf {
    path.with_extension("waymark-partial")
}

/// Readers see the old file or the new one.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), InstallError> {
    let partial = partial(path);
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::File::create(&partial)?;
        // Whatever the umask says.
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
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
    write().map_err(|error| InstallError::Write(path.into(), error))
}

/// Gives the host's own file a second name, so that at no moment it has none.
pub(super) fn keep(original: &Path, backup: &Path) -> Result<(), InstallError> {
    remove_if_there(backup)?;
    let keep = || match fs::hard_link(original, backup) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file that is mounted over (as in a container) cannot be linked.
        Err(_) => match fs::read_link(original) {
            Ok(target) => std::os::unix::fs::symlink(target, backup),
            Err(_) => copy(original, backup),
        },
    };
    keep().map_err(|error| InstallError::Write(backup.into(), error))
}

/// With its mode and owner.
fn copy(original: &Path, backup: &Path) -> io::Result<()> {
    fs::copy(original, backup)?;
    let own = fs::metadata(original)?;
    std::os::unix::fs::chown(backup, Some(own.uid()), Some(own.gid()))
}

pub(super) fn put_back(backup: &Path, path: &Path) -> Result<(), InstallError> {
    match fs::rename(backup, path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let text = fs::read(backup).map_err(|e| InstallError::Read(backup.into(), e))?;
            fs::write(path, text).map_err(|e| InstallError::Write(path.into(), e))?;
            remove_if_there(backup).map(drop)
        }
        other => other.map_err(|e| InstallError::Write(path.into(), e)),
    }
}
