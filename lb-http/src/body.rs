//! The bodies of a request and a response while they pass: streamed, never held, their waits noted.
//!
//! When a response's body ends, its connection goes back to the idle ones; when it breaks off, so does the client's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::client::{Phase, Wait};
use crate::failover::Exchange;

/// A request's body on its way to an endpoint.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Streaming { body: Incoming, wait: Arc<Wait> },
}

impl RequestBody {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// What the client's connection waits for while this is sent.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Empty => Phase::ServerHead,
            Self::Streaming { .. } => Phase::RequestBody,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Streaming { body, wait } = &mut *self else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(&mut *body).poll_frame(cx));
        if wait.phase() == Phase::RequestBody {
            let has_ended = match &frame {
                Some(Ok(_)) => body.is_end_stream(),
                Some(Err(_)) => false,
                None => true,
            };
            if has_ended { wait.enter(Phase::ServerHead) } else { wait.touch() }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { body, .. } => body.size_hint(),
        }
    }
}

/// A response's body on its way to the client.
pub(crate) enum ResponseBody {
    Empty,
    Text(Bytes),
    Upstream(UpstreamBody),
}

/// The endpoint did not send the rest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the endpoint broke the response off")]
    Broken(#[source] hyper::Error),
    #[error("the endpoint or the client stood still for too long")]
    TimedOut,
}

pub(crate) struct UpstreamBody {
    body: Incoming,
    /// `None` once the body has ended.
    exchange: Option<Exchange>,
    wait: Arc<Wait>,
}

impl UpstreamBody {
    pub(crate) fn new(body: Incoming, exchange: Exchange, wait: Arc<Wait>) -> Self {
        wait.enter(Phase::ResponseBody);
        let mut body = Self { body, exchange: Some(exchange), wait };
        if body.body.is_end_stream() {
            body.ended();
        }
        body
    }

    fn ended(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.ended();
            self.wait.enter(Phase::Idle);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.wait.is_expired() => {
                self.broken();
                return Poll::Ready(Some(Err(BodyError::TimedOut)));
            }
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        match frame {
            Some(Ok(frame)) => {
                self.wait.touch();
                if self.body.is_end_stream() {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.broken();
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                self.ended();
                Poll::Ready(None)
            }
        }
    }

    fn broken(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.broken();
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.given_up();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Upstream(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_empty(),
            Self::Upstream(body) => body.exchange.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Upstream(body) => body.body.size_hint(),
        }
    }
}
