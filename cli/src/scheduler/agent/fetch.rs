//! Brings an app's files into its sandbox: from this machine or over HTTP, with archives unpacked, as Mesos'
//! fetcher does.
//!
//! Not here: when (`agent`), and who may read the result (`process` hands the sandbox to the app's user).

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::scheduler::app::Fetch;

/// A server that sends nothing for this long has stalled; Mesos' fetcher gives up then as well.
const STALL: Duration = Duration::from_secs(60);

/// Fetches all files into `sandbox`; those with `cache` are kept in `cache` for the next time.
pub async fn all(files: &[Fetch], sandbox: &Path, cache: &Path) -> Result<(), String> {
    for file in files {
        one(file, sandbox, cache).await.map_err(|why| format!("Failed to fetch '{}': {why}", file.uri))?;
    }
    Ok(())
}

async fn one(file: &Fetch, sandbox: &Path, cache: &Path) -> Result<(), String> {
    let target = sandbox.join(name_in_sandbox(file)?);
    if let Some(folder) = target.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(|error| error.to_string())?;
    }
    match local_path(&file.uri) {
        Some(path) => {
            tokio::fs::copy(&path, &target).await.map_err(|error| error.to_string())?;
        }
        None if file.cache => {
            let name = format!("{:x}", HexOf(Sha256::digest(&file.uri).as_slice()));
            let kept = cache.join(name);
            if !tokio::fs::try_exists(&kept).await.unwrap_or(false) {
                tokio::fs::create_dir_all(cache).await.map_err(|error| error.to_string())?;
                // Two instances may fetch the same file at once; whoever ends last replaces it as a whole.
                let partial = kept.with_extension(uuid::Uuid::new_v4().to_string());
                download(&file.uri, &partial).await?;
                tokio::fs::rename(&partial, &kept).await.map_err(|error| error.to_string())?;
            }
            tokio::fs::copy(&kept, &target).await.map_err(|error| error.to_string())?;
        }
        None => download(&file.uri, &target).await?,
    }
    if file.executable {
        let executable = std::fs::Permissions::from_mode(0o755);
        return tokio::fs::set_permissions(&target, executable).await.map_err(|error| error.to_string());
    }
    // What an archive is, is told by the name in the URI; it may be kept under another.
    let Some(archive) = Archive::of(&file.uri).filter(|_| file.extract) else { return Ok(()) };
    let sandbox = sandbox.to_owned();
    let unpacked = tokio::task::spawn_blocking(move || archive.unpack(&target, &sandbox)).await;
    match unpacked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("it could not be unpacked: {error}")),
        Err(error) => Err(error.to_string()),
    }
}

struct HexOf<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexOf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn without_query(uri: &str) -> &str {
    if local_path(uri).is_some() { uri } else { uri.split(['?', '#']).next().unwrap_or(uri) }
}

fn local_path(uri: &str) -> Option<PathBuf> {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn name_in_sandbox(file: &Fetch) -> Result<PathBuf, String> {
    let uri = without_query(&file.uri);
    let last = uri.rsplit('/').next().filter(|name| !name.is_empty());
    let name = file.dest_path.as_deref().or(last).ok_or("it has no file name")?;
    let path = Path::new(name);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(path.to_owned());
    }
    Err(format!("'{name}' leads out of the sandbox"))
}

