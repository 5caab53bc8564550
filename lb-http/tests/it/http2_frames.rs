//! Frames of HTTP/2 as cases write them, and as they are on the wire; as much of HPACK as that wants.

pub const TYPES: [&str; 10] = [
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

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn is(&self, kind: &str) -> bool {
        TYPES.get(usize::from(self.kind)) == Some(&kind)
    }

    pub fn code(&self) -> &'static str {
        let at = if self.is("GOAWAY") { 4 } else { 0 };
        let code = u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        CODES.get(code as usize).copied().unwrap_or("?")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = (self.payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Words, of which those in quotation marks may have blanks and escapes.
pub fn words(text: &str) -> Vec<String> {
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

pub fn payload(kind: &str, text: &str) -> Vec<u8> {
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
pub fn frame(text: &str, stream_of_loop: Option<u32>) -> Frame {
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
pub fn status(block: &[u8]) -> u16 {
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
