//! Raw cases of HTTP/1.1 from `tests/fixtures/http_cases.jsonl`: bytes of a client or an endpoint, and what must
//! happen.
//!
//! A case is a connection. Its endpoint is strict: whatever reaches it that is not one well-formed request after the
//! other fails the case, whatever the case was about. A character U+0000 to U+00FF of a case's text is one byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// All of the balancer's patience, so that a case without an answer ends soon.
const PATIENCE: Duration = Duration::from_millis(400);
const N_WORKERS: usize = 8;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    /// Where it is written that it must be so, or the reason.
    #[serde(rename = "rule")]
    _rule: String,
    send: Vec<Text>,
    /// Bytes that come one by one, each before the balancer would give up waiting for it.
    #[serde(default)]
    drips: String,
    /// The client says that it will send nothing more.
    #[serde(default)]
    half_close: bool,
    /// Absent: 200 with a short body.
    endpoint: Option<Reply>,
    #[serde(default)]
    endpoint_closes: bool,
    expect: Expect,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Once(String),
    Repeated(String, usize),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Reply {
    One(String),
    Texts(Vec<Text>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Refused with this status, the connection closed, nothing forwarded.
    status: Option<u16>,
    /// One of these, and closed; what was forwarded never became a whole request.
    status_in: Option<Vec<u16>>,
    /// Begins of the first lines of what was forwarded, all of it in order; statuses are 200 unless `gives` says other.
    forwards: Option<Vec<String>>,
    /// All statuses that the client sees, interim ones, too.
    gives: Option<Vec<u16>>,
    gives_last: Option<u16>,
    /// Lines of the first forwarded head, names in lower case.
    #[serde(default)]
    has: Vec<String>,
    /// Names that are not in it.
    #[serde(default)]
    lacks: Vec<String>,
    /// Of the first forwarded request.
    body: Option<String>,
    trailer: Option<Vec<String>>,
    client_body: Option<String>,
    #[serde(default)]
    client_lacks: Vec<String>,
    /// The client is told that the connection ends.
    #[serde(default)]
    close: bool,
    /// The client can tell that the response is incomplete.
    #[serde(default)]
    cut: bool,
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("cases are written in Latin-1")).collect()
}

fn expand(texts: &[Text]) -> Vec<u8> {
    let one = |text: &Text| match text {
        Text::Once(text) => bytes(text),
        Text::Repeated(text, n) => bytes(text).repeat(*n),
    };
    texts.iter().flat_map(one).collect()
}

/// A message with its body, as a strict reader understands it.
#[derive(Clone, Debug, Default)]
struct Message {
    first_line: String,
    /// `name: value`, the name in lower case.
    lines: Vec<String>,
    body: Vec<u8>,
    trailer: Vec<String>,
    is_whole: bool,
}

impl Message {
    fn field(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
    }

    fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_default()
    }
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// Takes lines up to an empty one. `Ok(None)`: more must come.
fn take_lines(input: &[u8]) -> Result<Option<(Vec<String>, usize)>, String> {
    let (mut lines, mut at) = (Vec::new(), 0);
    while let Some(n) = input[at..].iter().position(|b| *b == b'\n') {
        let line = input[at..at + n].strip_suffix(b"\r").ok_or("a bare line feed")?;
        if line.iter().any(|b| matches!(b, 0 | b'\r')) {
            return Err(format!("a control character in {:?}", latin(line)));
        }
        at += n + 1;
        if line.is_empty() {
            return Ok(Some((lines, at)));
        }
        lines.push(latin(line));
    }
    Ok(None)
}

fn take_fields(lines: &[String]) -> Result<Vec<String>, String> {
    let field = |line: &String| {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon: {line:?}"))?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return Err(format!("no name: {line:?}"));
        }
        Ok(format!("{}: {}", name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])))
    };
    lines.iter().map(field).collect()
}

/// Takes one message. `Ok(None)`: more must come. `until_close` says what a body without framing is.
fn take_message(input: &[u8], bodiless: bool, until_close: bool) -> Result<Option<(Message, usize)>, String> {
    let Some((lines, mut at)) = take_lines(input)? else { return Ok(None) };
    let (first, rest) = lines.split_first().ok_or("an empty line")?;
    let mut message = Message {
        first_line: first.clone(),
        lines: take_fields(rest)?,
        is_whole: true,
        ..Message::default()
    };
    let all = |name: &str| message.lines.iter().filter(|l| l.starts_with(&format!("{name}: "))).count();
    let (n_lengths, n_codings) = (all("content-length"), all("transfer-encoding"));
    if n_lengths + n_codings > 1 {
        return Err(format!("framed more than once: {:?}", message.lines));
    }
    if bodiless {
        return Ok(Some((message, at)));
    }
    if n_codings == 1 {
        if message.field("transfer-encoding") != Some("chunked") {
            return Err(format!("framed in an unknown way: {:?}", message.lines));
        }
        return take_chunks(message, input, at);
    }
    let left = input.len() - at;
    let length = match message.field("content-length") {
        Some(text) => {
            text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit())).ok_or("a bad length")?
        }
        None if until_close => left,
        None => 0,
    };
    message.is_whole = left >= length;
    let n = length.min(left);
    message.body = input[at..at + n].to_vec();
    at += n;
    Ok(Some((message, at)))
}

