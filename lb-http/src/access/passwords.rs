//! Password hashes of crypt(3): MD5 (`$1$`, Apache's `$apr1$`), SHA-256 (`$5$`), SHA-512 (`$6$`), bcrypt (`$2…$`) and
//! yescrypt (`$y$`).
//!
//! The old DES hashes (13 characters) are refused: they look at 8 characters of a password and fall in minutes.

use std::fmt;

use md5::{Digest, Md5};
use sha_crypt::{PasswordVerifier, ShaCrypt};
use yescrypt::Yescrypt;

/// Above it a single look at a password would take seconds (crypt(3)'s default is 5,000).
const MOST_SHA_ROUNDS: u32 = 500_000;
/// As many bcrypt rounds as a power of two; each step doubles the time.
const MOST_BCRYPT_COST: u32 = 14;

#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    kind: Kind,
    text: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Md5,
    Sha,
    Bcrypt,
    Yescrypt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHash {
    #[error("DES hashes are too weak to be served; make a new one with: openssl passwd -6")]
    Des,
    #[error("the hash is of no kind that is known ($1$, $apr1$, $5$, $6$, $2b$, $y$)")]
    Unknown,
    #[error("the hash is cut short or malformed")]
    Malformed,
    #[error("the hash asks for so many rounds that each request would take seconds")]
    TooCostly,
}

impl PasswordHash {
    pub fn parse(text: &str) -> Result<Self, BadHash> {
        let fields: Vec<&str> = text.split('$').collect();
        let kind = match &fields[..] {
            [des] if des.len() == 13 => return Err(BadHash::Des),
            ["", "1" | "apr1", salt, digest] => {
                let is_whole = salt.len() <= 8 && digest.len() == 22 && digest.bytes().all(is_crypt64);
                if !is_whole {
                    return Err(BadHash::Malformed);
                }
                Kind::Md5
            }
            ["", "5" | "6", rest @ ..] => {
                check_sha(fields[1], rest)?;
                Kind::Sha
            }
            ["", "2a" | "2b" | "2x" | "2y", cost, rest] => {
                let cost: u32 = cost.parse().map_err(|_| BadHash::Malformed)?;
                if cost > MOST_BCRYPT_COST {
                    return Err(BadHash::TooCostly);
                }
                if cost < 4 || rest.len() != 53 {
                    return Err(BadHash::Malformed);
                }
                Kind::Bcrypt
            }
            ["", "y", _params, salt, digest] if !salt.is_empty() && digest.len() == 43 => Kind::Yescrypt,
            ["", "y", ..] => return Err(BadHash::Malformed),
            _ => return Err(BadHash::Unknown),
        };
        Ok(Self { kind, text: text.into() })
    }

    /// Takes milliseconds on purpose: not for a thread that serves others.
    pub fn verifies(&self, password: &[u8]) -> bool {
        match self.kind {
            Kind::Md5 => self.verifies_md5(password),
            Kind::Sha => ShaCrypt::default().verify_password(password, &*self.text).is_ok(),
            Kind::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
            Kind::Yescrypt => Yescrypt::default().verify_password(password, &*self.text).is_ok(),
        }
    }

