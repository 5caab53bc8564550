//! Our parsers and hyper's, given the same generated connections: they understand the same messages, and where they do
//! not, a rule says why.
//!
//! hyper is the looser of the two. Each refusal of what it takes is explained by what is wrong with the message, found
//! without our parser; nothing is explained by the refusal's name alone.

mod requests;
mod responses;

use std::future::poll_fn;
use std::pin::Pin;

use hyper::body::Body;
use hyper::header::HeaderMap;
use lb_http::http1::chunked::{BadChunk, Decoder, Piece};
use lb_http::http1::fields::Field;
use lb_http::http1::scan::HeadLimits;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits { line_bytes: 4096, field_bytes: 8192, n_fields: 50 };

/// Names in lower case and values, in the order of the names; lines of one name in the order they came in.
type Fields = Vec<(String, Vec<u8>)>;

/// What a reader understood of a message.
#[derive(Clone, Debug, Default, PartialEq)]
struct Message {
    /// Method, target and version, or version and status.
    first_line: Vec<String>,
    fields: Fields,
    body: BodyRead,
}

impl Message {
    fn values(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| &value[..]).collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct BodyRead {
    bytes: Vec<u8>,
    trailer: Fields,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum End {
    #[default]
    Whole,
    /// It broke off, or broke a rule.
    Bad,
}

fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Fields {
    let mut fields: Fields = fields.collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields
}

fn ours(head: &[u8], fields: &[Field]) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_ascii_lowercase();
    sorted(fields.iter().map(|field| (text(field.name_in(head)), field.value_in(head).to_vec())))
}

fn hypers(headers: &HeaderMap) -> Fields {
    sorted(headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())))
}

/// The lines of a head, with the empty one that ends it.
fn head_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        lines.push(line);
        if line.trim().is_empty() {
            break;
        }
    }
    lines
}

fn is_ended_badly(line: &&str) -> bool {
    !line.ends_with("\r\n") || line.ends_with("\r\r\n")
}

/// Decodes as much as there is, and says how many bytes that were.
fn our_chunks(mut input: &[u8]) -> (BodyRead, usize) {
    let (n, mut decoder, mut read) = (input.len(), Decoder::default(), BodyRead::default());
    let mut take = |input: &mut &[u8]| -> Result<bool, BadChunk> {
        let (n, is_end) = match decoder.next(input)? {
            Piece::Partial => return Err(BadChunk::Malformed),
            Piece::Framing(n) => (n, false),
            Piece::Data(n) => {
                read.bytes.extend_from_slice(&input[..n]);
                (n, false)
            }
            Piece::TrailerLine(n) => {
                let line = String::from_utf8_lossy(&input[..n - 2]).into_owned();
                let (name, value) = line.split_once(':').expect("a line of a trailer has a colon");
                read.trailer.push((name.to_ascii_lowercase(), value.trim().as_bytes().to_vec()));
                (n, false)
            }
            Piece::End(n) => (n, true),
        };
        *input = &input[n..];
        Ok(is_end)
    };
    let end = loop {
        match take(&mut input) {
            Ok(false) => {}
            Ok(true) => break End::Whole,
            Err(_) => break End::Bad,
        }
    };
    read.end = end;
    read.trailer.sort_by(|(a, _), (b, _)| a.cmp(b));
    (read, n - input.len())
}

async fn hypers_body(mut body: impl Body<Data = hyper::body::Bytes> + Unpin) -> BodyRead {
    let mut read = BodyRead::default();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(frame) = frame else {
            read.end = End::Bad;
            break;
        };
        match frame.into_data() {
            Ok(data) => read.bytes.extend_from_slice(&data),
            Err(frame) => read.trailer.extend(frame.trailers_ref().map(hypers).unwrap_or_default()),
        }
    }
    read
}

/// A number of bytes that whoever is behind us can count, too (2^63 and more overflow).
fn is_length(value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<i64>().is_ok()
}

