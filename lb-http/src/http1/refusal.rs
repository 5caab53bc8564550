//! Why a request is refused: a status for the client, a word for the counters.
//!
//! Whoever refuses also closes the connection: what follows a message that we do not understand is not a message.

use super::chunked::BadChunk;
use crate::reason::reasons;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $word:literal, $text:literal;)*) => {
        reasons! { Refusal $($(#[$doc])* $name = $word, $text;)* }

        impl Refusal {
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

refusals! {
    RequestLine = 400, "request-line", "the request line is malformed";
    Version = 505, "version", "only HTTP/1.0 and HTTP/1.1 are served here";
    /// Longer than any method there is.
    MethodLength = 501, "method", "the method is not known";
    Method = 405, "method", "CONNECT and TRACE are not served";
    Target = 400, "target", "the request target is neither a path nor an http URI";
    LineEnd = 400, "line-end", "a line does not end with CR LF";
    Field = 400, "field", "a header line is malformed";
    NoHost = 400, "host", "no Host";
    ManyHosts = 400, "host", "more than one Host";
    Host = 400, "host", "Host is not a valid host";
    HostMismatch = 400, "host", "Host differs from the request target";
    ContentLength = 400, "content-length", "Content-Length is not one number";
    TransferEncoding = 400, "transfer-encoding", "Transfer-Encoding is not exactly chunked, of HTTP/1.1";
    TwoFramings = 400, "framing", "both Transfer-Encoding and Content-Length";
    Expectation = 417, "expectation", "an expectation that is not known";
    LongTarget = 414, "uri-length", "the request line is too long";
    LongHead = 431, "head-length", "the header lines are too long";
    ManyFields = 431, "header-count", "too many header lines";
    HeadTime = 408, "head-time", "the request head did not arrive in time";
    Chunk = 400, "chunk", "the chunked body is malformed";
    LongExtension = 400, "chunk-extension", "the chunk extensions are too long";
    LongTrailer = 400, "trailer-length", "the trailer is too long";
    BodyTime = 408, "body-time", "the request body did not arrive in time";
    BodyCut = 400, "body-cut", "the request body ended early";
    /// Of the whole request.
    Time = 408, "request-time", "the request took too long";
}

impl From<BadChunk> for Refusal {
    fn from(bad: BadChunk) -> Self {
        match bad {
            BadChunk::Malformed => Self::Chunk,
            BadChunk::LongExtension => Self::LongExtension,
            BadChunk::LongTrailer => Self::LongTrailer,
        }
    }
}
