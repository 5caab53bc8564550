//! The bytes that may stand where in a message: tokens, field values, request targets, hosts, lengths.
//!
//! RFC 9110 section 5.6 and RFC 9112 section 3. Nothing here is lenient, and nothing is decoded.

use std::net::{Ipv4Addr, Ipv6Addr};

const TOKEN: u8 = 1;
const VALUE: u8 = 1 << 1;
const TARGET: u8 = 1 << 2;
const REG_NAME: u8 = 1 << 3;
/// In a target: what makes a second look necessary.
const TARGET_SIGN: u8 = 1 << 4;
const UNDERSCORE: u8 = 1 << 5;

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;
/// Lines that are longer are searched with memchr, which is not worth its set-up for others.
const SHORT_LINE: usize = 64;

const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b == b'\t' || b >= 0x20 && b != 0x7f {
            table[byte] |= VALUE;
        }
        // Visible ASCII but the fragment's sign: what browsers send is wider than what RFC 3986 allows.
        if b > 0x20 && b < 0x7f && b != b'#' {
            table[byte] |= TARGET;
        }
        if b.is_ascii_alphanumeric() {
            table[byte] |= TOKEN | REG_NAME;
        }
        byte += 1;
    }
    table[b'_' as usize] |= UNDERSCORE;
    table[b'%' as usize] |= TARGET_SIGN;
    table[b'?' as usize] |= TARGET_SIGN;
    let others = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] |= TOKEN;
        i += 1;
    }
    // RFC 3986 section 3.2.2 without the comma, which comes from joined lines.
    let others = b"-._~!$&'()*+;=%";
    i = 0;
    while i < others.len() {
        table[others[i] as usize] |= REG_NAME;
        i += 1;
    }
    table
};

pub(super) fn is_token_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

pub fn is_token(bytes: &[u8]) -> bool {
    token_kind(bytes).is_some()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Plain,
    Underscored,
}

/// `None`: it is no token.
pub(super) fn token_kind(bytes: &[u8]) -> Option<TokenKind> {
    let (all, any) = classes_of(bytes, TOKEN);
    let is_token = !bytes.is_empty() && all != 0;
    is_token.then_some(if any & UNDERSCORE == 0 { TokenKind::Plain } else { TokenKind::Underscored })
}

/// Which of `wanted` all bytes are in, and what any of them is in.
fn classes_of(bytes: &[u8], wanted: u8) -> (u8, u8) {
    bytes.iter().fold((wanted, 0), |(all, any), b| {
        let class = CLASSES[usize::from(*b)];
        (all & class, any | class)
    })
}

/// Anything but control characters; may be empty.
pub fn is_field_value(bytes: &[u8]) -> bool {
    value_len(bytes) == bytes.len()
}

/// How many bytes from the begin on may stand in a field's value. Within a head this ends at the line's end, or at
/// what makes the line malformed.
pub(super) fn value_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    // Eight at a time: values are most of a head, and nearly all of them are plain text.
    while let Some(word) = word_at(bytes, at) {
        let controls = controls_in(word);
        if controls == 0 {
            at += 8;
            continue;
        }
        at += controls.trailing_zeros() as usize / 8;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    let rest = &bytes[at..];
    at + rest.iter().position(|b| CLASSES[usize::from(*b)] & VALUE == 0).unwrap_or(rest.len())
}

/// Where that byte is for the first time.
pub(super) fn find(bytes: &[u8], byte: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = word_at(bytes, at) {
        let found = zeros_in(word ^ (ONES * u64::from(byte)));
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
        if at == SHORT_LINE {
            return memchr::memchr(byte, &bytes[at..]).map(|n| at + n);
        }
    }
    bytes[at..].iter().position(|b| *b == byte).map(|n| at + n)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// Marks the bytes below 0x20 and those that are 0x7f. The lowest mark is right; above it there may be false ones.
fn controls_in(word: u64) -> u64 {
    let below_space = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
    below_space | zeros_in(word ^ (ONES * 0x7f))
}

/// Marks the bytes that are 0, as exactly.
fn zeros_in(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

pub fn is_target(bytes: &[u8]) -> bool {
    target_kind(bytes).is_some()
}

/// What a target's bytes ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetKind {
    /// Neither `%` nor `?`: all of it is path.
    Plain,
    Signs,
}

/// `None`: it is no target.
pub(super) fn target_kind(bytes: &[u8]) -> Option<TargetKind> {
    let (all, any) = classes_of(bytes, TARGET);
    let is_target = !bytes.is_empty() && all != 0;
    is_target.then_some(if any & TARGET_SIGN == 0 { TargetKind::Plain } else { TargetKind::Signs })
}

/// Every `%` is followed by two hexadecimal digits.
pub fn is_percent_encoded(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        match rest.get(at + 1..at + 3) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => rest = &rest[at + 3..],
            _ => return false,
        }
    }
    true
}