/// Whether two bodies are the same but for what the rules take from a trailer: lines that frame, route or
/// authenticate (RFC 9110 section 6.5.1), which are the names that we know but for two.
fn same_body(ours: &BodyRead, theirs: &BodyRead) -> bool {
    const KEPT: [&str; 3] = ["x-a", "x-b", "etag"];
    let kept: Fields = theirs.trailer.iter().filter(|(name, _)| KEPT.contains(&&**name)).cloned().collect();
    ours.end == theirs.end && ours.bytes == theirs.bytes && (ours.trailer == kept || ours.end == End::Bad)
}

/// Whether a body begins that is chunked as RFC 9112 section 7.1 has it. hyper takes more: blanks after a size, bare line
/// feeds, any number of zeros.
fn is_strictly_chunked(body: &[u8]) -> bool {
    strictly_chunked(body).is_some()
}

fn strictly_chunked(mut body: &[u8]) -> Option<()> {
    fn line<'b>(body: &mut &'b [u8]) -> Option<&'b str> {
        let end = body.windows(2).position(|two| two == b"\r\n")?;
        let line = std::str::from_utf8(&body[..end]).ok()?;
        *body = &body[end + 2..];
        (!line.contains(|c: char| c.is_ascii_control() && c != '\t')).then_some(line)
    }
    loop {
        let size = line(&mut body)?.split(';').next()?;
        if size.len() > 15 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let n = usize::from_str_radix(size, 16).ok()?;
        if n == 0 {
            break;
        }
        body = body.get(n..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        match line(&mut body)? {
            "" => return Some(()),
            line => {
                let (name, _) = line.split_once(':')?;
                let is_token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                (is_token && !name.is_empty()).then_some(())?;
            }
        }
    }
}

/// Header lines, right and wrong.
fn fields() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        Just("Host"),
        Just("Content-Length"),
        Just("Transfer-Encoding"),
        Just("Connection"),
        Just("Expect"),
        Just("Upgrade"),
        Just("X-A"),
        Just("X-A"),
        Just("x-a"),
        Just("Content_Length"),
        Just("X A"),
        Just(""),
    ];
    let value = prop_oneof![
        Just("a.test".to_owned()),
        Just("5".to_owned()),
        Just("05".to_owned()),
        Just("chunked".to_owned()),
        Just("Chunked".to_owned()),
        Just("gzip, chunked".to_owned()),
        Just("close".to_owned()),
        Just("keep-alive".to_owned()),
        Just("100-continue".to_owned()),
        Just("9223372036854775808".to_owned()),
        "[ -~\t]{0,12}",
        "[\\x00-\\x1f]{1,2}",
    ];
    let end = prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\r\n")];
    let separator = prop_oneof![9 => Just(": "), 1 => Just(":\t"), 1 => Just(" :"), 1 => Just("")];
    let field = (name, separator, value, end).prop_map(|(n, c, v, e)| format!("{n}{c}{v}{e}"));
    prop::collection::vec(field, 0..3)
}

/// A body and the line that frames it: mostly the right one.
fn framed() -> impl Strategy<Value = (String, String)> {
    let size = prop_oneof![
        9 => Just("5"), 1 => Just("005"), 1 => Just("5 "), 1 => Just("0x5"), 1 => Just("5;a=b"), 1 => Just("5;a=\"b;\""),
        1 => Just("+5"), 1 => Just("4"), 1 => Just("00000000000000005"),
    ];
    let line_end = || prop_oneof![9 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
    let trailer = prop_oneof![
        6 => Just(""), 2 => Just("X-A: 1\r\n"), 1 => Just("X-B: 1\r\nETag: x\r\nX-A: 2\r\n"),
        1 => Just("Content-Length: 5\r\n"), 1 => Just("Host: evil\r\nX-A: 1\r\n"), 1 => Just("X A: 1\r\n"), 1 => Just("X-A\r\n"),
    ];
    let chunked = (size, line_end(), line_end(), trailer, line_end()).prop_map(
        |(size, first, second, trailer, last)| {
            (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                format!("{size}{first}HELLO{second}0\r\n{trailer}{last}"),
            )
        },
    );
    prop_oneof![
        2 => Just((String::new(), String::new())),
        2 => Just(("Content-Length: 5\r\n".to_owned(), "HELLO".to_owned())),
        1 => Just(("Content-Length: 9\r\n".to_owned(), "HELLO".to_owned())),
        4 => chunked,
    ]
}
