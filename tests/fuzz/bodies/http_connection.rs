//! A whole connection: any bytes from a client through a running balancer, to an endpoint that must only ever see what
//! a strict reader takes for requests.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use event_watcher::catalog::*;
use event_watcher::publish;
use lb_http::http1::Framing;
use lb_http::http1::request::Request;
use tokio_util::sync::CancellationToken;

/// The endpoint was sent what is no request.
static SAW_NO_REQUEST: AtomicBool = AtomicBool::new(false);

thread_local! {
    static BALANCER: RefCell<Option<SocketAddr>> = const { RefCell::new(None) };
}

/// Reads requests and answers each.
fn endpoint(mut stream: TcpStream) {
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") {
            let mut fields = Vec::new();
            let head = input[..end + 4].to_vec();
            let Ok(request) = Request::parse(&head, &mut fields) else {
                SAW_NO_REQUEST.store(true, SeqCst);
                return;
            };
            let body = match request.framing {
                Framing::Length(n) => n as usize,
                // The body's own grammar is another target's.
                Framing::Chunked => return,
                Framing::None | Framing::UntilClose => 0,
            };
            if input.len() < end + 4 + body {
                break;
            }
            input.drain(..end + 4 + body);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => input.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
}

fn start() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || endpoint(stream));
        }
    });
    let port =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port").port();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
        runtime.block_on(async move {
            let mut config =
                lb_http::Config { http_listen: None, appid_listen: None, ..lb_http::Config::default() };
            config.timeouts.client_keepalive = Duration::from_millis(100);
            config.timeouts.client_header = Duration::from_millis(100);
            config.timeouts.client_body_idle = Duration::from_millis(100);
            let (publisher, subscriber) = publish::channel();
            let (plane, workers) =
                lb_http::start(config, subscriber, 1, CancellationToken::new()).await.expect("it starts");
            for worker in workers {
                tokio::task::spawn_local(worker.run());
            }
            let app = Arc::new(app(port, address));
            let apps = [(app.id.clone(), app)].into_iter().collect();
            publisher.publish(Arc::new(Snapshot { generation: Generation(1), apps, ..Snapshot::default() }));
            plane.applied().reached(Generation(1)).await.expect("it is applied");
            ready.send(()).expect("somebody waits");
            std::future::pending::<()>().await;
        });
    });
    is_ready.recv().expect("the balancer starts");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
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

pub fn run(input: &[u8]) {
    let address = BALANCER.with_borrow_mut(|known| *known.get_or_insert_with(start));
    let mut stream = TcpStream::connect(address).expect("it listens");
    // It may close before all is written.
    let _ = stream.write_all(input);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(!SAW_NO_REQUEST.load(SeqCst), "what is forwarded is a request");
    assert!(got.is_empty() || got.starts_with(b"HTTP/1.1 "), "an answer is a response");
}
