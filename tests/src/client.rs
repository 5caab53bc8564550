//! A small HTTP/1.1 client over one connection, for tests that care which connection a request takes.
//!
//! It understands `Content-Length` and chunked bodies and nothing finer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// How long any one exchange may take before it counts as failed.
pub const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// One connection, kept open between requests.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = tokio::time::timeout(DEADLINE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one request and reads its answer. `headers` are whole lines without their line end.
    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> anyhow::Result<Response> {
        tokio::time::timeout(DEADLINE, self.exchange(method, target, headers, body)).await?
    }

    async fn exchange(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> anyhow::Result<Response> {
        let mut message = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|h| h.to_ascii_lowercase().starts_with("host:")) {
            message.push_str(&format!("Host: {}\r\n", self.stream.get_ref().peer_addr()?));
        }
        for header in headers {
            message.push_str(header);
            message.push_str("\r\n");
        }
        if !body.is_empty() {
            message.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        message.push_str("\r\n");
        let mut bytes = message.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes).await?;
        self.response(method).await
    }

    /// Sends a request whose answer does not end, and reads the head of that answer; [`Connection::chunk`] reads
    /// on.
    pub async fn begin(&mut self, method: &str, target: &str, headers: &[&str]) -> anyhow::Result<()> {
        let peer = self.stream.get_ref().peer_addr()?;
        let mut message = format!("{method} {target} HTTP/1.1\r\nHost: {peer}\r\n");
        for header in headers {
            message.push_str(header);
            message.push_str("\r\n");
        }
        message.push_str("\r\n");
        self.stream.get_mut().write_all(message.as_bytes()).await?;
        let status = self.line().await?;
        while !self.line().await?.is_empty() {}
        if !status.contains(" 200 ") {
            bail!("{target} was answered with {status}");
        }
        Ok(())
    }

    async fn response(&mut self, method: &str) -> anyhow::Result<Response> {
        let status_line = self.line().await?;
        let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status: u16 = status.with_context(|| format!("status line {status_line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if method == "HEAD" || matches!(status, 100..200 | 204 | 304) {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            while let Some(chunk) = self.chunk().await? {
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse()?];
            self.stream.read_exact(&mut response.body).await?;
        } else {
            self.stream.read_to_end(&mut response.body).await?;
        }
        Ok(response)
    }

    /// Reads one chunk of a chunked body; `None` at the last one.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk).await?;
        self.line().await?;
        Ok((size > 0).then_some(chunk))
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// One GET over a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> anyhow::Result<Response> {
    get_with(address, target, &[]).await
}

pub async fn get_with(address: SocketAddr, target: &str, headers: &[&str]) -> anyhow::Result<Response> {
    let mut all = vec!["Connection: close"];
    all.extend(headers);
    Connection::open(address).await?.request("GET", target, &all, b"").await
}
