//! Header lines: where name and value stand in the buffer, and which of the names that matter here it is.
//!
//! A field is four offsets, not text: a head is forwarded as ranges of the buffer that it came in.

use super::grammar::{self, TokenKind};

/// One header line of a head; offsets count from the head's first byte.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: Name,
    pub(super) start: u32,
    pub(super) name_end: u32,
    pub(super) value_start: u32,
    pub(super) value_end: u32,
}

impl Field {
    pub fn name_in<'b>(&self, head: &'b [u8]) -> &'b [u8] {
        &head[self.start as usize..self.name_end as usize]
    }

    pub fn value_in<'b>(&self, head: &'b [u8]) -> &'b [u8] {
        &head[self.value_start as usize..self.value_end as usize]
    }

    /// The line of `head` that begins at `start`, and where the next one does. `None`: it is malformed.
    pub(super) fn parse(head: &[u8], start: usize) -> Option<(Self, usize)> {
        let line = &head[start..];
        let colon = grammar::find(line, b':')?;
        let name = Name::of(&line[..colon])?;
        let mut value_start = colon + 1;
        let mut value_end = value_start + grammar::value_len(&line[value_start..]);
        if !line[value_end..].starts_with(b"\r\n") {
            return None;
        }
        let next = start + value_end + 2;
        while value_start < value_end && matches!(line[value_start], b' ' | b'\t') {
            value_start += 1;
        }
        while value_start < value_end && matches!(line[value_end - 1], b' ' | b'\t') {
            value_end -= 1;
        }
        let field = Self {
            name,
            start: start as u32,
            name_end: (start + colon) as u32,
            value_start: (start + value_start) as u32,
            value_end: (start + value_end) as u32,
        };
        Some((field, next))
    }
}

macro_rules! names {
    ($($name:ident = $text:literal,)*) => {
        /// The names that somebody here cares about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Name {
            /// Forwarded as it is.
            Other,
            /// Has an underscore: servers that read it as a hyphen would take it for another field.
            Underscored,
            $($name,)*
        }

        impl Name {
            /// `None`: it is no token.
            pub fn of(name: &[u8]) -> Option<Self> {
                #[allow(non_upper_case_globals, reason = "they are called as the names are")]
                mod keys {
                    $(pub(super) const $name: u32 = super::key($text);)*
                }
                const SHORTEST: usize = 2;
                const LONGEST: usize = 19;
                if let SHORTEST..=LONGEST = name.len() {
                    match key(name) {
                        $(keys::$name if is(name, $text) => return Some(Self::$name),)*
                        _ => {}
                    }
                }
                grammar::token_kind(name).map(|kind| match kind {
                    TokenKind::Plain => Self::Other,
                    TokenKind::Underscored => Self::Underscored,
                })
            }
        }
    };
}

/// Length and three letters tell all names apart, so that one at most is compared. Wants two bytes at least.
const fn key(name: &[u8]) -> u32 {
    let n = name.len();
    let letters = (name[0] as u32) << 8 | (name[n - 2] as u32) << 16 | (name[n - 1] as u32) << 24;
    n as u32 | letters | 0x2020_2000
}

/// `text` is in lower case, and so are letters with that bit. What is no letter must be the same without it.
fn is<const N: usize>(name: &[u8], text: &[u8; N]) -> bool {
    let case = |b: u8| if b.is_ascii_lowercase() { 0x20 } else { 0 };
    name.first_chunk::<N>().is_some_and(|name| {
        name.iter().zip(text).fold(0, |differ, (a, b)| differ | ((a | case(*b)) ^ b)) == 0
    })
}

