//! `GET /v2/events`: the body of an event stream, with Marathon's heartbeat.
//!
//! Not here: framing and filtering of events (`events`).

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Either;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::reply::{Body, Reply};
use super::request::Target;
use crate::scheduler::driver::Handle;
use crate::scheduler::events::{PlanFormat, SubscriberId};

/// Marathon sends an empty line this often, so that both sides notice a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(10);

pub struct EventBody {
    frames: mpsc::Receiver<Bytes>,
    heartbeat: Interval,
    subscriber: SubscriberId,
    handle: Handle,
}

/// Opens a stream. Marathon wants a whole `Accept` value to be `text/event-stream`.
pub async fn open(
    target: &Target,
    headers: &HeaderMap,
    remote: String,
    handle: &Handle,
    closing: CancellationToken,
) -> Option<Response<Body>> {
    if !headers.get_all(ACCEPT).iter().any(|value| value == "text/event-stream") {
        let page = "<html><body>HTTP method GET is not supported by this URL</body></html>";
        let reply = Reply::new(StatusCode::METHOD_NOT_ALLOWED, "text/html", page);
        return Some(reply.into_response());
    }
    let types: HashSet<String> = target.all("event_type").map(str::to_owned).collect();
    let plans = match target.first("plan-format") {
        Some("light") => PlanFormat::Light,
        _ => PlanFormat::Heavy,
    };
    let (subscriber, frames) =
        handle.call(move |core| core.hub.attach(remote, types, plans, closing)).await?;
    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let body = EventBody { frames, heartbeat, subscriber, handle: handle.clone() };
    let mut response = Response::new(Either::Right(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream;charset=utf-8"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(frame) = self.frames.poll_recv(context) {
            return Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))));
        }
        if self.heartbeat.poll_tick(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"\r\n")))));
        }
        Poll::Pending
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        let subscriber = self.subscriber;
        self.handle.tell(move |core| core.hub.detach(subscriber));
    }
}
