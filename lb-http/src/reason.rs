//! Why something is refused: an enum, each of whose values has a text for people and a word for counters and logs.

macro_rules! reasons {
    ($enum:ident $($(#[$doc:meta])* $name:ident = $word:literal, $text:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum $enum {
            $($(#[$doc])* #[error($text)] $name,)*
        }

        impl $enum {
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            pub const COUNT: usize = Self::ALL.len();

            /// Its place in `ALL`.
            pub fn index(self) -> usize {
                self as usize
            }

            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

pub(crate) use reasons;

reasons! {
    RefusedConnection
    ManyOfListener = "listener-connections", "the listener has as many connections as it may";
    ManyOfClient = "client-connections", "the client has as many connections as it may";
    Silent = "silent", "it did not say in time what it speaks";
    ProxyHeader = "proxy-header", "its PROXY header is malformed or did not come in time";
    /// RFC 9113 section 5.4.1.
    Http2Error = "http2-error", "it breaks the rules of HTTP/2";
    /// Resets, pings or empty frames by the hundred.
    Http2Flood = "http2-flood", "it makes too much work in HTTP/2";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_at_its_index() {
        for (index, refused) in RefusedConnection::ALL.iter().enumerate() {
            assert_eq!(refused.index(), index);
        }
    }
}