/// `uri-host [ ":" port ]`, not empty.
pub fn is_host(host: &[u8]) -> bool {
    if let [b'[', rest @ ..] = host {
        let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
        let address = std::str::from_utf8(&rest[..end]).ok().and_then(|a| a.parse::<Ipv6Addr>().ok());
        return address.is_some() && is_port(&rest[end + 1..]);
    }
    let end = host.iter().position(|b| CLASSES[usize::from(*b)] & REG_NAME == 0).unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    if name.is_empty() || !is_port(port) || !is_percent_encoded(name) {
        return false;
    }
    // All digits and dots is an address or nothing (WHATWG URL, host parsing).
    let looks_numeric = name[0].is_ascii_digit()
        && name.iter().all(|b| b.is_ascii_digit() || *b == b'.')
        && name.contains(&b'.');
    !looks_numeric
        || std::str::from_utf8(name).is_ok_and(|n| n.trim_end_matches('.').parse::<Ipv4Addr>().is_ok())
}

/// Nothing, or a colon and at most a number that a port can be.
fn is_port(port: &[u8]) -> bool {
    match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|d| d.parse::<u16>().is_ok())
        }
        _ => false,
    }
}

/// `1*DIGIT` that fits what servers count with: 2^63 and above overflow behind us.
pub fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit).filter(|sum| *sum <= i64::MAX as u64)
    })
}

/// The elements of a comma-separated list, without the white space around them.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim)
}

/// Without the optional white space (space and tab) around it.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_alike_in_words_and_bytes() {
        for byte in 0..=255_u8 {
            let expect = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
            for at in 0..9 {
                let mut value = *b"plaintext";
                value[at] = byte;
                assert_eq!(is_field_value(&value), expect, "{byte:#x} at {at}");
            }
        }
        assert!(is_field_value(b""));
    }

    #[test]
    fn values_and_lines_end_where_they_end() {
        let long = "x".repeat(SHORT_LINE + 20);
        for text in ["", "a", "\ta\t", "seven b", "eight by", "a tab\tin the second\tword", &*long] {
            for control in ['\n', '\r', '\0', '\x7f', '\x1f'] {
                let all = format!("{text}{control}\t\n{control}");
                assert_eq!(value_len(all.as_bytes()), text.len(), "{all:?}");
            }
            let all = format!("{text}\n\n{text}");
            assert_eq!(find(all.as_bytes(), b'\n'), Some(text.len()), "{all:?}");
            assert_eq!(find(text.as_bytes(), b'\n'), None, "{text:?}");
        }
    }

    #[test]
    fn hosts() {
        for (host, expect) in [
            ("a.test", true),
            ("a.test:80", true),
            ("a.test:", true),
            ("127.0.0.1:65535", true),
            ("[::1]:80", true),
            ("a_b", true),
            ("0x7f.1", true),
            ("", false),
            (":80", false),
            ("a.test:65536", false),
            ("a.test:x", false),
            ("a.test:+1", false),
            ("a.test:80:80", false),
            ("u@a.test", false),
            ("a b", false),
            ("a,b", false),
            ("a/b", false),
            ("[::1", false),
            ("[::g]", false),
            ("[::1]x", false),
            ("1.2.3.400", false),
        ] {
            assert_eq!(is_host(host.as_bytes()), expect, "{host:?}");
        }
    }

    #[test]
    fn lengths() {
        for (text, expect) in [
            ("0", Some(0)),
            ("0010", Some(10)),
            ("9223372036854775807", Some(i64::MAX as u64)),
            ("9223372036854775808", None),
            ("", None),
            ("+1", None),
            ("1 ", None),
            ("0x1", None),
            ("1,1", None),
        ] {
            assert_eq!(length(text.as_bytes()), expect, "{text:?}");
        }
    }

    #[test]
    fn percent_signs() {
        for (path, expect) in
            [("/a", true), ("/%41%2f", true), ("/%", false), ("/%4", false), ("/%zz", false), ("/%4g", false)]
        {
            assert_eq!(is_percent_encoded(path.as_bytes()), expect, "{path:?}");
        }
    }
}
