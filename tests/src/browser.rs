//! A headless Chromium, driven through its debugging pipe (file descriptors 3 and 4, messages ended by NUL).
//!
//! It knows three things: open a page, evaluate an expression in it, and what the page complained about.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::client::DEADLINE;

#[derive(Debug)]
pub struct Browser {
    _child: Child,
    _profile: tempfile::TempDir,
    requests: pipe::Sender,
    messages: BufReader<pipe::Receiver>,
    n_requests: u64,
    session: Option<String>,
    loaded: bool,
    complaints: Vec<String>,
}

impl Browser {
    /// `None` when no Chromium is installed.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let profile = tempfile::tempdir()?;
        let (browser_reads, we_write) = pipe_pair()?;
        let (we_read, browser_writes) = pipe_pair()?;
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let (reads, writes) = (browser_reads.as_raw_fd(), browser_writes.as_raw_fd());
        // SAFETY: only fcntl(2) and dup2(2) between fork and exec; the descriptors are above 4, see `pipe_pair`.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(reads, 3) < 0 || libc::dup2(writes, 4) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Self {
            _child: child,
            _profile: profile,
            requests: pipe::Sender::from_owned_fd(we_write)?,
            messages: BufReader::new(pipe::Receiver::from_owned_fd(we_read)?),
            n_requests: 0,
            session: None,
            loaded: false,
            complaints: Vec::new(),
        }))
    }

    /// Opens a page in a tab of its own, which later evaluations are about.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attached = self
            .call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}))
            .await?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        self.call("Runtime.enable", json!({})).await?;
        self.call("Log.enable", json!({})).await?;
        self.call("Page.enable", json!({})).await?;
        self.loaded = false;
        let navigated = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = navigated["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        tokio::time::timeout(2 * DEADLINE, async {
            while !self.loaded {
                let message = self.message().await?;
                self.heard(&message);
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("{url} does not load"))?
    }

    /// Evaluates an expression and waits for it when it is a promise.
    pub async fn evaluate(&mut self, expression: &str) -> anyhow::Result<Value> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", parameters).await?;
        if let Some(details) = answer.get("exceptionDetails") {
            bail!("{expression}: {details}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    pub async fn until(&mut self, expression: &str) -> anyhow::Result<()> {
        let poll = format!(
            "new Promise(resolve => {{ const look = () => ({expression}) ? resolve(true) : setTimeout(look, 20); look(); }})"
        );
        let waited = tokio::time::timeout(DEADLINE, self.evaluate(&poll)).await;
        waited.with_context(|| format!("never true in the page: {expression}"))??;
        Ok(())
    }

    /// Console errors, exceptions and policy violations of the pages so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    async fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.n_requests += 1;
        let id = self.n_requests;
        let mut request = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session
            && !method.starts_with("Target.")
        {
            request["sessionId"] = json!(session);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        self.requests.write_all(&bytes).await?;
        let answer = tokio::time::timeout(2 * DEADLINE, async {
            loop {
                let message = self.message().await?;
                if message["id"] == json!(id) {
                    return anyhow::Ok(message);
                }
                self.heard(&message);
            }
        });
        let answer = answer.await.with_context(|| format!("no answer to {method}"))??;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer["result"].clone())
    }

    async fn message(&mut self) -> anyhow::Result<Value> {
        let mut message = Vec::new();
        if self.messages.read_until(0, &mut message).await? == 0 {
            bail!("the browser has gone");
        }
        message.pop();
        Ok(serde_json::from_slice(&message)?)
    }

    fn heard(&mut self, message: &Value) {
        let params = &message["params"];
        self.loaded |= message["method"] == "Page.loadEventFired";
        let bad = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            Some("Page.javascriptDialogOpening") => true,
            _ => false,
        };
        if bad {
            self.complaints.push(params.to_string());
        }
    }
}

/// A pipe, (read end, write end), with numbers that leave 3 and 4 free.
fn pipe_pair() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2(2) fills the two numbers; each is owned by exactly one OwnedFd from here on.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let mut high = [0; 2];
        for (end, high) in ends.iter().zip(&mut high) {
            *high = libc::fcntl(*end, libc::F_DUPFD_CLOEXEC, 10);
            libc::close(*end);
            if *high < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
        }
        Ok((OwnedFd::from_raw_fd(high[0]), OwnedFd::from_raw_fd(high[1])))
    }
}
