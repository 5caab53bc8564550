//! HTTP/2 towards clients: hyper speaks it, and each stream becomes one HTTP/1.1 exchange of our own engine.
//!
//! A stream's request is written as HTTP/1.1 into a pipe in memory whose other end is a client's connection like any
//! other. So routing, guard, rules of services, statistics and connections to endpoints are the same whatever a client
//! speaks, and nothing that the guard refuses can come in by another protocol. Endpoints are spoken to in HTTP/1.1.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, COOKIE, HOST, HeaderValue, TE};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Either, Empty};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::http1::connection::{self, FAREWELL, FAREWELL_BYTES};
use crate::http1::side::ClientStream;
use crate::proxy::{Accepted, Entry, Protection};
use crate::stats::Series;
use crate::wait::{Phase, Registered};
use crate::worker::{Local, Permit};

/// RFC 9113 section 5.1.2 recommends at least 100.
const MOST_STREAMS: u32 = 128;
/// Streams that a client opened and reset before they were looked at (CVE-2023-44487).
const MOST_PENDING_RESETS: usize = 20;
/// Resets that a client's own errors cause (CVE-2025-8671).
const MOST_ERROR_RESETS: usize = 256;
/// A stream's buffer in each direction.
const PIPE_BYTES: usize = 32 * 1024;
/// A client that does not answer a ping is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

impl ClientStream for DuplexStream {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Dropped before the end of a message, it is seen to be cut.
    fn cut(&self) {}
}

/// What the streams of a connection share.
struct Client {
    local: Rc<Local>,
    address: std::net::SocketAddr,
    local_port: u16,
    entry: Entry,
    protection: Protection,
    frontend: std::sync::Arc<Series>,
    permit: Rc<Permit>,
    n_streams: Cell<usize>,
    registered: Registered,
}

/// Serves a connection until it ends. A drain, or a long silence, lets it end after the requests it is at.
pub(crate) async fn serve<S>(local: Rc<Local>, accepted: Accepted<S>, registered: Registered)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Accepted { stream, client: address, local_port, entry, protection, session, permit } = accepted;
    let client = Rc::new(Client {
        frontend: std::sync::Arc::clone(session.series()),
        local: Rc::clone(&local),
        address,
        local_port,
        entry,
        protection,
        permit,
        n_streams: Cell::new(0),
        registered,
    });
    let of_streams = Rc::clone(&client);
    let service = service_fn(move |request| {
        let client = Rc::clone(&of_streams);
        async move { Ok::<_, Infallible>(client.handle(request).await) }
    });
    let mut connection = pin!(builder(&local).serve_connection(TokioIo::new(stream), service));
    client.rest();
    let mut told_to_end = false;
    let ended = poll_fn(|cx| {
        client.registered.wake_me(cx.waker());
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        let is_silent = client.n_streams.get() == 0 && client.registered.wait().is_expired();
        if (is_silent || client.registered.is_draining()) && !told_to_end {
            told_to_end = true;
            connection.as_mut().graceful_shutdown();
            client.rest();
            return connection.as_mut().poll(cx);
        }
        // It was told to end and says nothing at all.
        if is_silent { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    if let Err(error) = ended.await {
        tracing::debug!(client = %address, %error, "HTTP/2 connection ended");
    }
    drop(session);
}

fn builder(local: &Local) -> http2::Builder<OnThisThread> {
    let mut builder = http2::Builder::new(OnThisThread);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(MOST_ERROR_RESETS)
        .max_header_list_size(u32::try_from(local.limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(PIPE_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

type ResponseBody = Either<Incoming, Empty<Bytes>>;

impl Client {
    /// Nothing is asked: the connection may be silent for so long.
    fn rest(&self) {
        self.registered.wait().enter(Phase::Idle, self.local.timeouts.client_keepalive);
    }

    async fn handle(self: Rc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        self.n_streams.set(self.n_streams.get() + 1);
        let answered = self.exchange(request).await;
        self.n_streams.set(self.n_streams.get() - 1);
        self.rest();
        answered.map_or_else(
            |error| {
                tracing::debug!(client = %self.address, %error, "HTTP/2 request failed");
                let mut response = Response::new(Either::Right(Empty::new()));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            },
            |response| response.map(Either::Left),
        )
    }

    async fn exchange(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, hyper::Error> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let accepted = Accepted {
            stream: theirs,
            client: self.address,
            local_port: self.local_port,
            entry: self.entry,
            protection: self.protection.clone(),
            session: self.frontend.begin(),
            permit: Rc::clone(&self.permit),
        };
        let registered = self.registered.another();
        let local = Rc::clone(&self.local);
        self.local.tasks.spawn_local(connection::serve(local, accepted, registered));
        let (mut sender, connection) = http1::handshake(TokioIo::new(ours)).await?;
        let rest = Rc::new(Cell::new(None));
        make_http1(&mut request);
        let request = request.map(|body| RequestBody { inner: Some(body), rest: Rc::clone(&rest) });
        self.local.tasks.spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a stream's exchange ended early");
            }
            if let Some(rest) = rest.take() {
                // However much was read: an end by time is none by error.
                let _ = tokio::time::timeout(FAREWELL, read_away(rest)).await;
            }
        });
        let mut response = sender.send_request(request).await?;
        *response.version_mut() = Version::HTTP_2;
        // RFC 9113 section 8.2.2: it says nothing in HTTP/2, and may not be said.
        response.headers_mut().remove(CONNECTION);
        response.headers_mut().remove("keep-alive");
        response.headers_mut().remove("proxy-connection");
        response.headers_mut().remove("upgrade");
        Ok(response)
    }
}

/// A request's body; what nobody wanted of it is left to be read away. A client that still sends when its stream is reset
/// may never look at the response.
struct RequestBody {
    inner: Option<Incoming>,
    rest: Rc<Cell<Option<Incoming>>>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.inner.as_mut().map_or(Poll::Ready(None), |inner| Pin::new(inner).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.rest.set(self.inner.take().filter(|inner| !inner.is_end_stream()));
    }
}

async fn read_away(mut body: Incoming) {
    let mut n_bytes = 0;
    while n_bytes < FAREWELL_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        n_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// The target in its origin form, the authority in Host. Everything else is the guard's to look at.
fn make_http1(request: &mut Request<Incoming>) {
    *request.version_mut() = Version::HTTP_11;
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
        // A Host beside an authority that says the same is no second one (RFC 9113 section 8.3.1); two of them are.
        && request.headers().get_all(HOST).iter().nth(1).is_none()
        && request.headers().get(HOST).is_none_or(|known| known.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
    {
        request.headers_mut().insert(HOST, host);
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = Uri::from(path);
        }
    }
    join_cookies(request.headers_mut());
    // One exchange, one pipe.
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    request.headers_mut().remove(TE);
}

/// RFC 9113 section 8.2.3: a client may send each pair by itself; HTTP/1.1 knows one line.
fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    if pieces.next().is_none() || pieces.next().is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// The tasks of a connection stay on its worker's thread.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
