//! Cases of HTTP/2 from `tests/fixtures/http2_cases.txt`: frames of a client, and what must be answered.
//!
//! What a case means is told at the head of the file.

use std::collections::VecDeque;
use std::net::SocketAddr;

use lb_http::Http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http2_frames::*;
use crate::support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The kind of a frame that an earlier step was about.
const SEEN: u8 = 254;

struct Case {
    id: &'static str,
    text: &'static str,
    steps: Vec<&'static str>,
}

fn cases(text: &'static str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix("case ") {
            Some(rest) => {
                let (id, text) = rest.split_once(' ').unwrap();
                cases.push(Case { id, text, steps: Vec::new() });
            }
            None => cases.last_mut().expect("a case comes first").steps.push(line),
        }
    }
    cases
}

struct Conversation {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What has come and was not waited for yet.
    frames: VecDeque<Frame>,
    is_closed: bool,
    n_pings: u64,
}

impl Conversation {
    async fn send(&mut self, bytes: &[u8]) {
        // What the other side does not want to read, because it has closed, is told by what it says.
        let _ = self.stream.write_all(bytes).await;
    }

    /// `false`: there will be no more.
    async fn read(&mut self) -> bool {
        loop {
            if let Some(length) = self.buffer.first_chunk::<3>() {
                let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
                if self.buffer.len() >= 9 + length {
                    let rest = self.buffer.split_off(9 + length);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                    let frame =
                        Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() };
                    self.frames.push_back(frame);
                    return true;
                }
            }
            if self.is_closed {
                return false;
            }
            self.is_closed = self.stream.read_buf(&mut self.buffer).await.map_or(true, |n| n == 0);
        }
    }

    /// The first frame that fits. Others stay for later steps, but an end of a stream or of the connection that nobody
    /// waits for is a failure.
    async fn wait(&mut self, fits: impl Fn(&Frame) -> bool) -> Result<Frame, String> {
        let mut at = 0;
        loop {
            while let Some(frame) = self.frames.get(at) {
                if fits(frame) {
                    return Ok(self.frames.remove(at).expect("it was just looked at"));
                }
                if frame.is("GOAWAY") || frame.is("RST_STREAM") {
                    return Err(format!(
                        "{} {} on {}",
                        TYPES[usize::from(frame.kind)],
                        frame.code(),
                        frame.stream
                    ));
                }
                at += 1;
            }
            let end = match tokio::time::timeout(DEADLINE, self.read()).await {
                Ok(true) => continue,
                Ok(false) => "closed",
                Err(_) => "nothing more",
            };
            let seen: Vec<_> = self.frames.iter().map(|f| (f.kind, f.stream)).collect();
            return Err(format!("{end}, after {seen:?}"));
        }
    }

    async fn expect(&mut self, expectation: &str) -> Result<(), String> {
        let parts = words(expectation);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<u32>().unwrap();
        let has_code = |frame: &Frame, codes: &str| codes.split('|').any(|code| code == frame.code());
        match parts[..] {
            ["SETTINGS"] => match self.wait(|_| true).await? {
                frame if frame.is("SETTINGS") && frame.flags & ACK == 0 => Ok(()),
                frame => Err(format!("{frame:?}")),
            },
            ["settings-ack"] => self.wait(|f| f.is("SETTINGS") && f.flags & ACK > 0).await.map(drop),
            ["ping", hex] => {
                let bytes = unhex(hex);
                self.wait(|f| f.is("PING") && f.flags & ACK > 0 && f.payload == bytes).await.map(drop)
            }
            ["alive"] => {
                self.n_pings += 1;
                let payload = self.n_pings.to_be_bytes().to_vec();
                let ping = Frame { kind: 6, flags: 0, stream: 0, payload: payload.clone() };
                self.send(&ping.bytes()).await;
                self.wait(|f| f.is("PING") && f.flags & ACK > 0 && f.payload == payload).await.map(drop)
            }
            ["closed"] => {
                while !self.is_closed {
                    let read = tokio::time::timeout(DEADLINE, self.stream.read_buf(&mut self.buffer)).await;
                    self.is_closed = read.map_err(|_| "it stays open")?.map_or(true, |n| n == 0);
                }
                Ok(())
            }
            ["status", stream, expected] => {
                let stream = number(stream);
                let frame = self.wait(|f| f.is("HEADERS") && f.stream == stream).await?;
                match status(&frame.payload) {
                    // Of an alternative, maybe.
                    other if other.to_string() != expected => {
                        self.frames.push_front(frame);
                        Err(format!("status {other}"))
                    }
                    _ => {
                        // Its end may be in it.
                        self.frames.push_front(Frame { kind: SEEN, ..frame });
                        Ok(())
                    }
                }
            }
            ["end", stream] => {
                let stream = number(stream);
                let is_end = |f: &Frame| {
                    f.stream == stream && matches!(f.kind, 0 | 1 | SEEN) && f.flags & END_STREAM > 0
                };
                let end = self.wait(is_end).await?;
                self.frames.push_front(Frame { kind: SEEN, payload: vec![], ..end });
                Ok(())
            }
            ["data", _, "0"] => match self.frames.iter().any(|f| f.is("DATA") && !f.payload.is_empty()) {
                true => Err("there is data".to_owned()),
                false => Ok(()),
            },
            // Of the stream from its beginning, in however many frames.
            ["data", stream, n] => {
                let (stream, n) = (number(stream), number(n) as usize);
                let mut total = Vec::new();
                while total.len() < n {
                    let frame = self.wait(|f| f.is("DATA") && f.stream == stream).await?;
                    total.extend(frame.payload);
                }
                let n_got = total.len();
                self.frames.push_front(Frame { kind: 0, flags: 0, stream, payload: total });
                if n_got == n { Ok(()) } else { Err(format!("{n_got} bytes")) }
            }
            ["text", stream, expected] => {
                let stream = number(stream);
                let mut text = String::new();
                loop {
                    let frame = self.wait(|f| f.is("DATA") && f.stream == stream).await?;
                    text.push_str(&String::from_utf8_lossy(&frame.payload));
                    if frame.flags & END_STREAM > 0 {
                        break;
                    }
                }
                let is_there = |expected: &str| {
                    let expected = expected.trim_matches('"');
                    text.to_lowercase().contains(&expected.to_lowercase())
                };
                if expected.split("\"|\"").any(is_there) { Ok(()) } else { Err(format!("{text:?}")) }
            }
            ["reset", stream, codes] => {
                let stream = number(stream);
                let frame = self.wait(|f| f.is("RST_STREAM") && f.stream == stream).await?;
                if has_code(&frame, codes) { Ok(()) } else { Err(format!("reset by {}", frame.code())) }
            }
            ["goaway", codes] => {
                // Errors of streams may come before it.
                let frame = loop {
                    let frame = self.wait(|f| f.is("GOAWAY") || f.is("RST_STREAM")).await?;
                    if frame.is("GOAWAY") {
                        break frame;
                    }
                };
                if !has_code(&frame, codes) {
                    return Err(format!("GOAWAY {}", frame.code()));
                }
                Box::pin(self.expect("closed")).await
            }
            ["error", stream, codes] => {
                let stream = number(stream);
                let is_error = |f: &Frame| (f.is("RST_STREAM") && f.stream == stream) || f.is("GOAWAY");
                let is_answer = |f: &Frame| f.is("HEADERS") && f.stream == stream;
                let frame = self.wait(|f| is_error(f) || is_answer(f)).await?;
                if is_answer(&frame) {
                    let status = status(&frame.payload);
                    self.frames.push_front(frame);
                    return Err(format!("status {status}"));
                }
                if has_code(&frame, codes) { Ok(()) } else { Err(frame.code().to_owned()) }
            }
            _ => panic!("{expectation:?} is no expectation"),
        }
    }

    async fn step(&mut self, step: &str) -> Result<(), String> {
        if let Some(expectations) = step.strip_prefix("< ") {
            let mut failures = Vec::new();
            for expectation in expectations.split(" or ") {
                // What comes during one alternative is there for the next.
                match self.expect(expectation).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failures.push(failure),
                }
            }
            return Err(failures.join("; "));
        }
        let send = step.strip_prefix("> ").unwrap_or_else(|| panic!("{step:?} is no step"));
        let (first, rest) = send.split_once(' ').unwrap_or((send, ""));
        let bytes = match first {
            "raw" => Vec::new(),
            "preface" => PREFACE.to_vec(),
            "bytes" => payload("", rest),
            "each" => {
                let (range, frames) = rest.split_once(' ').unwrap();
                let (begin, end) = range.split_once("..").unwrap();
                let streams = (begin.parse().unwrap()..=end.parse().unwrap()).step_by(2);
                let each = |stream| frames.split(" ; ").flat_map(move |f| frame(f, Some(stream)).bytes());
                streams.flat_map(each).collect()
            }
            "repeat" => {
                let (n, one) = rest.split_once(' ').unwrap();
                frame(one, None).bytes().repeat(n.parse().unwrap())
            }
            _ => frame(send, None).bytes(),
        };
        self.send(&bytes).await;
        Ok(())
    }
}

