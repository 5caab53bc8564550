//! The last good state of a source on disk, for a start while its scheduler is away.
//!
//! One line of JSON says what the file is, one line follows for each app, and the last line has their number and
//! checksum. A file that is damaged, somebody else's, of another format or too old is as good as none, and says why.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::catalog::{App, Apps};

/// An older state does more harm than good.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const MAGIC: &str = "waymark kept apps";
/// 1 was the scheduler's own list.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Head {
    what: String,
    format: u32,
    source: String,
    framework: String,
    saved_unix_seconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    n_apps: usize,
    sha256: String,
}

pub(crate) struct Kept {
    pub framework: String,
    pub apps: Vec<Arc<App>>,
    pub age: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    #[error("the file is damaged")]
    Damaged,
    #[error("the file is not a kept state of Waymark")]
    Foreign,
    #[error("the file has format {0}, and this version reads {FORMAT}")]
    OtherFormat(u32),
    #[error("the file holds the state of the source {0:?}")]
    OtherSource(String),
    #[error("the file is {} hours old, and older than {} hours is not used", .0.as_secs() / 3600, MAX_AGE.as_secs() / 3600)]
    TooOld(Duration),
}

/// Writes the file anew and puts it in place at once, so that a crash leaves the old or the new one.
pub(crate) fn save(path: &Path, source: &str, framework: &str, apps: &Apps) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let written = std::fs::File::create(&draft).and_then(|file| {
        let head = Head {
            what: MAGIC.to_owned(),
            format: FORMAT,
            source: source.to_owned(),
            framework: framework.to_owned(),
            saved_unix_seconds: unix_seconds(),
        };
        let file = write(BufWriter::with_capacity(1 << 16, file), &head, apps)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&draft, path));
    if placed.is_err() {
        // A draft on a full disk only takes more of it; the failure itself is what is told.
        let _ = std::fs::remove_file(&draft);
    }
    placed
}

fn write<W: Write>(mut to: W, head: &Head, apps: &Apps) -> io::Result<W> {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    let mut put = |line: &mut Vec<u8>, to: &mut W| {
        line.push(b'\n');
        digest.update(&line[..]);
        to.write_all(line)?;
        line.clear();
        io::Result::Ok(())
    };
    serde_json::to_writer(&mut line, head)?;
    put(&mut line, &mut to)?;
    for app in apps.values() {
        serde_json::to_writer(&mut line, &**app)?;
        put(&mut line, &mut to)?;
    }
    serde_json::to_writer(&mut to, &Tail { n_apps: apps.len(), sha256: hex(&digest.finalize()) })?;
    to.write_all(b"\n")?;
    Ok(to)
}

/// `None`: there is no file.
pub(crate) fn load(path: &Path, source: &str) -> Result<Option<Kept>, LoadError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    read(&bytes, source).map(Some)
}

fn read(bytes: &[u8], source: &str) -> Result<Kept, LoadError> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(LoadError::Foreign)?;
    let head: Head = match serde_json::from_slice::<Head>(&bytes[..end]) {
        Ok(head) if head.what == MAGIC => head,
        _ => return Err(LoadError::Foreign),
    };
    if head.format != FORMAT {
        return Err(LoadError::OtherFormat(head.format));
    }
    if head.source != source {
        return Err(LoadError::OtherSource(head.source));
    }
    let rest = bytes[..].strip_suffix(b"\n").ok_or(LoadError::Damaged)?;
    let last = rest.iter().rposition(|b| *b == b'\n').ok_or(LoadError::Damaged)?;
    let tail: Tail = serde_json::from_slice(&rest[last + 1..]).map_err(|_| LoadError::Damaged)?;
    if tail.sha256 != hex(&Sha256::digest(&bytes[..=last])) {
        return Err(LoadError::Damaged);
    }
    let age = Duration::from_secs(unix_seconds().saturating_sub(head.saved_unix_seconds));
    if age > MAX_AGE {
        return Err(LoadError::TooOld(age));
    }
    let lines = bytes[end + 1..=last].split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let apps: Vec<Arc<App>> = lines
        .map(|line| serde_json::from_slice(line).map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(|_| LoadError::Damaged)?;
    if apps.len() != tail.n_apps {
        return Err(LoadError::Damaged);
    }
    Ok(Kept { framework: head.framework, apps, age })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Only the age of a file is told by this clock; nothing else in this crate reads it.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
