//! One question to one upstream: over UDP, over TCP when the answer was cut or cannot be trusted, and without EDNS when
//! that is what it does not understand (RFC 6891 section 7).
//!
//! Which upstream is asked when is not decided here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_server::proto::op::{Message, ResponseCode};
use hickory_server::proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::question::{Match, Spelled, Terms};
use super::upstream::Upstream;
use crate::config::MAX_UDP_PAYLOAD_BYTES;

/// In the third byte of a message.
const TRUNCATED: u8 = 0x02;

/// Why one upstream gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot exchange packets")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Elapsed(#[from] tokio::time::error::Elapsed),
    #[error("cannot read the answer")]
    Malformed(#[from] DecodeError),
    #[error("the answer is to another question")]
    Unrelated,
}

pub(crate) async fn ask(spelled: &Spelled, upstream: &Upstream, until: Instant) -> Result<Message, AskError> {
    if !upstream.may_take_edns() {
        return ask_in(Terms::Plain, spelled, upstream.address, until).await;
    }
    // Who is known to take EDNS is not silent because of it.
    let now = Instant::now();
    let is_known = upstream.is_known_to_take_edns();
    let patience = if is_known { until } else { now + until.saturating_duration_since(now) / 2 };
    let answer = ask_in(Terms::Edns, spelled, upstream.address, patience).await;
    match &answer {
        Ok(message) if does_not_understand(message) => {}
        Ok(message) => {
            if message.edns.is_some() {
                upstream.took_edns();
            }
            return answer;
        }
        Err(AskError::Elapsed(_)) if !is_known => {}
        Err(_) => return answer,
    }
    upstream.asked_again_without_edns();
    let plain = ask_in(Terms::Plain, spelled, upstream.address, until).await;
    match (&answer, &plain) {
        // It says the same without EDNS, which therefore was not the reason.
        (Ok(_), Ok(message)) if does_not_understand(message) => {}
        (Ok(_), Ok(_)) => upstream.refused_edns(),
        (Err(_), Ok(_)) => upstream.kept_silent_about_edns(),
        (_, Err(_)) => {}
    }
    plain
}

fn does_not_understand(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp)
}

async fn ask_in(
    terms: Terms,
    spelled: &Spelled,
    upstream: SocketAddr,
    until: Instant,
) -> Result<Message, AskError> {
    let id = rand::random();
    let query = spelled.packet(id, terms);
    let answer = timeout_at(until, ask_udp(spelled, id, &query, upstream)).await??;
    if let UdpAnswer::Whole(packet) = answer {
        return Ok(Message::from_vec(&packet)?);
    }
    let packet = timeout_at(until, ask_tcp(&query, upstream)).await??;
    // A connection is nothing that a stranger could write into, so the spelling does not matter here.
    if spelled.is_answered_by(&packet, id) == Match::No {
        return Err(AskError::Unrelated);
    }
    Ok(Message::from_vec(&packet)?)
}

enum UdpAnswer {
    Whole(Vec<u8>),
    /// It was cut, wherever that was, or is right but for its spelling.
    AskOverTcp,
}

async fn ask_udp(spelled: &Spelled, id: u16, query: &[u8], upstream: SocketAddr) -> io::Result<UdpAnswer> {
    let any =
        if upstream.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket per query: its random port is as much to guess as the id (RFC 5452).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut packet = vec![0; usize::from(MAX_UDP_PAYLOAD_BYTES)];
    loop {
        let n = socket.recv(&mut packet).await?;
        match spelled.is_answered_by(&packet[..n], id) {
            Match::No => {}
            Match::OtherSpelling => return Ok(UdpAnswer::AskOverTcp),
            Match::Exact if packet[2] & TRUNCATED != 0 => return Ok(UdpAnswer::AskOverTcp),
            Match::Exact | Match::NotUnderstood => {
                packet.truncate(n);
                return Ok(UdpAnswer::Whole(packet));
            }
        }
    }
}

async fn ask_tcp(query: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}
