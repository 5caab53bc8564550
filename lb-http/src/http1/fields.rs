//! Header lines: where name and value stand in the buffer, and which of the names that matter here it is.
//!
//! A field is four offsets, not text: a head is forwarded as ranges of the buffer that it came in.

use std::ops::Range;

use super::grammar;

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

    /// `line` is the place of a line in `head`, without its CR LF. `None`: it is malformed.
    pub(super) fn parse(head: &[u8], line: Range<usize>) -> Option<Self> {
        let bytes = &head[line.clone()];
        let colon = bytes.iter().position(|b| !grammar::is_token_byte(*b))?;
        if colon == 0 || bytes[colon] != b':' {
            return None;
        }
        let mut value = colon + 1..bytes.len();
        while value.start < value.end && matches!(bytes[value.start], b' ' | b'\t') {
            value.start += 1;
        }
        while value.start < value.end && matches!(bytes[value.end - 1], b' ' | b'\t') {
            value.end -= 1;
        }
        if !grammar::is_field_value(&bytes[value.clone()]) {
            return None;
        }
        Some(Self {
            name: Name::of(&bytes[..colon]),
            start: line.start as u32,
            name_end: (line.start + colon) as u32,
            value_start: (line.start + value.start) as u32,
            value_end: (line.start + value.end) as u32,
        })
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
            pub fn of(name: &[u8]) -> Self {
                const SHORTEST: usize = 2;
                const LONGEST: usize = 19;
                if (SHORTEST..=LONGEST).contains(&name.len()) {
                    // The length and two letters tell nearly all names apart, so that few are compared.
                    let told = key(name);
                    $(if told == const { key($text.as_bytes()) } && name.eq_ignore_ascii_case($text.as_bytes()) {
                        return Self::$name;
                    })*
                }
                if memchr::memchr(b'_', name).is_some() { Self::Underscored } else { Self::Other }
            }
        }
    };
}

/// Wants two bytes at least.
const fn key(name: &[u8]) -> u32 {
    name.len() as u32 | ((name[0] | 0x20) as u32) << 8 | ((name[name.len() - 1] | 0x20) as u32) << 16
}

names! {
    Host = "host",
    ContentLength = "content-length",
    TransferEncoding = "transfer-encoding",
    Connection = "connection",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    ProxyAuthorization = "proxy-authorization",
    Te = "te",
    Trailer = "trailer",
    Upgrade = "upgrade",
    Http2Settings = "http2-settings",
    Expect = "expect",
    MaxForwards = "max-forwards",
    Cookie = "cookie",
    SetCookie = "set-cookie",
    Authorization = "authorization",
    Forwarded = "forwarded",
    XForwardedFor = "x-forwarded-for",
    XForwardedPort = "x-forwarded-port",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XRequestId = "x-request-id",
    XMarathonAppId = "x-marathon-app-id",
    CacheControl = "cache-control",
    ETag = "etag",
    LastModified = "last-modified",
    Expires = "expires",
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
            assert_eq!(Name::of(text.as_bytes()), expect, "{text}");
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
            let field = Field::parse(line.as_bytes(), 0..line.len());
            let texts = field.map(|f| (f.name_in(line.as_bytes()), f.value_in(line.as_bytes())));
            assert_eq!(texts, expect.map(|(n, v)| (n.as_bytes(), v.as_bytes())), "{line:?}");
        }
    }
}
