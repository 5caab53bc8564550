//! A response on its way to the client: its head, its body, or the tunnel that it opens.

use std::future::poll_fn;
use std::task::Poll;

use super::Connection;
use super::prepare::About;
use crate::error::ProxyError;
use crate::exchange::Exchange;
use crate::http1::Framing;
use crate::http1::flow::{Coding, Flow, FlowError};
use crate::http1::request::Version;
use crate::http1::response::BadResponse;
use crate::http1::serialize::{self, Delivery};
use crate::http1::side::{ClientStream, Side};
use crate::http1::socket::Departure;
use crate::http1::tunnel;
use crate::proxy::{self, Then};
use crate::wait::Phase;

/// How a response ended, by who ended it.
enum End {
    Whole,
    Client,
    Server,
}

impl<S: ClientStream> Connection<S> {
    /// Gives the client the response; `up` is what is left of the request, `out` of interim responses.
    pub(super) async fn deliver(
        &mut self,
        mut exchange: Exchange,
        up: &mut Flow,
        about: &About,
        out: Vec<u8>,
    ) -> Then {
        let took = about.started.elapsed();
        if let Some(record) = &mut self.record {
            record.server = Some(exchange.server().name.to_string());
        }
        if exchange.response().status == 101 {
            if !about.wants_websocket || !exchange.response().switches_to_websocket() {
                let bad = BadResponse::Switch;
                exchange.bad_response(bad);
                let then = self.then(about);
                return Box::pin(self.fail(ProxyError::BadResponse(bad), about, then, out)).await;
            }
            exchange.responded(took);
            return Box::pin(self.tunnel(exchange, out)).await;
        }
        let is_read = up.has_source_ended();
        let mut is_sent = up.is_written();
        let framing = exchange.response().framing;
        let is_11 = about.version == Version::Http11;
        let ends_with_connection = !is_11 && matches!(framing, Framing::Chunked | Framing::UntilClose);
        let then = if is_read && !ends_with_connection { self.then(about) } else { Then::Close };
        let coding = match framing {
            Framing::Chunked | Framing::UntilClose if is_11 => Coding::Chunked,
            _ => Coding::Plain,
        };
        let mut out = if out.capacity() == 0 { self.local.means.spare.output() } else { out };
        let connection = connection_line(then, about.version);
        exchange.write_head(&mut out, about.method, coding, connection, &self.client.origin.connection);
        let mut down = Flow::new(framing, coding, out);
        down.decode_with(|| exchange.decoder());
        exchange.consume_head();
        if down.take_along(&mut exchange.upstream.input).is_err() {
            let bad = BadResponse::Chunk;
            exchange.bad_response(bad);
            return Box::pin(self.fail(ProxyError::BadResponse(bad), about, then, Vec::new())).await;
        }
        exchange.responded(took);
        self.responds(exchange.response().status);
        let Self { local, registered, side, .. } = self;
        let (wait, means) = (registered.wait(), &local.means);
        if then == Then::Close && down.has_source_ended() && side.is_plain() {
            side.departure = Departure::WithEnd;
        }
        let limit = exchange.backend.labels.timeouts.server.unwrap_or(local.timeouts.server_body_idle);
        wait.enter(Phase::ResponseBody, limit);
        let mut is_taken = true;
        let mut n_polls = 0_u32;
        let end = poll_fn(|cx| {
            n_polls = n_polls.saturating_add(1);
            if !is_sent {
                match up.poll(cx, side, &mut *exchange.upstream, wait, means) {
                    Poll::Pending => {}
                    Poll::Ready(Err(FlowError::Cut | FlowError::BadChunk(_) | FlowError::Read(_))) => {
                        return Poll::Ready(End::Client);
                    }
                    Poll::Ready(result) => (is_sent, is_taken) = (true, result.is_ok()),
                }
            }
            match down.poll(cx, &mut *exchange.upstream, side, wait, means) {
                Poll::Ready(Ok(())) => Poll::Ready(End::Whole),
                Poll::Ready(Err(FlowError::Write(_))) => Poll::Ready(End::Client),
                Poll::Ready(Err(_)) => Poll::Ready(End::Server),
                Poll::Pending if wait.is_expired() => {
                    let is_of_server = down.lacks_source(&exchange.upstream.input);
                    Poll::Ready(if is_of_server { End::Server } else { End::Client })
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        up.release(means);
        down.release(means);
        // What went at once took as long as its head: most do, and need not ask for the time again.
        exchange.lasted(if n_polls == 1 { took } else { about.started.elapsed() });
        match end {
            End::Whole if is_sent && is_taken => exchange.ended(),
            End::Whole => {}
            End::Client => exchange.given_up(),
            End::Server => exchange.broken(),
        }
        match end {
            End::Whole if then == Then::Keep => Then::Keep,
            End::Whole => {
                if !is_read || !self.side.input.is_empty() {
                    Box::pin(self.farewell()).await;
                } else if self.side.departure == Departure::WithEnd {
                    // What has not departed would be lost, should the close find that the client has sent more.
                    let _ = poll_fn(|cx| self.side.poll_end(cx)).await;
                }
                Then::Close
            }
            End::Client | End::Server => {
                if ends_with_connection {
                    self.side.stream.cut();
                }
                Then::Close
            }
        }
    }

    async fn tunnel(&mut self, exchange: Exchange, mut out: Vec<u8>) -> Then {
        let origin = &self.client.origin.connection;
        let edits = proxy::response_edits(&exchange.backend, exchange.response(), exchange.head(), origin);
        let delivery = Delivery {
            coding: Coding::Plain,
            connection: b"Connection: upgrade\r\nUpgrade: websocket\r\n",
            lines: &[],
            edits: &edits,
        };
        serialize::response(&mut out, exchange.response(), exchange.head(), &delivery);
        self.responds(exchange.response().status);
        let wait = self.registered.wait();
        wait.limit_all(None);
        let limit = exchange.backend.labels.timeouts.tunnel.unwrap_or(self.local.timeouts.tunnel_idle);
        wait.enter(Phase::Tunnel, limit);
        tunnel::run(&mut self.side, exchange, out, wait, &self.local.means).await;
        Then::Close
    }
}

/// What must be said about the connection's future: nothing, when the version's default holds.
pub(super) fn connection_line(then: Then, version: Version) -> &'static [u8] {
    match (then, version) {
        (Then::Close, _) => b"Connection: close\r\n",
        (Then::Keep, Version::Http10) => b"Connection: keep-alive\r\n",
        (Then::Keep, Version::Http11 | Version::Http2) => b"",
    }
}
