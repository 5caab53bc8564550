//! A UDP service behind a named VIP: its clients keep their instance, leave it when it goes, and are told when there is
//! none.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::waymark::Waymark;
use tokio::net::UdpSocket;

use crate::PROGRAM;

const DEADLINE: Duration = Duration::from_secs(10);
const NAME: &str = "name-it.marathon.l4lb.thisdcos.directory";
const PORT: u16 = 5353;

/// Answers each datagram with the instance's id and the datagram.
const SERVER: &str = "import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((os.environ['HOST'], int(os.environ['PORT0'])))
while True:
    question, client = s.recvfrom(65536)
    s.sendto(os.environ['MESOS_TASK_ID'].encode() + b' ' + question, client)
";

async fn client(vip: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(vip).await?;
    Ok(socket)
}

/// Asks once; what is lost is an error, as a refusal is. Late answers to earlier questions do not count.
async fn ask(client: &UdpSocket, patience: Duration) -> std::io::Result<String> {
    static QUESTION: AtomicU32 = AtomicU32::new(0);
    let question = QUESTION.fetch_add(1, Relaxed).to_string();
    client.send(question.as_bytes()).await?;
    let answered = async {
        let mut buffer = [0; 1024];
        loop {
            let n = client.recv(&mut buffer).await?;
            let answer = String::from_utf8_lossy(&buffer[..n]);
            if let Some((instance, to)) = answer.split_once(' ')
                && to == question
            {
                return Ok(instance.to_owned());
            }
        }
    };
    tokio::time::timeout(patience, answered).await?
}

/// Asks until there is an answer: an instance that has just started may not listen yet.
async fn ask_until_answered(client: &UdpSocket) -> anyhow::Result<String> {
    let answered = async {
        loop {
            if let Ok(answer) = ask(client, Duration::from_millis(100)).await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(DEADLINE, answered).await?)
}

async fn address(waymark: &Waymark) -> anyhow::Result<IpAddr> {
    Ok(waymark.ok(&["dns", "lookup", "--short", NAME]).await?.trim().parse()?)
}

#[tokio::test]
async fn clients_keep_their_instance_leave_one_that_goes_and_are_told_when_there_is_none()
-> anyhow::Result<()> {
    let waymark = Waymark::dev(PROGRAM, &["--no-demo"]).await?;
    let file = waymark.scratch().join("app.json");
    let app = json!({
        "id": "/name-it", "args": ["python3", "-c", SERVER], "instances": 2, "cpus": 0.1, "mem": 32,
        "portDefinitions": [{"port": 0, "protocol": "udp", "labels": {"VIP_0": format!("/name-it:{PORT}")}}],
    });
    std::fs::write(&file, app.to_string())?;
    waymark.ok(&["app".as_ref(), "add".as_ref(), file.as_os_str(), "--wait".as_ref()]).await?;
    let vip = SocketAddr::new(address(&waymark).await?, PORT);

    let mut clients = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let client = client(vip).await?;
        let instance = ask_until_answered(&client).await?;
        clients.push((client, instance));
        let seen: BTreeSet<&str> = clients.iter().map(|(_, instance)| instance.as_str()).collect();
        if clients.len() >= 6 && seen.len() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "both instances answer: {seen:?}");
    }
    for (client, instance) in &clients {
        for _ in 0..3 {
            assert_eq!(ask(client, DEADLINE).await?, *instance);
        }
    }
    let shown = waymark.stats("/api/vips").await?.json()?;
    assert_eq!(shown["vips"][0]["protocol"], "udp", "{shown}");

    waymark.ok(&["app", "scale", "/name-it", "1", "--wait"]).await?;
    let mut answers = BTreeSet::new();
    for (client, before) in &clients {
        let asked = Instant::now();
        let now = ask_until_answered(client).await?;
        assert!(asked.elapsed() < Duration::from_secs(1), "{before} to {now}: {:?}", asked.elapsed());
        answers.insert(now);
    }
    assert_eq!(answers.len(), 1, "{answers:?}");

    waymark.ok(&["app", "scale", "/name-it", "0", "--wait"]).await?;
    assert_eq!(address(&waymark).await?, vip.ip(), "the name and its address stay");
    // SAFETY: geteuid takes and returns numbers only. Root has the right to raw sockets, which telling takes.
    if unsafe { libc::geteuid() } == 0 {
        let refused = ask(&clients[0].0, DEADLINE).await.map_err(|e| e.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    }

    waymark.ok(&["app", "scale", "/name-it", "1", "--wait"]).await?;
    ask_until_answered(&clients[0].0).await?;
    Ok(())
}
