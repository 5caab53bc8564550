//! Asks the configured upstream resolvers for names of other zones, so that Waymark can be a node's only resolver.
//!
//! It keeps no cache, and it never sees a name of a served zone: the handler answers those itself. What comes back is
//! read and written again with hickory; bytes of an upstream never reach a client unread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::Duration;

use hickory_server::proto::op::{Edns as HickoryEdns, Message, ResponseCode};
use hickory_server::proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::config::{Config, MAX_UDP_PAYLOAD_BYTES};
use crate::stats::{Counters, ForwardOutcome};
use crate::wire::{Edns, HEADER, Head, Reply};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// A query for a name of another zone, kept while upstreams are asked.
#[derive(Debug)]
pub(crate) struct Foreign {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    question: Box<[u8]>,
    edns: Option<Edns>,
    limit: usize,
}

impl Foreign {
    pub fn new(head: Head<'_>, limit: usize) -> Self {
        Self {
            id: head.id,
            recursion_desired: head.recursion_desired,
            checking_disabled: head.checking_disabled,
            question: head.question.into(),
            edns: head.edns,
            limit,
        }
    }

    fn head(&self) -> Head<'_> {
        Head {
            id: self.id,
            recursion_desired: self.recursion_desired,
            checking_disabled: self.checking_disabled,
            question: &self.question,
            edns: self.edns,
        }
    }

    /// The same question under an id of its own, with our own EDNS terms: they hold per hop (RFC 6891 section 6.1).
    fn upstream_query(&self, id: u16, payload_bytes: u16) -> Vec<u8> {
        let mut packet = Vec::with_capacity(HEADER + self.question.len() + 11);
        let checking_disabled = u8::from(self.checking_disabled) << 4;
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(&[1, checking_disabled, 0, 1, 0, 0, 0, 0, 0, 1]);
        packet.extend_from_slice(&self.question);
        let [high, low] = payload_bytes.to_be_bytes();
        let dnssec_ok = if self.edns.is_some_and(|edns| edns.dnssec_ok) { 0x80 } else { 0 };
        packet.extend_from_slice(&[0, 0, 41, high, low, 0, 0, dnssec_ok, 0, 0, 0]);
        packet
    }

    /// Whether a packet is the answer to the question that was sent under `id`, and not somebody's guess.
    fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        packet.len() >= HEADER + self.question.len()
            && packet[..2] == id.to_be_bytes()
            && packet[2] & 0xf8 == 0x80
            && packet[4..6] == [0, 1]
            && packet[HEADER..][..self.question.len()] == *self.question
    }
}

#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Box<[SocketAddr]>,
    in_flight: Semaphore,
    payload_bytes: u16,
    upstream_timeout: Duration,
    total_timeout: Duration,
}

/// Why one upstream gave no usable answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("cannot exchange packets")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Elapsed(#[from] tokio::time::error::Elapsed),
    #[error("cannot read the answer")]
    Malformed(#[from] DecodeError),
    #[error("the answer is to another question")]
    Unrelated,
}

impl Forwarder {
    /// Upstreams that are this server itself are left out.
    pub fn new(config: &Config, own: &[SocketAddr]) -> Self {
        let configured = config.upstreams.clone().unwrap_or_else(system_upstreams);
        let (loops, upstreams): (Vec<_>, Vec<_>) =
            configured.into_iter().partition(|upstream| is_served_by(*upstream, own));
        for upstream in loops {
            tracing::warn!(%upstream, "an upstream resolver is this server itself; it is not asked");
        }
        Self {
            upstreams: upstreams.into(),
            in_flight: Semaphore::new(config.n_forwards_max),
            payload_bytes: config.udp_payload_bytes,
            upstream_timeout: config.upstream_timeout,
            total_timeout: config.forward_timeout,
        }
    }

    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    /// Appends an answer to `out`, in any case: of an upstream, or REFUSED when too much is in flight already, or
    /// SERVFAIL.
    pub async fn answer(&self, foreign: &Foreign, counters: &Counters, out: &mut Vec<u8>) {
        let Ok(_permit) = self.in_flight.try_acquire() else {
            self.fail(foreign, ResponseCode::Refused, out);
            counters.forwarded(ForwardOutcome::Full);
            counters.answered(ResponseCode::Refused);
            return;
        };
        let resolved = self.resolve(foreign).await.and_then(|message| {
            let code = message.metadata.response_code;
            Some((self.rewrite(message, foreign)?, code))
        });
        match resolved {
            Some((packet, code)) => {
                out.extend_from_slice(&packet);
                counters.forwarded(ForwardOutcome::Answered);
                counters.answered(code);
            }
            None => {
                self.fail(foreign, ResponseCode::ServFail, out);
                counters.forwarded(ForwardOutcome::Failed);
                counters.answered(ResponseCode::ServFail);
            }
        }
    }

