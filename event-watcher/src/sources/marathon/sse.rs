//! A decoder for `text/event-stream` (WHATWG HTML section 9.2) with a hard bound on what one event may hold.
//!
//! It does no IO and knows no event types. `id:` and `retry:` are read over: Marathon sends neither and replays
//! nothing.

/// More than this between two blank lines is not an event that can be waited for: the peer is broken.
const MAX_SKIPPED_BYTES: usize = 64 << 20;

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// `kind` is empty when the event had no `event:` line.
    Event { kind: String, data: String },
    /// An event over the bound was left out. Whatever it said is lost.
    Oversized { kind: String },
}

/// The peer sends bytes without ever ending an event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event did not end within {MAX_SKIPPED_BYTES} bytes")]
pub struct Endless;

#[derive(Debug)]
pub struct Decoder {
    max_event_bytes: usize,
    /// The line being read, without its end.
    line: Vec<u8>,
    kind: String,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF that follows belongs to the same line end, even in a later packet.
    after_cr: bool,
    at_start: bool,
    /// Bytes left out of the event being read, which is over the bound.
    n_skipped: Option<usize>,
    line_is_blank: bool,
}

impl Decoder {
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            line: Vec::new(),
            kind: String::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            n_skipped: None,
            line_is_blank: true,
        }
    }

    /// Takes what arrived and hands out every event that it completes.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Frame)) -> Result<(), Endless> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.take(part)?;
            if let Some((line_end, rest)) = rest.split_first() {
                self.after_cr = *line_end == b'\r';
                self.end_line(&mut emit);
                bytes = rest;
            } else {
                bytes = rest;
            }
        }
        Ok(())
    }

    fn take(&mut self, part: &[u8]) -> Result<(), Endless> {
        self.line_is_blank &= part.is_empty();
        if let Some(n_skipped) = &mut self.n_skipped {
            *n_skipped += part.len();
            return if *n_skipped > MAX_SKIPPED_BYTES { Err(Endless) } else { Ok(()) };
        }
        if self.line.len() + self.data.len() + part.len() > self.max_event_bytes {
            self.n_skipped = Some(part.len());
            // An `event:` line comes first in practice, so the kind is known by now.
            self.line = Vec::new();
            self.data = Vec::new();
            return Ok(());
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, emit: &mut impl FnMut(Frame)) {
        let is_blank = std::mem::replace(&mut self.line_is_blank, true);
        if self.n_skipped.is_some() {
            if is_blank {
                self.n_skipped = None;
                self.has_data = false;
                emit(Frame::Oversized { kind: std::mem::take(&mut self.kind) });
            }
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.at_start) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            let kind = std::mem::take(&mut self.kind);
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                emit(Frame::Event { kind, data: String::from_utf8_lossy(&data).into_owned() });
            }
        } else {
            self.field(&line);
            line.clear();
        }
        // Keeps the buffer for the next line.
        if line.is_empty() {
            self.line = line;
        }
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.kind = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: &str, data: &str) -> Frame {
        Frame::Event { kind: kind.into(), data: data.into() }
    }

    fn decode(packets: &[&[u8]], max: usize) -> Vec<Frame> {
        let mut decoder = Decoder::new(max);
        let mut frames = Vec::new();
        for packet in packets {
            decoder.push(packet, |frame| frames.push(frame)).unwrap();
        }
        frames
    }

    #[test]
    fn w07_frames_follow_the_standard() {
        let check =
            |packets: &[&[u8]], expect: &[Frame]| assert_eq!(decode(packets, 1024), expect, "{packets:?}");
        check(&[b"event: a\r\ndata: {}\r\n\r\n"], &[event("a", "{}")]);
        check(&[b"event: a\ndata: 1\n\nevent: b\rdata: 2\r\r"], &[event("a", "1"), event("b", "2")]);
        check(&[b"event: a\r", b"\ndata: 1\r", b"\n\r", b"\n"], &[event("a", "1")]);
        // Marathon's heartbeat: an empty line in two writes.
        check(&[b"\r", b"\n", b"data:x\r\n\r\n"], &[event("", "x")]);
        check(&[b"\xef\xbb\xbfdata: 1\n\n"], &[event("", "1")]);
        check(&[b"\xef\xbb", b"\xbfdata: 1\n\n"], &[event("", "1")]);
        check(&[b": comment\nretry: 10\nid: 4\nunknown\ndata: 1\ndata: 2\n\n"], &[event("", "1\n2")]);
        check(&[b"event: nothing follows\n\ndata: 1\n\n"], &[event("", "1")]);
        check(&[b"data\n\n"], &[event("", "")]);
        check(&[b"data: \xc3", b"\xa9\n\n"], &[event("", "\u{e9}")]);
        check(&[b"data: \xff\n\n"], &[event("", "\u{fffd}")]);
        check(&[b"event: a\ndata: cut"], &[]);
    }

    #[test]
    fn w04_an_oversized_event_is_left_out_and_the_next_one_is_read() {
        let long = format!("event: big\ndata: {}\ndata: more\n\ndata: 1\n\n", "x".repeat(5000));
        let expect = [Frame::Oversized { kind: "big".into() }, event("", "1")];
        assert_eq!(decode(&[long.as_bytes()], 1024), expect);
        let bytes: Vec<&[u8]> = long.as_bytes().chunks(7).collect();
        assert_eq!(decode(&bytes, 1024), expect);
        let lines = format!("{}\ndata: 1\n\n", "data: 0123456789\n".repeat(200));
        assert_eq!(
            decode(&[lines.as_bytes()], 1024),
            [Frame::Oversized { kind: String::new() }, event("", "1")]
        );
    }

    #[test]
    fn w05_a_line_without_an_end_is_given_up_with_bounded_memory() {
        let mut decoder = Decoder::new(1024);
        let packet = vec![b'x'; 1 << 20];
        let n_packets = (0..1000).take_while(|_| decoder.push(&packet, |_| ()).is_ok()).count();
        assert_eq!(n_packets, MAX_SKIPPED_BYTES >> 20);
        assert!(decoder.line.capacity() + decoder.data.capacity() <= 2048);
    }

    proptest! {
        /// How the network cuts the bytes never matters.
        #[test]
        fn w02_packets_may_be_cut_anywhere(
            bytes in proptest::collection::vec(proptest::sample::select(b"\r\n: xdataevent\xc3\xa9\xef\xbb\xbf".to_vec()), 0..200),
            cuts in proptest::collection::vec(0_usize..200, 0..20),
        ) {
            let whole = decode(&[&bytes], 40);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let packets: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&packets, 40), whole);
        }
    }
}
