//! A request that came by a stream of HTTP/2, while it goes to an endpoint.
//!
//! It reads and writes no frames: that is `side`'s.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use l4_vip::proxy_protocol::Ends;

use super::head;
use super::side::StreamSide;
use crate::exchange::Front;
use crate::http1::flow::{Coding, Flow, FlowError, Means};
use crate::http1::request::Method;
use crate::http1::response::Response;
use crate::http1::serialize::{self, Delivery, Edits};
use crate::upstream::Upstream;
use crate::wait::Wait;

pub(super) struct Http2Front<'a> {
    pub(super) side: &'a mut StreamSide,
    pub(super) flow: Flow,
    pub(super) method: Method,
    pub(super) ends: Ends,
    pub(super) wait: &'a Wait,
    pub(super) means: &'a Means,
    pub(super) expects_continue: bool,
}

impl Front for Http2Front<'_> {
    fn method(&self) -> Method {
        self.method
    }

    fn ends(&self) -> Ends {
        self.ends
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut Upstream) -> Poll<Result<(), FlowError>> {
        self.flow.poll(cx, self.side, to, self.wait, self.means)
    }

    fn is_whole(&self) -> bool {
        self.flow.is_whole()
    }

    fn rewind(&mut self) {
        self.flow.rewind();
    }

    fn lacks_body(&mut self) -> bool {
        self.flow.lacks_source(&self.side.input)
    }

    fn interim(&mut self, response: &Response, head: &[u8]) {
        if response.status == 100 && !self.expects_continue {
            return;
        }
        let delivery = Delivery { coding: Coding::Plain, connection: b"", lines: &[], edits: Edits::NONE };
        let mut text = Vec::with_capacity(head.len());
        serialize::response(&mut text, response, head, &delivery);
        // What cannot be said of what is to come need not be: a client that is gone is noticed elsewhere.
        if let Ok((interim, _)) = head::response(response.status, &Bytes::from(text)) {
            let _ = self.side.send_interim(interim);
        }
    }

    /// Streams are opened and reset by the thousand: whether the client still wants it is always asked.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.side.poll_gone(cx));
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}
