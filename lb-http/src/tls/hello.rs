//! The server name in a TLS client's first message, read from its bytes without answering it.
//!
//! More lenient than a handshake: whoever the bytes are passed on to may accept what rustls would not. It verifies
//! nothing and keeps nothing; RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3.

/// Longest `ClientHello` that is read. Those with post-quantum keys and every extension that is in use come to 4 KiB.
const LONGEST_HELLO: usize = 16 * 1024;
/// More bytes than such a message takes, unless somebody cuts it into crumbs.
pub(crate) const LONGEST_BEGINNING: usize = LONGEST_HELLO + 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// RFC 8446 section 5.1.
const LONGEST_FRAGMENT: usize = 1 << 14;

/// What the bytes at the beginning of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// There must be more before it can be told.
    Unfinished,
    /// The whole message, with the name in lower case. `None`: it names nobody.
    Hello(Option<Box<str>>),
    /// Not a `ClientHello`, or a broken one.
    Strange,
    TooLong,
}

pub(crate) fn read(bytes: &[u8]) -> Beginning {
    match message(bytes) {
        Ok(hello) => server_name(&hello).map_or(Beginning::Strange, Beginning::Hello),
        Err(other) => other,
    }
}

/// The handshake message without its head, put together from its records.
fn message(bytes: &[u8]) -> Result<Vec<u8>, Beginning> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // What is wrong is told by the first bytes already.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(Beginning::Strange);
        }
        let Some(([_, _, _, high, low], after)) = rest.split_first_chunk() else {
            return Err(Beginning::Unfinished);
        };
        let n = usize::from(u16::from_be_bytes([*high, *low]));
        if n == 0 || n > LONGEST_FRAGMENT {
            return Err(Beginning::Strange);
        }
        message.extend_from_slice(&after[..n.min(after.len())]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Beginning::Strange);
        }
        if let Some([_, a, b, c]) = message.first_chunk() {
            let n_wanted = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if n_wanted > LONGEST_HELLO {
                return Err(Beginning::TooLong);
            }
            if message.len() >= 4 + n_wanted {
                message.truncate(4 + n_wanted);
                message.drain(..4);
                return Ok(message);
            }
        }
        if after.len() < n {
            return Err(Beginning::Unfinished);
        }
        rest = &after[n..];
    }
}

/// `None`: the message is broken.
fn server_name(hello: &[u8]) -> Option<Option<Box<str>>> {
    let mut fields = Fields(hello);
    // Version and random; session, cipher suites and compression methods.
    fields.take(2 + 32)?;
    fields.short()?;
    fields.long()?;
    fields.short()?;
    if fields.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Fields(fields.long()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.long()?;
        if kind == SERVER_NAME {
            return host_name(content);
        }
    }
    Some(None)
}

fn host_name(content: &[u8]) -> Option<Option<Box<str>>> {
    let mut names = Fields(Fields(content).long()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.long()?;
        if kind == HOST_NAME {
            let name = std::str::from_utf8(name).ok().filter(|name| name.is_ascii() && !name.is_empty())?;
            return Some(Some(name.to_ascii_lowercase().into()));
        }
    }
    Some(None)
}

/// What is left to be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Behind a length of one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let n = self.take(1)?[0];
        self.take(n.into())
    }

    /// Behind a length of two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let n = self.number()?;
        self.take(n.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What rustls as a client begins with.
    fn hello_of(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most `n` bytes.
    fn cut(hello: &[u8], n: usize) -> Vec<u8> {
        let record = |piece: &[u8]| [&[22, 3, 1][..], &(piece.len() as u16).to_be_bytes(), piece].concat();
        hello[5..].chunks(n).flat_map(record).collect()
    }

    fn named(name: &str) -> Beginning {
        Beginning::Hello(Some(name.into()))
    }

    #[test]
    fn the_name_is_found_however_the_message_is_cut() {
        let hello = hello_of("Shop.Example.test");
        assert_eq!(read(&hello), named("shop.example.test"));
        for n in [1, 2, 3, 4, 5, 50, 1000] {
            assert_eq!(read(&cut(&hello, n)), named("shop.example.test"), "records of {n}");
        }
        assert_eq!(read(&[&hello[..], b"early data"].concat()), named("shop.example.test"));
        assert_eq!(read(&hello_of("127.0.0.1")), Beginning::Hello(None), "addresses are no names");
    }

    #[test]
    fn a_part_is_unfinished() {
        let hello = hello_of("a.test");
        for whole in [hello.clone(), cut(&hello, 7)] {
            for n in 0..whole.len() {
                assert_eq!(read(&whole[..n]), Beginning::Unfinished, "{n} of {}", whole.len());
            }
        }
    }

    #[test]
    fn other_things_are_strange_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02",
            b"\x15\x03\x01\x00\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x05\x02",
        ] {
            assert_eq!(read(bytes), Beginning::Strange, "{bytes:?}");
        }
        // 64 KiB are announced.
        assert_eq!(read(b"\x16\x03\x01\x00\x05\x01\x00\xff\xff"), Beginning::TooLong);
    }

    #[test]
    fn no_changed_byte_leads_astray() {
        let hello = hello_of("a.test");
        for at in 0..hello.len() {
            for bit in 0..8 {
                let mut changed = hello.clone();
                changed[at] ^= 1 << bit;
                // Whatever it is taken for: no panic, and no name that is not there.
                if let Beginning::Hello(Some(name)) = read(&changed) {
                    let lower = changed.to_ascii_lowercase();
                    assert!(lower.windows(name.len()).any(|w| w == name.as_bytes()), "{name}");
                }
            }
        }
    }
}
