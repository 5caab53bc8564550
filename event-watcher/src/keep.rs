//! The last good list on disk, for a start while the scheduler is away.
//!
//! What is kept is the scheduler's own answer, so there is no second format to read. A file that is damaged, too old
//! or unreadable is as good as none.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// An older list does more harm than good.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    framework: String,
    saved_unix_seconds: u64,
    sha256: String,
}

pub(crate) struct Kept {
    pub framework: String,
    pub list: Vec<u8>,
    pub age: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    #[error("the file is damaged")]
    Damaged,
    #[error("the file is older than {MAX_AGE:?}")]
    TooOld,
}

/// Writes the file anew and puts it in place at once, so that a crash leaves the old or the new one.
pub(crate) fn save(path: &Path, framework: &str, list: &[u8]) -> io::Result<()> {
    let head = Head {
        format: FORMAT,
        framework: framework.to_owned(),
        saved_unix_seconds: unix_seconds(),
        sha256: checksum(list),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let written = std::fs::File::create(&draft).and_then(|mut file| {
        serde_json::to_writer(&file, &head)?;
        file.write_all(b"\n")?;
        file.write_all(list)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&draft, path));
    if placed.is_err() {
        // A draft on a full disk only takes more of it; the failure itself is what is told.
        let _ = std::fs::remove_file(&draft);
    }
    placed
}

/// `None`: there is no file.
pub(crate) fn load(path: &Path) -> Result<Option<Kept>, LoadError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(LoadError::Damaged)?;
    let head: Head = serde_json::from_slice(&bytes[..end]).map_err(|_| LoadError::Damaged)?;
    let list = &bytes[end + 1..];
    if head.format != FORMAT || head.sha256 != checksum(list) {
        return Err(LoadError::Damaged);
    }
    let age = Duration::from_secs(unix_seconds().saturating_sub(head.saved_unix_seconds));
    if age > MAX_AGE {
        return Err(LoadError::TooOld);
    }
    Ok(Some(Kept { framework: head.framework, list: list.to_vec(), age }))
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/list");
        assert!(load(&path).unwrap().is_none());
        save(&path, "dev", b"{\"apps\": []}\n").unwrap();
        save(&path, "dev", b"{\"apps\":\n []}").unwrap();
        let kept = load(&path).unwrap().unwrap();
        assert_eq!((kept.framework.as_str(), kept.list.as_slice()), ("dev", &b"{\"apps\":\n []}"[..]));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");

        let good = std::fs::read(&path).unwrap();
        let old = String::from_utf8(good.clone()).unwrap();
        let at = old.find("seconds\":").unwrap() + 9;
        let old = format!("{}{}", &old[..at], &old[at + 1..]);
        std::fs::write(&path, old).unwrap();
        assert!(matches!(load(&path), Err(LoadError::TooOld)));
        for cut in [0, 1, 20, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(matches!(load(&path), Err(LoadError::Damaged)), "cut at {cut}");
        }
        assert!(matches!(load(folder.path()), Err(LoadError::Io(_))));
        assert!(save(&folder.path().join("new/list/below-a-file"), "dev", b"").is_err());
    }
}