async fn run(address: SocketAddr, case: &Case) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut conversation =
        Conversation { stream, buffer: Vec::new(), frames: VecDeque::new(), is_closed: false, n_pings: 0 };
    let handshake: &[&str] = match case.steps[0] {
        "> raw" => &[],
        _ => &["> preface", "> SETTINGS 0", "< SETTINGS", "> SETTINGS 0 ACK", "< settings-ack"],
    };
    for step in handshake.iter().chain(&case.steps) {
        conversation.step(step).await.map_err(|failure| format!("{step}: {failure}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn every_case_holds() {
    let mut cluster = Cluster::with(|c| c.http2 = Http2::WithPriorKnowledge).await;
    let backend = Backend::with(|port, request| match request.head.starts_with("HEAD") {
        true => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec()),
        false => Reply::Bytes(ok(&format!("{port}\n{}", request.head))),
    })
    .await;
    let app = AppSpec::new("/a").instance(backend.port);
    cluster.put(&app).await;
    let wanted = std::env::var("HTTP2_CASE").ok();
    let (mut n, mut failures) = (0, Vec::new());
    for case in cases(include_str!("../fixtures/http2_cases.txt")) {
        if wanted.as_deref().is_some_and(|id| id != case.id) {
            continue;
        }
        n += 1;
        if let Err(failure) = run(app.address(), &case).await {
            failures.push(format!("{} {}: {failure}", case.id, case.text));
        }
    }
    assert!(n > 0, "there are cases");
    assert!(failures.is_empty(), "{} of {n} failed:\n{}", failures.len(), failures.join("\n"));
    // Whatever a client did, the next one is served.
    let mut client = Client::connect(app.address()).await;
    assert_eq!(client.get("").await.status(), 200);
    cluster.stop().await;
}
