//! The access log: a line for each request, as JSON or in the Common Log Format, written by a thread of its own.
//!
//! The request path never waits for it: lines go through a bounded queue; those that find it full, or that cannot be
//! written, are counted and dropped. A file that was renamed is opened anew, so it can be rotated. What is not sampled
//! costs a counter. Whoever lets go of the log last waits for its lines.

use std::fmt::Write as _;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::config::{AccessLogConfig, LogFormat, LoggedApps};
use crate::error::StartError;
use crate::http1::fields::Name;
use crate::http1::request::{Request, Version};
use crate::labels::Logged;
use crate::table::Backend;

/// Lines that wait for the disk; at 300 bytes each some 2 MiB.
const MOST_WAITING: usize = 8192;
/// What has not been written so long after the end is lost: standard output may be a pipe that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct AccessLog {
    format: LogFormat,
    one_in: u32,
    apps: LoggedApps,
    n_seen: AtomicU32,
    n_dropped: Arc<AtomicU64>,
    /// `None`: there will be no more.
    lines: Option<SyncSender<String>>,
    /// Ends with the writer.
    writer: Mutex<Receiver<()>>,
}

/// What is known of a request when it comes; the rest follows with its response.
#[derive(Debug)]
pub(crate) struct Record {
    client: IpAddr,
    at: SystemTime,
    started: Instant,
    method: String,
    target: String,
    version: &'static str,
    host: String,
    request_id: String,
    backend: Option<String>,
    pub(crate) server: Option<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// 0: the client left before there was one.
    pub(crate) status: u16,
    /// All that was written to the client, heads as well.
    pub(crate) n_bytes: u64,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    client: IpAddr,
    method: &'a str,
    target: &'a str,
    protocol: &'a str,
    host: &'a str,
    status: u16,
    bytes: u64,
    millis: f64,
    backend: Option<&'a str>,
    server: Option<&'a str>,
    request_id: &'a str,
}

impl AccessLog {
    pub(crate) fn start(config: &AccessLogConfig) -> Result<Self, StartError> {
        let mut writer = Writer::open(config.file.as_deref())?;
        let (lines, waiting) = sync_channel(MOST_WAITING);
        let n_dropped = Arc::clone(&writer.n_dropped);
        let (lives, writer_ends) = sync_channel(0);
        std::thread::spawn(move || {
            writer.write_all(&waiting);
            drop(lives);
        });
        Ok(Self {
            format: config.format,
            one_in: config.one_in.max(1),
            apps: config.apps.clone(),
            n_seen: AtomicU32::new(0),
            n_dropped,
            lines: Some(lines),
            writer: Mutex::new(writer_ends),
        })
    }

