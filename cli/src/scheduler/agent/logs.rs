//! A task's `stdout` and `stderr` files: bounded, and read from the end.
//!
//! Not here: who may read them.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// One file is moved to `<name>.1` when it is this long, so a stream keeps at most twice as much.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

const CHUNK_BYTES: usize = 32 * 1024;

/// Copies a stream into `path` until it ends. A full disk loses output, never the task: the pipe is read on.
pub async fn copy(stream: impl AsyncRead + Unpin, path: PathBuf) {
    copy_bounded(stream, path, FILE_BYTES).await;
}

async fn copy_bounded(mut stream: impl AsyncRead + Unpin, path: PathBuf, file_bytes: u64) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut file = tokio::fs::File::create(&path).await.ok();
    let mut written = 0;
    let mut complained = false;
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        if written >= file_bytes {
            let _ = tokio::fs::rename(&path, rotated(&path)).await;
            file = tokio::fs::File::create(&path).await.ok();
            written = 0;
        }
        let result = match &mut file {
            Some(file) => match file.write_all(&buffer[..n]).await {
                Ok(()) => file.flush().await,
                failed => failed,
            },
            None => Err(io::Error::other("the file could not be made")),
        };
        if let Err(error) = result
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!(path = %path.display(), %error, "output of a task is lost");
        }
        written += n as u64;
    }
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("1")
}

/// The last `n_bytes` of a stream, over the rotated file and the current one.
pub fn tail(path: &Path, n_bytes: u64) -> io::Result<Vec<u8>> {
    let mut current = std::fs::File::open(path)?;
    let length = current.metadata()?.len();
    let mut read = Vec::new();
    if length < n_bytes
        && let Ok(mut older) = std::fs::File::open(rotated(path))
    {
        let from = older.metadata()?.len().saturating_sub(n_bytes - length);
        older.seek(SeekFrom::Start(from))?;
        older.take(n_bytes - length).read_to_end(&mut read)?;
    }
    current.seek(SeekFrom::Start(length.saturating_sub(n_bytes)))?;
    current.take(n_bytes).read_to_end(&mut read)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_end_within_its_bounds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("stdout");
        let text: Vec<u8> = (0..200_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        copy_bounded(&text[..], path.clone(), 100_000).await;
        let n_files = std::fs::read_dir(dir.path()).expect("readable").count();
        let n_bytes: u64 = ["stdout", "stdout.1"]
            .iter()
            .map(|name| std::fs::metadata(dir.path().join(name)).expect("a file").len())
            .sum();
        assert!(n_files == 2 && n_bytes <= 2 * (100_000 + CHUNK_BYTES as u64), "{n_files} {n_bytes}");
        for n in [0, 10, 50_000, 90_000] {
            assert_eq!(tail(&path, n).expect("readable"), text[text.len() - n as usize..], "{n}");
        }
        assert!(tail(&path, u64::MAX).expect("readable").len() as u64 == n_bytes);
    }
}
