//! A client's whole connection: any bytes through a running balancer to an endpoint. Its judge is hyper: all that it
//! takes for a request must be one that the balancer sent, which shows by a line that no client can know.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::http_balancer::{self, Asked};

/// The balancer tells it to the endpoint with each request, and what a client says of it does not go on.
static SERVICE_PORT: AtomicU16 = AtomicU16::new(0);
/// What the endpoint saw that it should not have.
static COMPLAINT: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    static BALANCER: RefCell<Option<SocketAddr>> = const { RefCell::new(None) };
}

fn complain(of: String) {
    COMPLAINT.lock().expect("nobody panics with it").get_or_insert(of);
}

async fn serve(request: hyper::Request<Incoming>) -> Result<hyper::Response<String>, Infallible> {
    let (head, mut body) = request.into_parts();
    let ports: Vec<_> = head.headers.get_all("x-forwarded-port").iter().collect();
    if ports != [&*SERVICE_PORT.load(SeqCst).to_string()] || head.headers.get_all("host").iter().count() > 1 {
        complain(format!("a request that the balancer did not make: {head:?}"));
    }
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Err(error) = frame else { continue };
        let is_bad =
            error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|error| {
                matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
            });
        if is_bad {
            complain(format!("a body that is none: {error:?}"));
        }
        break;
    }
    let mut response = hyper::Response::new("hello".to_owned());
    // Answers of several kinds, the same for the same request.
    match head.uri.path().len() % 4 {
        0 => drop(response.headers_mut().insert("transfer-encoding", "chunked".parse().expect("a value"))),
        1 => *response.status_mut() = hyper::StatusCode::NO_CONTENT,
        2 => drop(response.headers_mut().insert("connection", "close".parse().expect("a value"))),
        _ => {}
    }
    Ok(response)
}

fn start() -> SocketAddr {
    let (address, is_bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
        runtime.block_on(async {
            let listener =
                tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            address.send(listener.local_addr().expect("a bound socket")).expect("somebody waits");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async {
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve));
                    if let Err(error) = connection.await
                        && error.is_parse()
                    {
                        complain(format!("what is no request: {error:?}"));
                    }
                });
            }
        });
    });
    let service = http_balancer::start(is_bound.recv().expect("the endpoint starts"));
    SERVICE_PORT.store(service.port(), SeqCst);
    service
}

pub fn run(input: &[u8]) {
    let address = BALANCER.with_borrow_mut(|known| *known.get_or_insert_with(start));
    let got = ask(address, input);
    if let Err(error) = http_balancer::answers(&got, Asked::Any) {
        panic!("the client was sent {error}, in {}", got.escape_ascii());
    }
    // It goes by the connection that was used last: the endpoint has read what came before.
    ask(address, b"GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    let complaint = COMPLAINT.lock().expect("nobody panics with it").take();
    assert!(complaint.is_none(), "the endpoint saw {}", complaint.unwrap_or_default());
}

fn ask(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    // It may close before all is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    got
}