    fn fail(&self, foreign: &Foreign, code: ResponseCode, out: &mut Vec<u8>) {
        let mut reply = Reply::new(foreign.head(), out, foreign.limit, self.payload_bytes);
        reply.set_recursion_available();
        reply.finish(code);
    }

    /// Asks one upstream after the other. The first good answer counts; a refusal counts only if nobody does better.
    async fn resolve(&self, foreign: &Foreign) -> Option<Message> {
        let deadline = Instant::now() + self.total_timeout;
        let mut refusal = None;
        for upstream in &self.upstreams {
            let until = deadline.min(Instant::now() + self.upstream_timeout);
            match self.ask(foreign, *upstream, until).await {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::ServFail | ResponseCode::Refused => refusal = Some(message),
                    _ => return Some(message),
                },
                Err(error) => {
                    tracing::debug!(%upstream, error = &error as &dyn std::error::Error, "no answer")
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        refusal
    }

    async fn ask(
        &self,
        foreign: &Foreign,
        upstream: SocketAddr,
        until: Instant,
    ) -> Result<Message, AskError> {
        let id = rand::random();
        let query = foreign.upstream_query(id, self.payload_bytes);
        let packet = timeout_at(until, ask_udp(foreign, id, &query, upstream)).await??;
        let message = Message::from_vec(&packet)?;
        if !message.metadata.truncation {
            return Ok(message);
        }
        let packet = timeout_at(until, ask_tcp(&query, upstream)).await??;
        if !foreign.is_answered_by(&packet, id) {
            return Err(AskError::Unrelated);
        }
        Ok(Message::from_vec(&packet)?)
    }

    /// The upstream's message as the client may have it; `None` if it cannot be written.
    fn rewrite(&self, mut message: Message, foreign: &Foreign) -> Option<Vec<u8>> {
        message.metadata.id = foreign.id;
        message.metadata.recursion_desired = foreign.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = foreign.checking_disabled;
        message.signature = None;
        message.edns = foreign.edns.map(|asked| {
            let mut edns = HickoryEdns::new();
            edns.set_max_payload(self.payload_bytes).set_dnssec_ok(asked.dnssec_ok);
            edns
        });
        let packet = message.to_vec().ok()?;
        if packet.len() <= foreign.limit {
            return Some(packet);
        }
        message.truncate().to_vec().ok()
    }
}

async fn ask_udp(foreign: &Foreign, id: u16, query: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any =
        if upstream.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket per query: its random port is as much to guess as the id (RFC 5452).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut packet = vec![0; usize::from(MAX_UDP_PAYLOAD_BYTES)];
    loop {
        let n = socket.recv(&mut packet).await?;
        if foreign.is_answered_by(&packet[..n], id) {
            packet.truncate(n);
            return Ok(packet);
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

/// The resolvers that this host uses.
fn system_upstreams() -> Vec<SocketAddr> {
    match std::fs::read_to_string(RESOLV_CONF) {
        Ok(text) => parse_resolv_conf(&text),
        Err(error) => {
            tracing::warn!(%error, "cannot read {RESOLV_CONF}; names of other zones are refused");
            Vec::new()
        }
    }
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers.filter_map(|word| word.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

/// Whether asking `upstream` would be asking ourselves.
fn is_served_by(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        own.port() == upstream.port()
            && (own.ip() == upstream.ip() || own.ip().is_unspecified() && is_of_this_host(upstream.ip()))
    })
}

fn is_of_this_host(ip: IpAddr) -> bool {
    StdUdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_the_rest_of_resolv_conf_is_not() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 10.0.0.1 # first\n\tnameserver  ::1\nnameserver x\n\
                    nameserver\noptions timeout:1\n";
        let expect: Vec<SocketAddr> = ["10.0.0.1:53", "[::1]:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(parse_resolv_conf(text), expect);
    }

    #[test]
    fn this_server_is_no_upstream_of_itself() {
        for (own, upstream, expect) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.2:53", false),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "192.0.2.1:53", false),
        ] {
            assert_eq!(
                is_served_by(upstream.parse().unwrap(), &[own.parse().unwrap()]),
                expect,
                "{upstream}"
            );
        }
    }
}