    /// Lines that were dropped, which can be told when the log has ended, too.
    pub(crate) fn n_dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.n_dropped)
    }

    /// `None`: this one is not logged.
    pub(crate) fn record(
        &self,
        client: IpAddr,
        request: &Request<'_>,
        backend: Option<&Backend>,
        request_id: &[u8],
    ) -> Option<Box<Record>> {
        if !self.is_wanted(backend) {
            return None;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (begin, rest) = request.path_and_query();
        let id = request.values(Name::XRequestId).next().unwrap_or(request_id);
        Some(Box::new(Record {
            client,
            at: SystemTime::now(),
            started: Instant::now(),
            method: text(request.method_name()),
            target: begin.map(char::from).into_iter().chain(text(rest).chars()).collect(),
            version: match request.version() {
                Version::Http10 => "HTTP/1.0",
                Version::Http11 => "HTTP/1.1",
                Version::Http2 => "HTTP/2.0",
            },
            host: text(request.host()),
            request_id: text(id),
            backend: backend.map(|b| b.name.to_string()),
            server: None,
        }))
    }

    /// Of what was refused before it was understood; it is nobody's.
    pub(crate) fn refused(&self, client: IpAddr) -> Option<Box<Record>> {
        let unknown = || "-".to_owned();
        self.is_wanted(None).then(|| {
            Box::new(Record {
                client,
                at: SystemTime::now(),
                started: Instant::now(),
                method: unknown(),
                target: unknown(),
                version: "-",
                host: String::new(),
                request_id: String::new(),
                backend: None,
                server: None,
            })
        })
    }

    /// A service's own label has the last word.
    fn is_wanted(&self, backend: Option<&Backend>) -> bool {
        let is_sampled = || self.n_seen.fetch_add(1, Relaxed).is_multiple_of(self.one_in);
        match backend.and_then(|b| b.labels.access_log) {
            Some(Logged::No) => false,
            Some(Logged::Yes) => is_sampled(),
            Some(Logged::OneIn(n)) => rand::random_range(0..n.get()) == 0,
            None => match &self.apps {
                LoggedApps::All => is_sampled(),
                LoggedApps::These(apps) => {
                    backend.is_some_and(|b| apps.contains(&b.service.app)) && is_sampled()
                }
                LoggedApps::None => false,
            },
        }
    }

    pub(crate) fn write(&self, record: Record, outcome: Outcome) {
        let line = match self.format {
            LogFormat::Json => record.json(outcome),
            LogFormat::Common => record.common(outcome),
        };
        if self.lines.as_ref().is_none_or(|lines| lines.try_send(line).is_err()) {
            self.n_dropped.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.lines = None;
        // Nothing is ever sent: it ends, or it takes too long.
        if let Ok(writer) = self.writer.get_mut() {
            let _ = writer.recv_timeout(LAST_LINES);
        }
    }
}

/// Where lines end up.
struct Writer {
    /// `None`: standard output.
    path: Option<PathBuf>,
    out: Box<dyn Write + Send>,
    /// Device and inode of the open file.
    file: Option<(u64, u64)>,
    n_dropped: Arc<AtomicU64>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    Failing,
}

impl Writer {
    fn open(path: Option<&Path>) -> Result<Self, StartError> {
        let mut writer = Self {
            path: path.map(Path::to_owned),
            out: Box::new(io::stdout()),
            file: None,
            n_dropped: Arc::default(),
            state: State::Writing,
        };
        writer.follow_path().map_err(|source| {
            let path = path.map_or_else(String::new, |path| path.display().to_string());
            StartError::AccessLog { path, source }
        })?;
        Ok(writer)
    }

    /// Opens the file of that name, unless it is the one that is open: it may have been rotated away.
    fn follow_path(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let identity = |meta: Metadata| (meta.dev(), meta.ino());
        if self.file.is_none() || std::fs::metadata(path).ok().map(identity) != self.file {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            self.file = Some(identity(file.metadata()?));
            self.out = Box::new(file);
        }
        Ok(())
    }

    /// Writes until nobody can send any more, as many lines at once as wait.
    fn write_all(&mut self, waiting: &Receiver<String>) {
        while let Ok(mut lines) = waiting.recv() {
            let mut n_lines = 1;
            for line in waiting.try_iter().take(MOST_WAITING) {
                lines.push_str(&line);
                n_lines += 1;
            }
            let written = self.follow_path().and_then(|()| {
                self.out.write_all(lines.as_bytes())?;
                self.out.flush()
            });
            match written {
                Ok(()) => self.state = State::Writing,
                Err(error) => {
                    self.n_dropped.fetch_add(n_lines, Relaxed);
                    if self.state == State::Writing {
                        tracing::error!(%error, "the access log cannot be written; its lines are dropped until it can");
                    }
                    self.state = State::Failing;
                }
            }
        }
    }
}

impl Record {
    fn json(self, outcome: Outcome) -> String {
        let line = JsonLine {
            time: rfc3339(self.at),
            client: self.client,
            method: &self.method,
            target: &self.target,
            protocol: self.version,
            host: &self.host,
            status: outcome.status,
            bytes: outcome.n_bytes,
            millis: self.started.elapsed().as_micros() as f64 / 1000.0,
            backend: self.backend.as_deref(),
            server: self.server.as_deref(),
            request_id: &self.request_id,
        };
        let mut text = serde_json::to_string(&line).expect("texts and numbers are JSON");
        text.push('\n');
        text
    }

    fn common(self, outcome: Outcome) -> String {
        let mut text = String::new();
        // A quotation mark would end the request's field.
        let target = self.target.replace('\\', "\\\\").replace('"', "\\\"");
        let (client, method, version) = (self.client, &self.method, self.version);
        let date = common_date(self.at);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{client} - - [{date}] \"{method} {target} {version}\" {} {}",
            outcome.status, outcome.n_bytes
        );
        text
    }
}

/// In UTC; what is beyond its years is the epoch.
fn utc(at: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

fn rfc3339(at: SystemTime) -> String {
    format!("{:.3}", utc(at))
}

fn common_date(at: SystemTime) -> String {
    utc(at).strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        for (secs, iso, common) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (951_782_400, "2000-02-29T00:00:00.000Z", "29/Feb/2000:00:00:00 +0000"),
            (1_795_271_999, "2026-11-21T14:39:59.000Z", "21/Nov/2026:14:39:59 +0000"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
            assert_eq!((rfc3339(at), common_date(at)), (iso.to_owned(), common.to_owned()));
        }
    }
}
