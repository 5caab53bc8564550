//! A running balancer before one endpoint, and a reader of what it answers that shares no code with it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use event_watcher::catalog::*;
use event_watcher::publish;
use tokio_util::sync::CancellationToken;

/// Of every wait: what is cut off must end soon.
const PATIENCE: Duration = Duration::from_millis(100);

/// Its service's address.
pub fn start(endpoint: SocketAddr) -> SocketAddr {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
        runtime.block_on(async move {
            let mut config =
                lb_http::Config { http_listen: None, appid_listen: None, ..lb_http::Config::default() };
            let timeouts = &mut config.timeouts;
            timeouts.client_keepalive = PATIENCE;
            timeouts.client_header = PATIENCE;
            timeouts.client_body_idle = PATIENCE;
            timeouts.server_head = PATIENCE;
            timeouts.server_body_idle = PATIENCE;
            let (publisher, subscriber) = publish::channel();
            let (plane, workers) =
                lb_http::start(config, subscriber, 1, CancellationToken::new()).await.expect("it starts");
            for worker in workers {
                tokio::task::spawn_local(worker.run());
            }
            // Somebody else may get a free port in the meantime.
            for generation in (1..).map(Generation) {
                let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
                let port = port.expect("a free port").port();
                let app = Arc::new(app(port, endpoint));
                let apps = [(app.id.clone(), app)].into_iter().collect();
                publisher.publish(Arc::new(Snapshot { generation, apps, ..Snapshot::default() }));
                plane.applied().reached(generation).await.expect("it is applied");
                if plane.problems().is_empty() {
                    ready.send(port).expect("somebody waits");
                    break;
                }
            }
            std::future::pending::<()>().await;
        });
    });
    SocketAddr::from((Ipv4Addr::LOCALHOST, is_ready.recv().expect("the balancer starts")))
}

fn app(port: u16, endpoint: SocketAddr) -> App {
    let id = AppId::new("/fuzz");
    App {
        id: id.clone(),
        version: "v1".into(),
        labels: [("HAPROXY_0_MODE".to_owned(), "http".to_owned())].into(),
        n_instances_wanted: 1,
        services: vec![Service {
            id: ServiceId { app: id, port_index: 0 },
            name: None,
            service_port: Some(port),
            protocols: Protocols::TCP,
            labels: Default::default(),
            vips: vec![],
        }],
        health_checks: vec![],
        instances: vec![Arc::new(Instance {
            id: InstanceId::new("i"),
            host: "127.0.0.1".into(),
            host_address: Some(endpoint.ip()),
            agent: None,
            version: "v1".into(),
            state: InstanceState::Running,
            health: Health::Unchecked,
            readiness: Readiness::Unchecked,
            started_at: None,
            addresses: vec![],
            endpoints: vec![Endpoint { port_index: 0, address: endpoint }],
        })],
        deployments: vec![],
    }
}

/// A response as a client reads it.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub is_whole: bool,
}

/// To which requests answers are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked {
    /// Some may be HEAD, whose answers have no body whatever they say of it.
    Any,
    /// None of them is HEAD.
    Get,
}

/// All final responses of a connection; an error says what is no response.
pub fn answers(bytes: &[u8], asked: Asked) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").ok_or_else(|| format!("no head: {}", rest.escape_ascii()))? + 4;
        let (head, after) = rest.split_at(end);
        let head = String::from_utf8_lossy(head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status: u16 = status.ok_or_else(|| format!("no status line: {head:?}"))?;
        rest = after;
        if status < 200 {
            continue;
        }
        let mut length = None;
        let mut is_chunked = false;
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" if length.is_none() && !is_chunked => {
                    length = Some(value.parse::<usize>().map_err(|_| format!("no length: {line:?}"))?);
                }
                "transfer-encoding" if length.is_none() && !is_chunked && value == "chunked" => {
                    is_chunked = true
                }
                "content-length" | "transfer-encoding" => return Err(format!("framed twice: {head:?}")),
                _ => {}
            }
        }
        let may_be_head = asked == Asked::Any && (rest.is_empty() || rest.starts_with(b"HTTP/1.1 "));
        let has_no_body = matches!(status, 204 | 304) || may_be_head;
        let (mut body, mut is_whole) = (Vec::new(), true);
        if has_no_body {
        } else if is_chunked {
            is_whole = chunks(&mut rest, &mut body)?;
        } else {
            let n = length.unwrap_or(rest.len());
            is_whole = n <= rest.len();
            body = rest[..n.min(rest.len())].to_vec();
            rest = &rest[body.len()..];
        }
        answers.push(Answer { status, body, is_whole });
    }
    Ok(answers)
}

/// Whether the last chunk came.
fn chunks(rest: &mut &[u8], body: &mut Vec<u8>) -> Result<bool, String> {
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(false) };
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        let n = usize::from_str_radix(&size, 16).map_err(|_| format!("no chunk: {size:?}"))?;
        *rest = &rest[end + 2..];
        if n == 0 {
            break;
        }
        let Some(data) = rest.get(..n) else {
            body.extend_from_slice(rest);
            *rest = b"";
            return Ok(false);
        };
        body.extend_from_slice(data);
        *rest = &rest[n..];
        match rest.split_at_checked(2) {
            Some((b"\r\n", after)) => *rest = after,
            None => {
                *rest = b"";
                return Ok(false);
            }
            Some(_) => return Err("data is longer than its chunk".to_owned()),
        }
    }
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(false) };
        *rest = &rest[end + 2..];
        if end == 0 {
            return Ok(true);
        }
    }
}

pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