fn take_chunks(
    mut message: Message,
    input: &[u8],
    mut at: usize,
) -> Result<Option<(Message, usize)>, String> {
    loop {
        message.is_whole = false;
        let Some(n) = input[at..].windows(2).position(|w| w == b"\r\n") else {
            return Ok(Some((message, input.len())));
        };
        let digits = latin(&input[at..at + n]);
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("a bad chunk size {digits:?}"));
        }
        let size = usize::from_str_radix(&digits, 16).map_err(|e| e.to_string())?;
        at += n + 2;
        if size == 0 {
            let Some((lines, n)) = take_lines(&input[at..])? else {
                return Ok(Some((message, input.len())));
            };
            message.trailer = take_fields(&lines)?;
            message.is_whole = true;
            return Ok(Some((message, at + n)));
        }
        let there = size.min(input.len() - at);
        message.body.extend_from_slice(&input[at..at + there]);
        if input.len() < at + size + 2 {
            return Ok(Some((message, input.len())));
        }
        if &input[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk that does not end".to_owned());
        }
        at += size + 2;
    }
}

/// What an endpoint saw.
#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Message>,
    wrong: Option<String>,
}

#[derive(Clone, Default)]
struct Endpoint {
    seen: Arc<Mutex<Seen>>,
    reply: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Endpoint {
    async fn start(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let endpoint = endpoint.clone();
                tokio::spawn(async move {
                    // A connection that the balancer cuts is no event: what matters was recorded.
                    let _ = endpoint.serve(stream).await;
                });
            }
        });
        port
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut input, mut said_continue) = (Vec::new(), false);
        loop {
            let taken = take_message(&input, false, false);
            let expects = latin(&input).to_ascii_lowercase().contains("\r\nexpect: 100-continue\r\n");
            if expects && !said_continue && matches!(taken, Ok(Some(_))) {
                said_continue = true;
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            if let Ok(Some((message, n))) = &taken
                && message.is_whole
            {
                self.seen.lock().unwrap().requests.push(message.clone());
                input.drain(..*n);
                said_continue = false;
                let (reply, closes) = self.reply.lock().unwrap().clone();
                stream.write_all(&reply).await?;
                if closes {
                    return Ok(());
                }
                continue;
            }
            if let Err(wrong) = taken {
                self.seen.lock().unwrap().wrong.get_or_insert(wrong);
                return Ok(());
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// Everything that the client got until the connection ended.
async fn converse(address: std::net::SocketAddr, case: &Case) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let send = async {
        // The balancer may close before all is sent, as it should.
        if writer.write_all(&expand(&case.send)).await.is_err() {
            return;
        }
        for byte in bytes(&case.drips) {
            tokio::time::sleep(PATIENCE / 8).await;
            if writer.write_all(&[byte]).await.is_err() {
                return;
            }
        }
        if case.half_close {
            let _ = writer.shutdown().await;
        } else {
            // Held open until the balancer ends it.
            std::future::pending::<()>().await;
        }
    };
    let receive = async {
        let mut got = Vec::new();
        // A reset ends it as well.
        while reader.read_buf(&mut got).await.is_ok_and(|n| n > 0) {}
        got
    };
    let receiving = async {
        let mut receive = std::pin::pin!(receive);
        tokio::select! {
            got = &mut receive => got,
            () = send => receive.await,
        }
    };
    soon(&case.id, receiving).await
}

/// The responses that the client got.
fn responses(case: &Case, mut got: &[u8]) -> Result<Vec<Message>, String> {
    let mut heads: VecDeque<bool> = latin(&expand(&case.send))
        .split("\r\n")
        .filter(|l| l.contains(" HTTP/1."))
        .map(|l| l.starts_with("HEAD "))
        .collect();
    let mut all = Vec::new();
    while !got.is_empty() {
        let status: u16 = latin(got.get(9..12).unwrap_or_default()).parse().unwrap_or_default();
        let is_interim = (100..200).contains(&status);
        let to_head = *heads.front().unwrap_or(&false);
        let bodiless = is_interim || to_head || status == 204 || status == 304;
        let taken = take_message(got, bodiless, true)?;
        let (message, n) = taken.ok_or_else(|| format!("half a head: {:?}", latin(got)))?;
        if !is_interim {
            heads.pop_front();
        }
        all.push(message);
        got = &got[n..];
    }
    Ok(all)
}

fn judge(case: &Case, seen: &Seen, got: &[u8]) -> Result<(), String> {
    let expect = &case.expect;
    if let Some(wrong) = &seen.wrong {
        return Err(format!("the endpoint got what is no request: {wrong}"));
    }
    let all = responses(case, got)?;
    let statuses: Vec<u16> = all.iter().map(Message::status).collect();
    let says_close = all.last().is_some_and(|last| last.field("connection") == Some("close"));
    let same = |what: &str, is: &dyn std::fmt::Debug, must: &dyn std::fmt::Debug| {
        let (is, must) = (format!("{is:?}"), format!("{must:?}"));
        if is == must { Ok(()) } else { Err(format!("{what}: {is}, not {must}")) }
    };
    let lines: Vec<&str> = seen.requests.iter().map(|r| &*r.first_line).collect();
    let forwards = expect.forwards.clone().unwrap_or_default();
    if lines.len() != forwards.len() || !lines.iter().zip(&forwards).all(|(l, f)| l.starts_with(f)) {
        return Err(format!("forwarded: {lines:?}, not {forwards:?}"));
    }
    if let Some(status) = expect.status {
        same("statuses", &statuses, &[status])?;
    } else if let Some(any) = &expect.status_in {
        if statuses.len() != 1 || !any.contains(&statuses[0]) {
            return Err(format!("statuses: {statuses:?}, not one of {any:?}"));
        }
    } else if let Some(last) = expect.gives_last {
        same("last status", &statuses.last(), &Some(last))?;
    } else if !expect.cut {
        let usual = vec![200; forwards.len()];
        same("statuses", &statuses, expect.gives.as_ref().unwrap_or(&usual))?;
    }
    let must_close = expect.close || expect.status.is_some() || expect.status_in.is_some();
    if must_close && !says_close {
        return Err("the client is not told that the connection ends".to_owned());
    }
    let is_whole = all.iter().all(|response| response.is_whole);
    same("the last response is whole", &is_whole, &!expect.cut)?;
    if let Some(first) = seen.requests.first() {
        for line in &expect.has {
            if !first.lines.contains(line) {
                return Err(format!("{line:?} is not in {:?}", first.lines));
            }
        }
        for name in &expect.lacks {
            if first.field(name).is_some() {
                return Err(format!("{name:?} is in {:?}", first.lines));
            }
        }
        if let Some(body) = &expect.body {
            same("body", &latin(&first.body), body)?;
        }
        if let Some(trailer) = &expect.trailer {
            same("trailer", &first.trailer, trailer)?;
        }
    }
    if let Some(body) = &expect.client_body {
        same("body of the response", &all.last().map(|r| latin(&r.body)), &Some(body))?;
    }
    for absent in &expect.client_lacks {
        if latin(got).contains(absent) {
            return Err(format!("the client got {absent:?}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_is_served_or_refused_as_the_rules_say() {
    let text = include_str!("../fixtures/http_cases.jsonl");
    let cases: Vec<Case> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let n_cases = cases.len();
    assert!(n_cases >= 518, "{n_cases}");
    let mut cluster = Cluster::with(|config| {
        let timeouts = &mut config.timeouts;
        timeouts.client_header = PATIENCE;
        timeouts.client_body_idle = PATIENCE;
        timeouts.client_keepalive = PATIENCE;
        timeouts.server_head = PATIENCE;
        timeouts.server_body_idle = PATIENCE;
    })
    .await;
    let queue = Arc::new(Mutex::new(VecDeque::from(cases)));
    let mut workers = tokio::task::JoinSet::new();
    const IDS: [&str; N_WORKERS] = ["/c0", "/c1", "/c2", "/c3", "/c4", "/c5", "/c6", "/c7"];
    for id in IDS {
        let endpoint = Endpoint::default();
        let app = AppSpec::new(id).instance(endpoint.start().await);
        cluster.put(&app).await;
        let queue = Arc::clone(&queue);
        workers.spawn(async move {
            let mut failed = Vec::new();
            loop {
                let Some(case) = queue.lock().unwrap().pop_front() else { return failed };
                let reply = match &case.endpoint {
                    None => ok("answer"),
                    Some(Reply::One(text)) => bytes(text),
                    Some(Reply::Texts(texts)) => expand(texts),
                };
                *endpoint.reply.lock().unwrap() = (reply, case.endpoint_closes);
                *endpoint.seen.lock().unwrap() = Seen::default();
                let got = converse(app.address(), &case).await;
                let seen = std::mem::take(&mut *endpoint.seen.lock().unwrap());
                if let Err(why) = judge(&case, &seen, &got) {
                    failed.push(format!("{}: {why}", case.id));
                }
            }
        });
    }
    let mut failed: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    failed.sort();
    assert!(failed.is_empty(), "{} of {n_cases} cases failed:\n{}", failed.len(), failed.join("\n"));
    cluster.stop().await;
}