names! {
    Host = b"host",
    ContentLength = b"content-length",
    TransferEncoding = b"transfer-encoding",
    Connection = b"connection",
    KeepAlive = b"keep-alive",
    ProxyConnection = b"proxy-connection",
    ProxyAuthorization = b"proxy-authorization",
    Te = b"te",
    Trailer = b"trailer",
    Upgrade = b"upgrade",
    Http2Settings = b"http2-settings",
    Expect = b"expect",
    MaxForwards = b"max-forwards",
    Cookie = b"cookie",
    SetCookie = b"set-cookie",
    Authorization = b"authorization",
    Forwarded = b"forwarded",
    XForwardedFor = b"x-forwarded-for",
    XForwardedPort = b"x-forwarded-port",
    XForwardedProto = b"x-forwarded-proto",
    XForwardedHost = b"x-forwarded-host",
    XRequestId = b"x-request-id",
    XMarathonAppId = b"x-marathon-app-id",
    CacheControl = b"cache-control",
    ETag = b"etag",
    LastModified = b"last-modified",
    Expires = b"expires",
}

impl Name {
    /// A bit of its own, for sets of names.
    pub(crate) fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Meant for the next hop only (RFC 9110 section 7.6.1), or dangerous beyond it.
    pub(crate) fn is_hop_by_hop(self) -> bool {
        const HOPS: u32 = 1 << Name::Connection as u8
            | 1 << Name::KeepAlive as u8
            | 1 << Name::ProxyConnection as u8
            | 1 << Name::ProxyAuthorization as u8
            | 1 << Name::Te as u8
            | 1 << Name::Upgrade as u8
            | 1 << Name::Http2Settings as u8;
        HOPS & self.bit() != 0
    }

    /// If the Connection field says so. No other name that is known here: what they say matters to who reads it next.
    pub(crate) fn may_be_for_next_hop(self) -> bool {
        matches!(
            self,
            Name::Other
                | Name::Trailer
                | Name::CacheControl
                | Name::ETag
                | Name::LastModified
                | Name::Expires
        )
    }

    /// Whether a trailer may have it: not what frames, routes, authenticates or controls (RFC 9110 section 6.5.1).
    pub(crate) fn may_follow_body(self) -> bool {
        matches!(self, Name::Other | Name::ETag | Name::LastModified)
    }
}

/// Names are seen by bits: there must be room for each.
const _: () = assert!((Name::Expires as u8) < 32);

/// Which of the names a head has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    pub(super) fn add(&mut self, name: Name) {
        self.0 |= name.bit();
    }

    pub fn has(self, name: Name) -> bool {
        self.0 & name.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case() {
        for (text, expect) in [
            ("Host", Name::Host),
            ("TRANSFER-ENCODING", Name::TransferEncoding),
            ("te", Name::Te),
            ("x-forwarded-proto", Name::XForwardedProto),
            ("X_Forwarded_Proto", Name::Underscored),
            ("transfer_encoding", Name::Underscored),
            ("hosT", Name::Host),
            ("hast", Name::Other),
            ("x", Name::Other),
            ("a-very-long-name-that-nobody-knows", Name::Other),
        ] {
            assert_eq!(Name::of(text.as_bytes()), Some(expect), "{text}");
        }
        for text in ["", "a b", "content\rlength", "hos\x14", "x\u{e9}"] {
            assert_eq!(Name::of(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn lines() {
        for (line, expect) in [
            ("A: b", Some(("A", "b"))),
            ("a:\t b c \t", Some(("a", "b c"))),
            ("a:", Some(("a", ""))),
            ("a::", Some(("a", ":"))),
            ("a", None),
            (":b", None),
            ("a : b", None),
            (" a: b", None),
            ("a b: c", None),
            ("a(: b", None),
            ("a: b\rc", None),
            ("a: b\0", None),
            ("a: b\x7f", None),
            ("a\u{e9}: b", None),
            ("a: \u{e9}", Some(("a", "\u{e9}"))),
        ] {
            let head = format!("{line}\r\n\r\n");
            let parsed = Field::parse(head.as_bytes(), 0).map(|(field, next)| {
                assert_eq!(next, line.len() + 2, "{line:?}");
                (field.name_in(head.as_bytes()), field.value_in(head.as_bytes()))
            });
            assert_eq!(parsed, expect.map(|(n, v)| (n.as_bytes(), v.as_bytes())), "{line:?}");
        }
    }
}
