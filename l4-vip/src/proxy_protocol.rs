//! The PROXY protocol, versions 1 and 2: who a connection is really from, told in front of its first byte.
//!
//! <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>. What does not follow it to the letter is refused, and
//! no more is read than the header is long. Additional values (TLVs) are skipped, checksums among them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Section 2.1: the longest line, its end included.
const LONGEST_LINE: usize = 107;
/// After the 16 bytes of the second version's head: addresses and values. More is nothing that a balancer sends.
const LONGEST_REST: usize = 2048;

/// The two ends of the connection that a header speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("the connection ended or failed before its PROXY header was there: {0}")]
    Io(#[from] io::Error),
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
}

/// Takes the header off a connection. `None`: the sender speaks for itself (`LOCAL`, `UNKNOWN`), so the connection's
/// own addresses count. The caller limits the time.
pub async fn read(stream: &mut TcpStream) -> Result<Option<Ends>, HeaderError> {
    let mut head = [0; 16];
    stream.read_exact(&mut head[..SIGNATURE.len()]).await?;
    if head[..SIGNATURE.len()] == SIGNATURE {
        stream.read_exact(&mut head[SIGNATURE.len()..]).await?;
        let n = usize::from(u16::from_be_bytes([head[14], head[15]]));
        if n > LONGEST_REST {
            return Err(HeaderError::Malformed("it is too long"));
        }
        let mut rest = vec![0; n];
        stream.read_exact(&mut rest).await?;
        return of_v2(head[12], head[13], &rest);
    }
    if !head.starts_with(b"PROXY ") {
        return Err(HeaderError::Missing);
    }
    let mut line = [0; LONGEST_LINE];
    let mut n = SIGNATURE.len();
    line[..n].copy_from_slice(&head[..n]);
    loop {
        // Looked at first, because what follows the line is not ours.
        let n_there = stream.peek(&mut line[n..]).await?;
        if n_there == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let end = line[n..n + n_there].iter().position(|byte| *byte == b'\n');
        let n_taken = end.map_or(n_there, |at| at + 1);
        stream.read_exact(&mut line[n..n + n_taken]).await?;
        n += n_taken;
        if end.is_some() {
            return of_v1(&line[..n]);
        }
        if n == LONGEST_LINE {
            return Err(HeaderError::Malformed("the line has no end"));
        }
    }
}

fn of_v1(line: &[u8]) -> Result<Option<Ends>, HeaderError> {
    let text = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix("\r\n"));
    let text = text.ok_or(HeaderError::Malformed("the line does not end as it should"))?;
    let mut words = text.split(' ').skip(1);
    let family = match words.next() {
        // Section 2.1: whatever follows is ignored.
        Some("UNKNOWN") => return Ok(None),
        Some(family @ ("TCP4" | "TCP6")) => family,
        _ => return Err(HeaderError::Malformed("an unknown protocol")),
    };
    let mut address = || {
        let text = words.next()?;
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        }
    };
    let (source, destination) = (address(), address());
    let mut port = || {
        let text = words.next()?;
        let is_canonical = text == "0" || !text.starts_with(['0', '+']);
        text.parse::<u16>().ok().filter(|_| is_canonical)
    };
    let (source_port, destination_port) = (port(), port());
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(source), Some(destination), Some(source_port), Some(destination_port), None) => {
            Ok(Some(Ends {
                source: SocketAddr::new(source, source_port),
                destination: SocketAddr::new(destination, destination_port),
            }))
        }
        _ => Err(HeaderError::Malformed("two addresses and two ports are wanted")),
    }
}

fn of_v2(command: u8, family: u8, rest: &[u8]) -> Result<Option<Ends>, HeaderError> {
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(HeaderError::Malformed("an unknown version or command")),
    }
    let short = HeaderError::Malformed("it is shorter than its addresses");
    let (address_bytes, is_v6) = match family {
        // Section 2.2: an unspecified one is to be taken for the connection's own.
        0x00 => return Ok(None),
        0x11 => (4, false),
        0x21 => (16, true),
        _ => return Err(HeaderError::Malformed("neither TCP over IPv4 nor over IPv6")),
    };
    let n = 2 * address_bytes;
    let (Some(addresses), Some(ports)) = (rest.get(..n), rest.get(n..n + 4)) else { return Err(short) };
    skip_values(&rest[n + 4..])?;
    let ip = |bytes: &[u8]| match is_v6 {
        true => <[u8; 16]>::try_from(bytes).map(IpAddr::from),
        false => <[u8; 4]>::try_from(bytes).map(IpAddr::from),
    };
    let (source, destination) = addresses.split_at(address_bytes);
    let (Ok(source), Ok(destination)) = (ip(source), ip(destination)) else { return Err(short) };
    Ok(Some(Ends {
        source: SocketAddr::new(source, u16::from_be_bytes([ports[0], ports[1]])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([ports[2], ports[3]])),
    }))
}

