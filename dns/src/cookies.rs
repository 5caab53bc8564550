//! DNS cookies (RFC 7873) as RFC 9018 makes them: they show that a client was reached at the address that it claims.
//!
//! Nothing is kept per client. What a proven address is worth is decided by the handler.

use std::net::IpAddr;

use crate::wire::CookieOption;

/// How old a server cookie may be, and how far ahead its clock may go (RFC 9018 section 4.3), in seconds.
const MAX_AGE: i32 = 3600;
const MAX_AHEAD: i32 = 300;
const VERSION: u8 = 1;

#[derive(Clone, Debug)]
pub(crate) struct Cookies {
    /// Shared by all nodes that answer on one address.
    secret: [u8; 16],
}

impl Cookies {
    pub fn new(secret: [u8; 16]) -> Self {
        Self { secret }
    }

    /// The server's part for a client; `now` is in seconds since 1970.
    pub fn server_cookie(&self, client_cookie: [u8; 8], client: IpAddr, now: u32) -> [u8; 16] {
        let mut cookie = [0; 16];
        cookie[0] = VERSION;
        cookie[4..8].copy_from_slice(&now.to_be_bytes());
        let hash = self.hash(client_cookie, &cookie[..8], client);
        cookie[8..].copy_from_slice(&hash);
        cookie
    }

    /// Whether this server gave the cookie to this very client lately.
    pub fn is_own(&self, option: &CookieOption, client: IpAddr, now: u32) -> bool {
        let Some((head, hash)) = option.server().split_first_chunk::<8>() else { return false };
        let age = now.wrapping_sub(u32::from_be_bytes([head[4], head[5], head[6], head[7]])) as i32;
        head[0] == VERSION
            && (-MAX_AHEAD..=MAX_AGE).contains(&age)
            && *hash == self.hash(option.client, head, client)
    }

    fn hash(&self, client_cookie: [u8; 8], head: &[u8], client: IpAddr) -> [u8; 8] {
        let mut input = [0; 32];
        input[..8].copy_from_slice(&client_cookie);
        input[8..16].copy_from_slice(head);
        let length = match client.to_canonical() {
            IpAddr::V4(ip) => {
                input[16..20].copy_from_slice(&ip.octets());
                20
            }
            IpAddr::V6(ip) => {
                input[16..32].copy_from_slice(&ip.octets());
                32
            }
        };
        siphash24(self.secret, &input[..length]).to_le_bytes()
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012). The standard library's hashers leave open which function they are.
fn siphash24(key: [u8; 16], input: &[u8]) -> u64 {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut chunks = input.chunks_exact(8);
    for chunk in &mut chunks {
        absorb(&mut v, word(chunk));
    }
    absorb(&mut v, (input.len() as u64) << 56 | word(chunks.remainder()));
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    (0..2).for_each(|_| round(v));
    v[0] ^= word;
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Edns;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn the_function_is_siphash() {
        let key = std::array::from_fn(|i| i as u8);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash24(key, &input), 0xa129_ca61_49be_45e5);
    }

    /// RFC 9018 appendices A.1 and A.3.
    #[test]
    fn cookies_are_those_of_other_servers_with_the_same_secret() {
        let cookies = Cookies::new(hex("e5e973e5a6b2a43f48e7dc849e37bfcf"));
        let client = hex("2464c4abcf10c957");
        let ip = "198.51.100.100".parse().unwrap();
        let cookie = cookies.server_cookie(client, ip, 1_559_731_985);
        assert_eq!(cookie, hex("010000005cf79f111f8130c3eee29480"));

        let data = [&[0, 10, 0, 24][..], &client, &cookie].concat();
        let option = Edns::read(1232, [0; 4], &data).unwrap().cookie.unwrap();
        for (now, ip, expect) in [
            (1_559_731_985, "198.51.100.100", true),
            (1_559_731_985 + 3600, "198.51.100.100", true),
            (1_559_731_985 + 3601, "198.51.100.100", false),
            (1_559_731_985 - 301, "198.51.100.100", false),
            (1_559_731_985, "198.51.100.101", false),
        ] {
            assert_eq!(cookies.is_own(&option, ip.parse().unwrap(), now), expect, "{now} {ip}");
        }
    }
}
