//! EDNS (RFC 6891): what a client offers with its OPT record, and the one that it gets back.
//!
//! Options other than NSID (RFC 5001) and cookies (RFC 7873) are checked for their length and otherwise ignored.

use hickory_server::proto::op::ResponseCode;

const NSID: u16 = 3;
const COOKIE: u16 = 10;
/// Root, type, class, TTL and length of an OPT record.
const FIXED_BYTES: usize = 11;
/// An identifier longer than this would crowd out answers.
pub(crate) const MAX_NSID_BYTES: usize = 64;
const MAX_OPTION_BYTES: usize = 4 + MAX_NSID_BYTES + 4 + 24;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Edns {
    pub payload_bytes: u16,
    pub version: u8,
    pub dnssec_ok: bool,
    pub asks_nsid: bool,
    pub cookie: Option<CookieOption>,
}

/// A client's cookie, with the server's if the client has one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CookieOption {
    pub client: [u8; 8],
    server: [u8; 32],
    server_bytes: u8,
}

impl CookieOption {
    /// Empty, or 8 to 32 bytes.
    pub fn server(&self) -> &[u8] {
        &self.server[..usize::from(self.server_bytes)]
    }

    /// `None`: not the length of a cookie (RFC 7873 section 5.2.2).
    fn read(data: &[u8]) -> Option<Self> {
        let (client, rest) = data.split_first_chunk::<8>()?;
        if !matches!(rest.len(), 0 | 8..=32) {
            return None;
        }
        let mut server = [0; 32];
        server[..rest.len()].copy_from_slice(rest);
        Some(Self { client: *client, server, server_bytes: rest.len() as u8 })
    }
}

impl Edns {
    /// Reads the class, TTL and data of an OPT record. `None`: malformed.
    pub fn read(class: u16, ttl: [u8; 4], mut data: &[u8]) -> Option<Self> {
        let dnssec_ok = ttl[2] & 0x80 != 0;
        let mut edns =
            Self { payload_bytes: class, version: ttl[1], dnssec_ok, asks_nsid: false, cookie: None };
        while let Some((head, rest)) = data.split_first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (value, rest) = rest.split_at_checked(length)?;
            match u16::from_be_bytes([head[0], head[1]]) {
                NSID => edns.asks_nsid = true,
                // Only the first of several counts (RFC 7873 section 5.2).
                COOKIE if edns.cookie.is_none() => edns.cookie = Some(CookieOption::read(value)?),
                _ => {}
            }
            data = rest;
        }
        data.is_empty().then_some(edns)
    }
}

/// The OPT record of a reply.
#[derive(Clone, Debug)]
pub(crate) struct Opt {
    payload_bytes: u16,
    dnssec_ok: bool,
    options: [u8; MAX_OPTION_BYTES],
    option_bytes: usize,
}

impl Opt {
    /// The answer to `asked`: how much this server itself takes over UDP, and no options.
    pub fn answering(asked: &Edns, payload_bytes: u16) -> Self {
        Self { payload_bytes, dnssec_ok: asked.dnssec_ok, options: [0; MAX_OPTION_BYTES], option_bytes: 0 }
    }

    /// At most [`MAX_NSID_BYTES`] of the server's name.
    pub fn set_nsid(&mut self, nsid: &[u8]) {
        self.option(NSID, &nsid[..nsid.len().min(MAX_NSID_BYTES)]);
    }

    pub fn set_cookie(&mut self, client: [u8; 8], server: [u8; 16]) {
        let mut both = [0; 24];
        both[..8].copy_from_slice(&client);
        both[8..].copy_from_slice(&server);
        self.option(COOKIE, &both);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let mut put = |bytes: &[u8]| {
            self.options[self.option_bytes..][..bytes.len()].copy_from_slice(bytes);
            self.option_bytes += bytes.len();
        };
        put(&code.to_be_bytes());
        put(&(value.len() as u16).to_be_bytes());
        put(value);
    }

    pub fn dnssec_ok(&self) -> bool {
        self.dnssec_ok
    }

    pub fn n_bytes(&self) -> usize {
        FIXED_BYTES + self.option_bytes
    }

    pub fn write(&self, code: ResponseCode, out: &mut Vec<u8>) {
        let [payload_high, payload_low] = self.payload_bytes.to_be_bytes();
        let flags = if self.dnssec_ok { 0x80 } else { 0 };
        let [length_high, length_low] = (self.option_bytes as u16).to_be_bytes();
        out.extend_from_slice(&[0, 0, 41, payload_high, payload_low, code.high(), 0, flags, 0]);
        out.extend_from_slice(&[length_high, length_low]);
        out.extend_from_slice(&self.options[..self.option_bytes]);
    }
}