/// Each is a type, a length of two bytes, and so many bytes.
fn skip_values(mut rest: &[u8]) -> Result<(), HeaderError> {
    while !rest.is_empty() {
        let wrong = HeaderError::Malformed("a value is longer than the header");
        let [_, high, low, value @ ..] = rest else { return Err(wrong) };
        let n = usize::from(u16::from_be_bytes([*high, *low]));
        rest = value.get(n..).ok_or(wrong)?;
    }
    Ok(())
}

/// What is sent in front of a client's bytes. Ends of different families are told as IPv6.
pub fn header(version: Version, ends: &Ends) -> Vec<u8> {
    let (source, destination) = (canonical(ends.source), canonical(ends.destination));
    let (source_ip, destination_ip) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V6(b)) => (IpAddr::V6(a.to_ipv6_mapped()), IpAddr::V6(b)),
        (IpAddr::V6(a), IpAddr::V4(b)) => (IpAddr::V6(a), IpAddr::V6(b.to_ipv6_mapped())),
        same => same,
    };
    match version {
        Version::V1 => {
            let family = if source_ip.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.port(), destination.port());
            format!("PROXY {family} {source_ip} {destination_ip} {from} {to}\r\n").into_bytes()
        }
        Version::V2 => {
            let mut bytes = SIGNATURE.to_vec();
            let (family, n) = if source_ip.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            bytes.extend([0x21, family, 0, n]);
            for ip in [source_ip, destination_ip] {
                match ip {
                    IpAddr::V4(ip) => bytes.extend(ip.octets()),
                    IpAddr::V6(ip) => bytes.extend(ip.octets()),
                }
            }
            for port in [source.port(), destination.port()] {
                bytes.extend(port.to_be_bytes());
            }
            bytes
        }
    }
}

/// What is sent on a connection that is for nobody else, such as a health check's.
pub fn local(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        Version::V2 => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// Reads from a real connection that sends these bytes, then an end; tells what is left as well.
    async fn read_from(bytes: &[u8]) -> (Result<Option<Ends>, HeaderError>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        sender.write_all(bytes).await.unwrap();
        drop(sender);
        let read = read(&mut stream).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        (read, rest)
    }

    #[tokio::test]
    async fn what_is_sent_is_read_and_what_follows_is_left() {
        for (source, destination) in [
            ("10.0.0.1:1024", "10.0.0.2:443"),
            ("[fd00::1]:1024", "[fd00::2]:443"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.2:2"),
        ] {
            let ends = ends(source, destination);
            for version in [Version::V1, Version::V2] {
                let (read, rest) = read_from(&[&header(version, &ends)[..], b"GET /\n"].concat()).await;
                let expect =
                    Ends { source: canonical(ends.source), destination: canonical(ends.destination) };
                assert_eq!(read.unwrap(), Some(expect), "{version:?}");
                assert_eq!(rest, b"GET /\n");
                let (read, rest) = read_from(&[&local(version)[..], b"x"].concat()).await;
                assert_eq!((read.unwrap(), &rest[..]), (None, &b"x"[..]));
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            [&SIGNATURE[..], &[command, family, (rest.len() >> 8) as u8, rest.len() as u8], rest].concat()
        };
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(120));
        let values = [&[0; 12][..], &[4, 0, 9, 1]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 65536\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 01 2\r\n",
            b"PROXY TCP4 10.0.0.01 10.0.0.2 1 2\r\n",
            b"PROXY TCP4  10.0.0.1 10.0.0.2 1 2\r\n",
            b"PROXY TCP4 fd00::1 fd00::2 1 2\r\n",
            b"PROXY TCP6 10.0.0.1 10.0.0.2 1 2\r\n",
            b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n",
            b"proxy TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
            b"PROXY TCP4 10.0.0.1",
            long.as_bytes(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x12, &[0; 12]),
            &v2(0x21, 0x31, &[0; 216]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &values),
            &v2(0x21, 0x11, &[0; 3000]),
            &v2(0x21, 0x11, &[0; 12])[..20],
        ] {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            sender.write_all(bytes).await.unwrap();
            drop(sender);
            let refused = read(&mut stream).await;
            assert!(refused.is_err(), "{refused:?}: {:?}", String::from_utf8_lossy(bytes));
        }
    }
}
