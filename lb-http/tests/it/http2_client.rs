//! A client that speaks HTTP/2, whose every stream a test may hold in its hands.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request as Head};
use lb_http::{Config, Http2};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::*;

/// A client's connection.
pub struct Streams {
    pub send: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: HeaderMap,
}

impl Streams {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connect", TcpStream::connect(address)).await.unwrap();
        let (send, connection) = soon("handshake", h2::client::handshake(stream)).await.unwrap();
        Self { send, connection: tokio::spawn(connection) }
    }

    /// Sends a head; what is not ended has a body.
    pub async fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        is_end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut head = Head::builder().method(method).uri(format!("http://a.test{path}"));
        for (name, value) in headers {
            head = head.header(*name, *value);
        }
        self.send = soon("room for a stream", self.send.clone().ready()).await.unwrap();
        self.send.send_request(head.body(()).unwrap(), is_end).unwrap()
    }

    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", path, headers).await
    }

    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let (response, _) = self.begin(method, path, headers, true).await;
        answer(response).await.unwrap()
    }

    pub async fn post(&mut self, body: &'static str) -> Answer {
        let (response, mut stream) = self.begin("POST", "/", &[], false).await;
        stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        answer(response).await.unwrap()
    }
}

pub async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let read = async {
        let (head, mut stream) = response.await?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        let trailers = stream.trailers().await?.unwrap_or_default();
        let body = String::from_utf8(body).unwrap();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, trailers })
    };
    soon("response", read).await
}

/// Sends all of it as fast as there is room.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        stream.send_data(body.split_to(room.min(body.len())), body.is_empty()).unwrap();
    }
}

pub fn knows_http2(config: &mut Config) {
    config.http2 = Http2::WithPriorKnowledge;
}

/// A cluster with one app, and an HTTP/2 connection to it.
pub async fn service(app: &AppSpec) -> (Cluster, Streams) {
    let mut cluster = Cluster::with(knows_http2).await;
    cluster.put(app).await;
    assert!(cluster.plane.problems().is_empty(), "{:?}", cluster.plane.problems());
    (cluster, Streams::connect(app.address()).await)
}

/// An endpoint that the test itself plays.
pub async fn endpoint() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub async fn accept(listener: &TcpListener) -> TcpStream {
    soon("a connection to the endpoint", listener.accept()).await.unwrap().0
}

/// Up to and with these bytes; what is behind them stays where it is.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(end.as_bytes()) {
            bytes.push(stream.read_u8().await.unwrap_or_else(|e| panic!("closed before {end:?}: {e}")));
        }
    };
    soon(end, read).await;
    String::from_utf8(bytes).unwrap()
}