    fn verifies_md5(&self, password: &[u8]) -> bool {
        let mut fields = self.text.split('$').skip(1);
        let (Some(magic), Some(salt), Some(digest)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        let computed = md5_crypt(password, magic, salt.as_bytes());
        // Without a branch on where they differ.
        computed.iter().zip(digest.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

fn check_sha(id: &str, fields: &[&str]) -> Result<(), BadHash> {
    let (rounds, digest) = match fields {
        [rounds, _salt, digest] => (rounds.strip_prefix("rounds=").ok_or(BadHash::Malformed)?, digest),
        [_salt, digest] => ("5000", digest),
        _ => return Err(BadHash::Malformed),
    };
    let rounds: u32 = rounds.parse().map_err(|_| BadHash::Malformed)?;
    if rounds > MOST_SHA_ROUNDS {
        return Err(BadHash::TooCostly);
    }
    let length = if id == "5" { 43 } else { 86 };
    if digest.len() == length && digest.bytes().all(is_crypt64) { Ok(()) } else { Err(BadHash::Malformed) }
}

/// The hash is a secret of the app's owner.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasswordHash({:?})", self.kind)
    }
}

const CRYPT64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn is_crypt64(byte: u8) -> bool {
    CRYPT64.contains(&byte)
}

/// Poul-Henning Kamp's MD5-based crypt (FreeBSD, 1994), as glibc and Apache have it.
fn md5_crypt(password: &[u8], magic: &str, salt: &[u8]) -> [u8; 22] {
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut context = Md5::new();
    context.update(password);
    context.update(format!("${magic}$"));
    context.update(salt);
    for chunk in password.chunks(16) {
        context.update(&inner[..chunk.len()]);
    }
    let mut length = password.len();
    while length > 0 {
        context.update(if length & 1 == 1 { &[0] } else { &password[..1] });
        length >>= 1;
    }
    let mut digest = context.finalize();
    for round in 0..1000 {
        let mut context = Md5::new();
        context.update(if round % 2 == 1 { password } else { &digest });
        if round % 3 != 0 {
            context.update(salt);
        }
        if round % 7 != 0 {
            context.update(password);
        }
        context.update(if round % 2 == 1 { &digest[..] } else { password });
        digest = context.finalize();
    }
    let mut text = [0; 22];
    let triples = [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)];
    let mut letters = text.iter_mut();
    let mut put = |mut value: u32, n: usize| {
        for letter in letters.by_ref().take(n) {
            *letter = CRYPT64[(value & 0x3f) as usize];
            value >>= 6;
        }
    };
    for (a, b, c) in triples {
        put(u32::from(digest[a]) << 16 | u32::from(digest[b]) << 8 | u32::from(digest[c]), 4);
    }
    put(digest[11].into(), 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by openssl passwd, htpasswd and libxcrypt's mkpasswd; the password is `s3cret`, with a long one at the end.
    #[test]
    fn hashes_of_every_kind_verify() {
        for (password, hash) in HASHES {
            let parsed = PasswordHash::parse(hash).unwrap_or_else(|e| panic!("{hash}: {e}"));
            assert!(parsed.verifies(password.as_bytes()), "{hash}");
            assert!(!parsed.verifies(b"wrong"), "{hash}");
            assert!(!parsed.verifies(b""), "{hash}");
        }
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        for (hash, expect) in [
            ("", BadHash::Unknown),
            ("s3cret", BadHash::Unknown),
            ("rEK1ecacw.7.c", BadHash::Des),
            ("$9$salt$digest", BadHash::Unknown),
            ("$6$salt", BadHash::Malformed),
            ("$6$salt$short", BadHash::Malformed),
            ("$6$rounds=999999999$salt$x", BadHash::TooCostly),
            ("$6$rounds=many$salt$x", BadHash::Malformed),
            ("$1$salt$short", BadHash::Malformed),
            ("$2b$31$x", BadHash::TooCostly),
            ("$2b$10$x", BadHash::Malformed),
            ("$y$j9T$salt", BadHash::Malformed),
        ] {
            assert_eq!(PasswordHash::parse(hash), Err(expect), "{hash:?}");
        }
    }

    const HASHES: &[(&str, &str)] = &[
        ("s3cret", "$1$abcdefgh$7.vq19w/w3Vm.hk1FOA7Q/"),
        ("s3cret", "$apr1$abcdefgh$M2T3erDstkD7SsE2QQnfH0"),
        ("s3cret", "$5$abcdefgh$OcHWp0Vj4l19dnE2g4tHD4hbItEZgO0bjRV6LjwCLoA"),
        (
            "s3cret",
            "$6$abcdefgh$Z7KfoKnKTSZrzo5VZ0YubGLQOj9ov6sHo9TmE3zIU/LHKhpE30zCnZ0mcIXYf9r9rQ4DYaXoxAFSPFlcWdxjB.",
        ),
        (
            "s3cret",
            "$6$rounds=1234$somesalt$93R5EK1FZ/u97N05QZBVoVuD1WiU3g3IhtpzzsuvwGnh/z83hEbWHz9BoDv08wUyEUJhGs/OPrks4Kd99C2jl/",
        ),
        ("s3cret", "$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK"),
        ("s3cret", "$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK"),
        ("s3cret", "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$8c0O2L8gFA3jUVvwMFdXpZKM78kTwpdGJswaLb6IRr/"),
        (
            "a much longer password than one block of MD5, which is 64 bytes, can hold",
            "$1$abcdefgh$2u5DXmxzN04UCfWRJc8D30",
        ),
        (
            "a much longer password than one block of MD5, which is 64 bytes, can hold",
            "$6$abcdefgh$N2ESeaj5b72p5oyFIF6dTF38oASOkh.z0w0gXpTU38uIjqRsN3W0xPePV8ApUonYcFc.33CJhdXZJma7m5CQZ.",
        ),
    ];
}
