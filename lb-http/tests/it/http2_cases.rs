//! Cases of HTTP/2 from `tests/fixtures/http2_cases.txt`: frames of a client, and what must be answered.
//!
//! It knows frames and as much of HPACK as cases are written in. What a case means is told at the head of the file.

use std::collections::VecDeque;
use std::net::SocketAddr;

use lb_http::Http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const TYPES: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];

const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// The kind of a frame that an earlier step was about.
const SEEN: u8 = 254;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;

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

#[derive(Clone, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn is(&self, kind: &str) -> bool {
        TYPES.get(usize::from(self.kind)) == Some(&kind)
    }

    fn code(&self) -> &'static str {
        let at = if self.is("GOAWAY") { 4 } else { 0 };
        let code = u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        CODES.get(code as usize).copied().unwrap_or("?")
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = (self.payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Words, of which those in quotation marks may have blanks and escapes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for letter in text.chars() {
        match letter {
            'r' if escaped => word.push('\r'),
            'n' if escaped => word.push('\n'),
            '\\' if quoted => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                word.push('"');
            }
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
        escaped = false;
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

/// A literal without indexing, neither part Huffman-coded.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let string = |bytes: &[u8]| {
        // An integer with a prefix of 7 bits.
        let mut out = Vec::new();
        match bytes.len() {
            n @ ..127 => out.push(n as u8),
            mut n => {
                out.push(127);
                n -= 127;
                while n >= 128 {
                    out.push(n as u8 | 128);
                    n >>= 7;
                }
                out.push(n as u8);
            }
        }
        out.extend(bytes);
        out
    };
    [vec![0], string(name.as_bytes()), string(value)].concat()
}

fn payload(kind: &str, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words(text) {
        if let Some(hex) = word.strip_prefix("hex:") {
            bytes.extend(unhex(hex));
        } else if word.starts_with('"') {
            bytes.extend(word.trim_matches('"').bytes());
        } else if let Some(n) = word.strip_prefix('*').and_then(|n| n.parse::<usize>().ok()) {
            bytes.resize(bytes.len() + n, 0);
        } else if let Some(n) = word.strip_prefix("fields:") {
            (0..n.parse().unwrap()).for_each(|i: u32| bytes.extend(field(&format!("x-{i}"), b"1")));
        } else if matches!(&*word, "get" | "post") {
            bytes.extend(field(":method", word.to_uppercase().as_bytes()));
            for (name, value) in [(":scheme", "http"), (":path", "/"), (":authority", "a.test")] {
                bytes.extend(field(name, value.as_bytes()));
            }
        } else {
            let (name, value) = word.split_once('=').unwrap_or_else(|| panic!("{word:?} in {text:?}"));
            match (kind, value.strip_prefix('*').and_then(|n| n.parse::<usize>().ok())) {
                ("SETTINGS", _) => {
                    bytes.extend(name.parse::<u16>().unwrap().to_be_bytes());
                    bytes.extend(value.parse::<u32>().unwrap().to_be_bytes());
                }
                (_, Some(n)) => bytes.extend(field(name, &vec![b'x'; n])),
                (_, None) => bytes.extend(field(name, value.as_bytes())),
            }
        }
    }
    bytes
}

/// `TYPE [STREAM] [FLAG…] [: PAYLOAD]`.
fn frame(text: &str, stream_of_loop: Option<u32>) -> Frame {
    let (head, body) = text.split_once(" : ").unwrap_or((text, ""));
    let mut head = head.split_whitespace();
    let kind = head.next().unwrap();
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    };
    let stream = stream_of_loop.unwrap_or_else(|| number(head.next().expect("a stream")));
    let position = TYPES.iter().position(|t| *t == kind);
    let mut frame =
        Frame { kind: position.unwrap_or(255) as u8, flags: 0, stream, payload: payload(kind, body) };
    for word in head {
        match word.split_once('=') {
            Some(("type", value)) => frame.kind = number(value) as u8,
            Some(("flags", value)) => frame.flags = number(value) as u8,
            _ => {
                frame.flags |= match word {
                    "END_STREAM" => END_STREAM,
                    "ACK" => ACK,
                    "END_HEADERS" => 0x4,
                    "PADDED" => 0x8,
                    "PRIORITY" => 0x20,
                    _ => panic!("{word:?} is no flag"),
                }
            }
        }
    }
    frame
}

/// The status of a response: its first field, which no earlier one has put into a table.
fn status(block: &[u8]) -> u16 {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    if (0x88..=0x8e).contains(&block[0]) {
        return STATIC[usize::from(block[0] - 0x88)];
    }
    assert_eq!((block[0] & 0x0f, block[1] & 0x80), (8, 0x80), "a name of the table, a Huffman-coded value");
    let bits =
        block[2..].iter().take(usize::from(block[1] & 0x7f)).fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
    let mut left = 8 * u32::from(block[1] & 0x7f);
    let mut take = |n: u32| {
        left -= n;
        bits >> left & ((1 << n) - 1)
    };
    (0..3).fold(0, |status, _| {
        // RFC 7541 appendix B: 0, 1 and 2 have five bits, the other digits six.
        let digit = match take(5) {
            short @ 0..=2 => short,
            long => (long << 1 | take(1)) - 0b01_1001 + 3,
        };
        status * 10 + digit as u16
    })
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
