//! One question to one server: a connect, a TLS handshake, or a request for a path.
//!
//! It reads no more of a response than its first line, and judges nothing but that.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use l4_vip::proxy_protocol;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

use super::{CheckResult, Report};
use crate::access::Scheme;
use crate::labels::{CheckKind, CheckSpec, ProxyVersion};
use crate::tls::UNVERIFIED;

/// A status line has a reason of any length; the code stands in front.
const STATUS_BYTES: usize = "HTTP/1.1 200".len();

/// What came instead of an answer, for people.
struct Failed(CheckResult, String);

pub(super) async fn run(address: SocketAddr, spec: &CheckSpec, announced: Option<ProxyVersion>) -> Report {
    let began = Instant::now();
    let asked = ask(address, spec, announced).await;
    let took = began.elapsed();
    match asked {
        Ok(None) => {
            Report { result: CheckResult::Connected, code: None, took, detail: "connected".to_owned() }
        }
        Ok(Some(code)) => {
            let is_ok = (200..400).contains(&code);
            let result = if is_ok { CheckResult::Answered } else { CheckResult::BadStatus };
            Report { result, code: Some(code), took, detail: format!("status {code}") }
        }
        Err(Failed(result, detail)) => Report { result, code: None, took, detail },
    }
}

/// The status of the response, if one was asked for.
async fn ask(
    address: SocketAddr,
    spec: &CheckSpec,
    announced: Option<ProxyVersion>,
) -> Result<Option<u16>, Failed> {
    let deadline = tokio::time::Instant::now() + spec.timeout;
    let limit = Limit { deadline, timeout: spec.timeout };
    let mut stream =
        limit.of(CheckResult::ConnectTimeout, CheckResult::NotConnected, TcpStream::connect(address)).await?;
    if let Some(version) = announced {
        let header = proxy_protocol::local(version);
        let written = stream.write_all(&header);
        limit.of(CheckResult::ConnectTimeout, CheckResult::NotConnected, written).await?;
    }
    let CheckKind::Http { scheme, method, path, host } = &spec.kind else { return Ok(None) };
    // As HAProxy asks: HTTP/1.0 where no host is known.
    let request = match host {
        Some(host) => format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        None => format!("{method} {path} HTTP/1.0\r\nConnection: close\r\n\r\n"),
    };
    let code = match scheme {
        Scheme::Http => {
            let answer = status(&mut stream, &request);
            limit.of(CheckResult::ResponseTimeout, CheckResult::BadResponse, answer).await?
        }
        Scheme::Https => {
            let name = ServerName::IpAddress(address.ip().into());
            // Instances have certificates for their clients, not for the balancer that asks by address.
            let connect = TlsConnector::from(Arc::clone(&UNVERIFIED)).connect(name, stream);
            let mut stream =
                limit.of(CheckResult::HandshakeTimeout, CheckResult::HandshakeFailed, connect).await?;
            let answer = status(&mut stream, &request);
            limit.of(CheckResult::ResponseTimeout, CheckResult::BadResponse, answer).await?
        }
    };
    Ok(Some(code))
}

struct Limit {
    deadline: tokio::time::Instant,
    timeout: Duration,
}

impl Limit {
    async fn of<T>(
        &self,
        late: CheckResult,
        failed: CheckResult,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Failed> {
        match timeout_at(self.deadline, step).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Failed(failed, error.to_string())),
            Err(_) => Err(Failed(late, format!("nothing within {:?}", self.timeout))),
        }
    }
}

async fn status(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> io::Result<u16> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut line = [0; STATUS_BYTES];
    stream.read_exact(&mut line).await?;
    let code = line.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..)?).ok());
    let code = code.and_then(|code| code.parse().ok()).filter(|code| (100..600).contains(code));
    code.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no HTTP response"))
}
