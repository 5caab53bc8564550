//! The state on disk: one journal of lines, appended to and synchronised before a change is answered, rewritten
//! as a whole when it has grown.
//!
//! Not here: what the lines say (`core::record`).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, watch};

use super::Error;

/// Changes waiting for the disk; when it is full, the scheduler waits for the disk too.
const QUEUE: usize = 256;

/// Changes that are synchronised together.
const BATCH: usize = 64;

const JOURNAL: &str = "journal";

#[derive(Debug)]
pub struct Change {
    pub number: u64,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    /// One more line.
    Append(String),
    /// Everything anew.
    Rewrite(Vec<String>),
}

/// How far the writer has come.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Every change up to this number has been tried.
    pub number: u64,
    /// The last one that failed, and why.
    pub failed: Option<(u64, String)>,
}

/// Holds the state directory for one scheduler.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Store {
    /// Takes the directory, which is made if it is missing.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::State { path, source }
        };
        fs::create_dir_all(state_dir).map_err(failed(state_dir))?;
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: state_dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: state_dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(Error::State { path: lock_path, source }),
        }
    }

    fn journal(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    /// Gives every line to `take`. A last line without an end was being written when the machine stopped, and
    /// was never answered: it is left out.
    pub fn load(&self, mut take: impl FnMut(&str) -> Result<(), String>) -> Result<(), Error> {
        let path = self.journal();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::State { path, source }),
        };
        let corrupt = |line: usize, reason: String| Error::Corrupt { path: path.clone(), line, reason };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for (index, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate() {
            let line = std::str::from_utf8(line).map_err(|error| corrupt(index + 1, error.to_string()))?;
            if !line.is_empty() {
                take(line).map_err(|reason| corrupt(index + 1, reason))?;
            }
        }
        Ok(())
    }

    /// Starts the thread that writes. It ends when the sender is dropped and everything is written.
    pub fn write_behind(
        self,
    ) -> io::Result<(mpsc::Sender<Change>, watch::Receiver<Written>, JoinHandle<()>)> {
        let (changes, receiver) = mpsc::channel::<Change>(QUEUE);
        let (progress, written) = watch::channel(Written::default());
        let thread =
            std::thread::Builder::new().name("store".into()).spawn(move || self.run(receiver, &progress))?;
        Ok((changes, written, thread))
    }

    fn run(self, mut changes: mpsc::Receiver<Change>, progress: &watch::Sender<Written>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut file: Option<File> = None;
        while changes.blocking_recv_many(&mut batch, BATCH) > 0 {
            let last = batch.last().map_or(0, |change| change.number);
            let result = self.write(&mut file, batch.drain(..));
            progress.send_modify(|written| {
                written.number = last;
                if let Err(error) = result {
                    tracing::error!(%error, "could not store a change");
                    written.failed = Some((last, error.to_string()));
                    // Half a line may be there: the next change starts with a whole state or not at all.
                    file = None;
                }
            });
        }
    }

    fn write(&self, file: &mut Option<File>, changes: impl Iterator<Item = Change>) -> io::Result<()> {
        let mut text = String::new();
        for change in changes {
            match change.content {
                Content::Append(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Content::Rewrite(lines) => {
                    text.clear();
                    *file = Some(self.replace(&lines)?);
                }
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        if file.is_none() {
            *file = Some(self.reopen()?);
        }
        if let Some(open) = file {
            open.write_all(text.as_bytes())?;
            open.sync_data()?;
        }
        Ok(())
    }

    /// Opens the journal at the end of its last whole line.
    fn reopen(&self) -> io::Result<File> {
        let path = self.journal();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        file.set_len(whole as u64)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }

    fn replace(&self, lines: &[String]) -> io::Result<File> {
        let path = self.journal();
        let partial = path.with_extension("partial");
        let mut file = OpenOptions::new().append(true).create(true).open(&partial)?;
        file.set_len(0)?;
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let store = Store::open(dir).expect("free");
        let keep = |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        store.load(keep).expect("readable");
        lines
    }

    #[tokio::test]
    async fn what_is_written_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("free");
        assert!(matches!(Store::open(dir.path()), Err(Error::Locked { .. })));
        let (changes, mut written, thread) = store.write_behind().expect("a thread");
        let append = |text: &str| Content::Append(text.to_owned());
        let contents = [
            append("before"),
            Content::Rewrite(vec!["one".into(), "two".into()]),
            append("three"),
            append("four"),
        ];
        for (number, content) in (1..).zip(contents) {
            changes.send(Change { number, content }).await.expect("the writer lives");
        }
        let end = written.wait_for(|w| w.number == 4).await.expect("the writer lives").clone();
        assert_eq!(end.failed, None);
        drop(changes);
        thread.join().expect("the writer ends");
        assert_eq!(lines_of(dir.path()), ["one", "two", "three", "four"]);
    }

    #[tokio::test]
    async fn half_a_line_is_cut_off() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(JOURNAL), "whole\nhal").expect("writable");
        assert_eq!(lines_of(dir.path()), ["whole"]);
        let store = Store::open(dir.path()).expect("free");
        let (changes, _written, thread) = store.write_behind().expect("a thread");
        let change = Change { number: 1, content: Content::Append("next".into()) };
        changes.send(change).await.expect("the writer lives");
        drop(changes);
        thread.join().expect("the writer ends");
        assert_eq!(lines_of(dir.path()), ["whole", "next"]);
    }

    #[test]
    fn a_line_that_cannot_be_understood_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(JOURNAL), "good\nbad\n").expect("writable");
        let store = Store::open(dir.path()).expect("free");
        let refused = store.load(|line| if line == "good" { Ok(()) } else { Err("why".into()) });
        assert!(matches!(refused, Err(Error::Corrupt { line: 2, .. })), "{refused:?}");
    }
}
