//! `waymark dns lookup`: one question over UDP, again over TCP when the answer was cut, printed as dig prints it.
//!
//! It asks one server and never the system's resolver: what it prints is what Waymark answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_server::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::args::StatsArgs;
use crate::commands::stats::StatsClient;
use crate::failure::Failure;
use crate::output;

/// Where `waymark dev` answers DNS when nothing else is known.
const DEFAULT_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8053);
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;
/// What passes every path unfragmented (DNS flag day 2020).
const UDP_PAYLOAD_BYTES: u16 = 1232;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Full,
    Short,
    Json,
}

pub async fn run(
    stats: &StatsArgs,
    name: &str,
    record_type: &str,
    form: Form,
    server: Option<SocketAddr>,
) -> Result<(), Failure> {
    let record_type = RecordType::from_str(&record_type.to_uppercase()).map_err(|_| {
        Failure::usage(format!("{record_type:?} is no record type")).hint("e.g. A, AAAA, SRV")
    })?;
    let mut asked =
        Name::from_utf8(name).map_err(|e| Failure::usage(format!("{name:?} is no DNS name: {e}")))?;
    asked.set_fqdn(true);
    let server = match server {
        Some(server) => server,
        None => learn_server(stats).await,
    };
    let answer = ask(server, &asked, record_type).await?;
    if answer.response_code != ResponseCode::NoError {
        return Err(refused(name, server, answer.response_code));
    }
    if answer.answers.is_empty() {
        return Err(Failure::new(format!("{name} has no {record_type} records"))
            .hint(format!("the name exists (NODATA from {server}); another type may have records")));
    }
    match form {
        Form::Json => output::print_json(&answer.answers.iter().map(as_json).collect::<Vec<_>>()),
        Form::Short => {
            print_each(answer.answers.iter().filter(|r| r.record_type() == record_type), |r| data(&r.data))
        }
        Form::Full => print_each(answer.answers.iter(), line),
    }
}

fn print_each<'a>(
    records: impl Iterator<Item = &'a Record>,
    text: impl Fn(&Record) -> String,
) -> Result<(), Failure> {
    output::print(&records.map(|record| text(record) + "\n").collect::<String>())
}

/// dig's answer section: name, TTL, class, type, data.
fn line(record: &Record) -> String {
    format!(
        "{}\t{}\t{}\t{}\t{}",
        record.name,
        record.ttl,
        record.dns_class,
        record.record_type(),
        data(&record.data)
    )
}

fn data(data: &RData) -> String {
    data.to_string()
}

fn as_json(record: &Record) -> serde_json::Value {
    json!({
        "name": record.name.to_string(),
        "ttl": record.ttl,
        "type": record.record_type().to_string(),
        "data": data(&record.data),
    })
}

fn refused(name: &str, server: SocketAddr, code: ResponseCode) -> Failure {
    let (word, hint) = match code {
        ResponseCode::NXDomain => (
            "NXDOMAIN",
            "there is no such name; --trace says what there is, and waymark vip list shows the VIP names",
        ),
        ResponseCode::ServFail => ("SERVFAIL", "the server has no data yet; waymark status says why"),
        ResponseCode::Refused => ("REFUSED", "the server answers only its own zones and forwards nothing"),
        ResponseCode::FormErr => ("FORMERR", "the server did not understand the question"),
        ResponseCode::NotImp => ("NOTIMP", "the server does not implement this"),
        other => return Failure::new(format!("{name}: {other} (from {server})")),
    };
    Failure::new(format!("{name}: {word} (from {server})")).hint(hint)
}

/// The first DNS address of the running Waymark; the usual one when none can be asked.
async fn learn_server(stats: &StatsArgs) -> SocketAddr {
    let asked = async {
        let status = StatsClient::new(stats).ok()?.get("api/status").await.ok()?;
        status["addresses"]["dns"].get(0)?.as_str()?.parse().ok()
    };
    timeout(TIMEOUT, asked).await.ok().flatten().unwrap_or(DEFAULT_SERVER)
}

async fn ask(server: SocketAddr, name: &Name, record_type: RecordType) -> Result<Message, Failure> {
    let id = rand::random();
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES);
    question.edns = Some(edns);
    let bytes = question.to_vec().map_err(|e| Failure::chain("cannot write the question", &e))?;
    let answer = over_udp(server, &bytes, id).await?;
    if answer.truncation { over_tcp(server, &bytes).await } else { Ok(answer) }
}

async fn over_udp(server: SocketAddr, question: &[u8], id: u16) -> Result<Message, Failure> {
    let failed = |e: std::io::Error| no_answer(server, &e.to_string());
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        "[::]:0".parse().expect("an address")
    };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..ATTEMPTS {
        socket.send(question).await.map_err(failed)?;
        let answered = timeout(TIMEOUT, async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                match Message::from_vec(&buffer[..length]) {
                    Ok(message) if message.id == id && message.message_type == MessageType::Response => {
                        return Ok(message);
                    }
                    // Somebody else's datagram, or noise: ours may still come.
                    _ => {}
                }
            }
        });
        match answered.await {
            Ok(outcome) => return outcome.map_err(failed),
            Err(_) => continue,
        }
    }
    Err(no_answer(server, "timed out"))
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> Result<Message, Failure> {
    let asked = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(TIMEOUT * ATTEMPTS as u32, asked)
        .await
        .map_err(|_| no_answer(server, "timed out over TCP"))?
        .map_err(|e| no_answer(server, &e.to_string()))?;
    Message::from_vec(&answer).map_err(|e| Failure::chain(format!("{server} sent no DNS message"), &e))
}

fn no_answer(server: SocketAddr, reason: &str) -> Failure {
    let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
    Failure::new(format!("no DNS answer from {server}: {reason}"))
        .hint("is waymark dev running? otherwise name its DNS address with --server ADDRESS or WAYMARK_DNS")
}