async fn download(uri: &str, target: &Path) -> Result<(), String> {
    if !uri.starts_with("http://") && !uri.starts_with("https://") {
        return Err("only http, https and local files can be fetched".into());
    }
    let client = super::check::fetch_client().as_ref().map_err(Clone::clone)?;
    let failed = |error: reqwest::Error| super::check::innermost(&error);
    let stalled = |_| "the server has stalled".to_owned();
    let sent = tokio::time::timeout(STALL, client.get(uri).send()).await.map_err(stalled)?;
    let mut response = sent.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    let mut file = tokio::fs::File::create(target).await.map_err(|error| error.to_string())?;
    while let Some(chunk) =
        tokio::time::timeout(STALL, response.chunk()).await.map_err(stalled)?.map_err(failed)?
    {
        file.write_all(&chunk).await.map_err(|error| error.to_string())?;
    }
    file.flush().await.map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archive {
    Tar,
    TarGzip,
    TarBzip2,
    TarXz,
    Gzip,
    Zip,
}

impl Archive {
    fn of(uri: &str) -> Option<Self> {
        let name = without_query(uri).to_ascii_lowercase();
        let endings = [
            (".tar", Archive::Tar),
            (".tgz", Archive::TarGzip),
            (".tar.gz", Archive::TarGzip),
            (".tbz2", Archive::TarBzip2),
            (".tar.bz2", Archive::TarBzip2),
            (".txz", Archive::TarXz),
            (".tar.xz", Archive::TarXz),
            (".gz", Archive::Gzip),
            (".zip", Archive::Zip),
        ];
        endings.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, archive)| *archive)
    }

    /// Neither `tar` nor `zip` lets a member out of the folder it is unpacked into.
    fn unpack(self, file: &Path, into: &Path) -> io::Result<()> {
        let reader = BufReader::new(File::open(file)?);
        match self {
            Archive::Tar => tar::Archive::new(reader).unpack(into),
            Archive::TarGzip => tar::Archive::new(flate2::read::GzDecoder::new(reader)).unpack(into),
            Archive::TarBzip2 => tar::Archive::new(bzip2::read::BzDecoder::new(reader)).unpack(into),
            Archive::TarXz => tar::Archive::new(liblzma::read::XzDecoder::new(reader)).unpack(into),
            Archive::Gzip => {
                let mut plain = File::create(file.with_extension(""))?;
                io::copy(&mut flate2::read::GzDecoder::new(reader), &mut plain).map(drop)
            }
            Archive::Zip => zip::ZipArchive::new(reader)?.extract(into).map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn fetch(uri: &str) -> Fetch {
        Fetch { uri: uri.into(), extract: true, executable: false, cache: false, dest_path: None }
    }

    fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, name, content).expect("in memory");
        builder.into_inner().expect("in memory")
    }

    #[tokio::test]
    async fn archives_of_every_kind_are_unpacked() {
        let dir = tempfile::tempdir().expect("a directory");
        let tar = tar_of("bin/tool", b"#!/bin/sh\n");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).expect("in memory");
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar).expect("in memory");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&tar).expect("in memory");
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        zip.start_file("bin/tool", zip::write::SimpleFileOptions::default()).expect("in memory");
        zip.write_all(b"#!/bin/sh\n").expect("in memory");
        for (name, bytes) in [
            ("a.tar", tar.clone()),
            ("a.tgz", gzip.finish().expect("in memory")),
            ("a.tar.bz2", bzip2.finish().expect("in memory")),
            ("a.txz", xz.finish().expect("in memory")),
            ("a.zip", zip.finish().expect("in memory").into_inner()),
        ] {
            let source = dir.path().join(name);
            std::fs::write(&source, bytes).expect("writable");
            let sandbox = dir.path().join(format!("sandbox-{name}"));
            std::fs::create_dir(&sandbox).expect("writable");
            let uri = format!("file://{}", source.display());
            all(&[fetch(&uri)], &sandbox, dir.path()).await.expect(name);
            assert_eq!(std::fs::read(sandbox.join("bin/tool")).expect(name), b"#!/bin/sh\n", "{name}");
            assert!(sandbox.join(name).exists(), "{name} is kept");
        }
    }

    #[tokio::test]
    async fn names_and_rights() {
        let dir = tempfile::tempdir().expect("a directory");
        let sandbox = dir.path().join("sandbox");
        std::fs::create_dir(&sandbox).expect("writable");
        let source = dir.path().join("tool.tar");
        std::fs::write(&source, b"no archive").expect("writable");
        let uri = source.display().to_string();
        let plain = Fetch { executable: true, dest_path: Some("bin/tool".into()), ..fetch(&uri) };
        all(&[plain], &sandbox, dir.path()).await.expect("an executable is not unpacked");
        let mode = std::fs::metadata(sandbox.join("bin/tool")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        for (file, why) in [
            (Fetch { dest_path: Some("../x".into()), ..fetch(&uri) }, "leads out of the sandbox"),
            (fetch("/nowhere/x"), "No such file"),
            (fetch("hdfs://x/y"), "only http, https and local files"),
            (fetch(&uri), "could not be unpacked"),
        ] {
            let refused = all(std::slice::from_ref(&file), &sandbox, dir.path()).await.expect_err(why);
            assert!(refused.contains(why) && refused.contains(&file.uri), "{refused}");
        }
    }
}
