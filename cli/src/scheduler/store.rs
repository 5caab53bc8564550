//! The apps on disk: one file per app with its versions as Marathon writes them, replaced atomically.
//!
//! Not here: instances and deployments. Instances end with the scheduler and are started anew.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::Error;
use super::app::App;
use super::app::input::read_app;
use super::id::AppId;

/// Changes waiting for the disk; when it is full, the scheduler waits for the disk too.
const QUEUE: usize = 256;

/// One app's new content, `None` when it is gone.
#[derive(Debug)]
pub struct Change {
    pub number: u64,
    pub app: AppId,
    pub versions: Option<Vec<Arc<App>>>,
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
    apps: PathBuf,
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
        let apps = state_dir.join("apps");
        fs::create_dir_all(&apps).map_err(failed(&apps))?;
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { apps, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: state_dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(Error::State { path: lock_path, source }),
        }
    }

    /// Every stored app as its versions, oldest first.
    pub fn load(&self) -> Result<Vec<Vec<Arc<App>>>, Error> {
        let failed = |source| Error::State { path: self.apps.clone(), source };
        let mut apps = Vec::new();
        for entry in fs::read_dir(&self.apps).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let bytes = fs::read(&path).map_err(|source| Error::State { path: path.clone(), source })?;
                apps.push(parse(&bytes).map_err(|reason| Error::Corrupt { path, reason })?);
            }
        }
        Ok(apps)
    }

    /// Starts the thread that writes. It ends when the sender is dropped and everything is written.
    pub fn write_behind(
        self,
    ) -> io::Result<(mpsc::Sender<Change>, watch::Receiver<Written>, JoinHandle<()>)> {
        let (changes, mut receiver) = mpsc::channel::<Change>(QUEUE);
        let (progress, written) = watch::channel(Written::default());
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            while let Some(change) = receiver.blocking_recv() {
                let result = self.write(&change);
                progress.send_modify(|written| {
                    written.number = change.number;
                    if let Err(error) = result {
                        tracing::error!(app = %change.app, %error, "could not store an app");
                        written.failed = Some((change.number, error.to_string()));
                    }
                });
            }
        })?;
        Ok((changes, written, thread))
    }

    fn write(&self, change: &Change) -> io::Result<()> {
        // Segments of ids have no `_` and do not start with `.`, so this is a plain file name of its own.
        let path = self.apps.join(format!("{}.json", change.app.flat()));
        match &change.versions {
            Some(versions) => {
                let texts: Vec<&str> = versions.iter().map(|app| app.json()).collect();
                let partial = path.with_extension("partial");
                let mut file = File::create(&partial)?;
                write!(file, "{{\"versions\":[\n{}\n]}}\n", texts.join(",\n"))?;
                file.sync_all()?;
                fs::rename(&partial, &path)?;
            }
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        File::open(&self.apps)?.sync_all()
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Arc<App>>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let versions = value.get("versions").and_then(Value::as_array).ok_or("it has no list of versions")?;
    let read = |version: &Value| -> Result<Arc<App>, String> {
        let in_words = |errors| serde_json::to_string(&errors).unwrap_or_default();
        let update = read_app(version, "").map_err(in_words)?;
        let id = AppId::parse(update.id.as_deref().ok_or("a version has no id")?)?;
        update.restore(id).map(Arc::new).map_err(in_words)
    };
    let apps: Vec<Arc<App>> = versions.iter().map(read).collect::<Result<_, _>>()?;
    if apps.is_empty() { Err("it has no versions".into()) } else { Ok(apps) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::timestamp::Timestamp;

    #[tokio::test]
    async fn what_is_written_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("free");
        assert!(matches!(Store::open(dir.path()), Err(Error::Locked { .. })));
        let id = AppId::parse("/dcos-101/app2").expect("valid");
        let mut app = App::with_defaults(id.clone(), Timestamp::now());
        app.cmd = Some("sleep 1".into());
        let gone = AppId::parse("/gone").expect("valid");
        let (changes, mut written, thread) = store.write_behind().expect("a thread");
        let versions = Some(vec![Arc::new(app.clone())]);
        for (number, app, versions) in
            [(1, gone.clone(), versions.clone()), (2, id, versions), (3, gone, None)]
        {
            changes.send(Change { number, app, versions }).await.expect("the writer lives");
        }
        let end = written.wait_for(|w| w.number == 3).await.expect("the writer lives").clone();
        assert_eq!(end.failed, None);
        drop(changes);
        thread.join().expect("the writer ends");

        let loaded = Store::open(dir.path()).and_then(|store| store.load()).expect("readable");
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0][0].json(), app.json());
    }

    #[test]
    fn a_corrupt_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("free");
        for content in ["", "{", "{}", r#"{"versions":[]}"#, r#"{"versions":[{"id":"/a"}]}"#] {
            fs::write(dir.path().join("apps/a.json"), content).expect("writable");
            assert!(matches!(store.load(), Err(Error::Corrupt { .. })), "{content}");
        }
    }
}
