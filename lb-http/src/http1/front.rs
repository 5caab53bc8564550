//! A request that came by HTTP/1.1, while it goes to an endpoint.

use std::io;
use std::task::{Context, Poll, ready};

use l4_vip::proxy_protocol::Ends;

use super::flow::{Flow, FlowError, Means};
use super::request::Method;
use super::response::Response;
use super::serialize::{self, Delivery, Edits};
use super::side::{ClientSide, ClientStream, Side};
use crate::exchange::Front;
use crate::upstream::Upstream;
use crate::wait::Wait;

pub(super) struct Http1Front<'a, S> {
    side: &'a mut ClientSide<S>,
    flow: &'a mut Flow,
    method: Method,
    wait: &'a Wait,
    means: &'a Means,
    /// HTTP/1.0 knows no interim responses (RFC 9110 section 15.2).
    pub(super) passes_interim: bool,
    pub(super) expects_continue: bool,
    interim: Vec<u8>,
    n_written: usize,
}

impl<'a, S: ClientStream> Http1Front<'a, S> {
    pub(super) fn new(
        side: &'a mut ClientSide<S>,
        flow: &'a mut Flow,
        method: Method,
        wait: &'a Wait,
        means: &'a Means,
    ) -> Self {
        Self {
            side,
            flow,
            method,
            wait,
            means,
            passes_interim: true,
            expects_continue: false,
            interim: Vec::new(),
            n_written: 0,
        }
    }

    /// What is left of interim responses: the client has not got it yet.
    pub(super) fn into_interim(mut self) -> Vec<u8> {
        self.interim.drain(..self.n_written);
        self.interim
    }
}

impl<S: ClientStream> Front for Http1Front<'_, S> {
    fn method(&self) -> Method {
        self.method
    }

    fn ends(&self) -> Ends {
        self.side.ends()
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
        if !self.passes_interim || (response.status == 100 && !self.expects_continue) {
            return;
        }
        let delivery =
            Delivery { coding: super::flow::Coding::Plain, connection: b"", lines: &[], edits: Edits::NONE };
        serialize::response(&mut self.interim, response, head, &delivery);
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.n_written < self.interim.len() {
            self.n_written += ready!(self.side.poll_write(cx, &self.interim[self.n_written..]))?;
        }
        if !self.interim.is_empty() {
            ready!(self.side.poll_flush(cx))?;
            self.interim.clear();
            self.n_written = 0;
        }
        // Whether a client is still there is asked when its request takes long: most are answered before it could
        // change anything.
        if !self.wait.is_long() {
            return Poll::Ready(Ok(()));
        }
        // A client that only ends its direction still waits for the response.
        while self.flow.has_source_ended() && !self.side.has_ended && !self.side.input.is_full() {
            ready!(self.side.poll_fill(cx, &self.means.spare))?;
        }
        Poll::Ready(Ok(()))
    }
}
