//! What the balancer itself has to say to a client, and how it takes leave of it.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use super::Connection;
use super::deliver::connection_line;
use super::prepare::About;
use crate::error::ProxyError;
use crate::http1::refusal::Refusal;
use crate::http1::request::{Method, Persistence, Version};
use crate::http1::side::{ClientStream, Side};
use crate::proxy::{Answer, Then};
use crate::wait::Phase;

/// How long, and for how many bytes, a client that was refused is listened to: a close at once would be a reset, and
/// the client might never see why.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
pub(crate) const FAREWELL_BYTES: usize = 4 << 20;

impl<S: ClientStream> Connection<S> {
    pub(super) async fn refuse(&mut self, refusal: Refusal) -> Then {
        self.side.shard().refused(refusal);
        let log = self.local.access_log.as_ref();
        self.record = log.and_then(|log| log.refused(self.client.origin.connection.client));
        // Whatever its method was, what it would have been to it is unknown: a body does no harm, as this is the last.
        let about = About {
            method: Method::Other,
            version: Version::Http11,
            persistence: Persistence::Close,
            expects_continue: false,
            wants_websocket: false,
            started: Instant::now(),
        };
        self.answer(&Answer::refused(refusal), &about, Then::Close, Vec::new()).await
    }

    pub(super) async fn fail(&mut self, error: ProxyError, about: &About, then: Then, out: Vec<u8>) -> Then {
        let Some(answer) = Answer::failed(error) else { return Then::Close };
        if let ProxyError::Refused(refusal) = error {
            self.side.shard().refused(refusal);
        }
        self.answer(&answer, about, if error.is_of_client() { Then::Close } else { then }, out).await
    }

    /// Says what the balancer itself has to say, after what is left in `out`.
    pub(super) async fn answer(
        &mut self,
        answer: &Answer,
        about: &About,
        then: Then,
        mut out: Vec<u8>,
    ) -> Then {
        self.side.shard().n_intercepted.increment();
        self.responds(answer.status);
        answer.write(&mut out, about.method, connection_line(then, about.version));
        let Self { local, registered, side, .. } = self;
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::ResponseBody, local.timeouts.server_body_idle);
        let mut n_written = 0;
        let is_said = poll_fn(|cx| {
            while n_written < out.len() {
                match side.poll_write(cx, &out[n_written..]) {
                    Poll::Ready(Ok(n)) => n_written += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending if wait.is_expired() => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            // TLS may have taken all of it, and not got rid of it.
            match side.poll_flush(cx) {
                Poll::Pending if wait.is_expired() => Poll::Ready(false),
                polled => polled.map(|result| result.is_ok()),
            }
        })
        .await;
        if !is_said {
            return Then::Close;
        }
        if then == Then::Close {
            self.farewell().await;
        }
        then
    }

    /// Ends this direction and reads what the client still sends, so that it gets to see the response.
    pub(super) async fn farewell(&mut self) {
        let Self { local, registered, side, .. } = self;
        let wait = registered.wait();
        wait.limit_all(None);
        wait.enter(Phase::Farewell, FAREWELL);
        let (mut has_ended, mut n_bytes) = (false, 0);
        poll_fn(|cx| {
            while !has_ended {
                has_ended = match side.poll_end(cx) {
                    Poll::Ready(result) => result.is_ok(),
                    Poll::Pending if wait.is_expired() => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                };
                if !has_ended {
                    return Poll::Ready(());
                }
            }
            while !side.has_ended && n_bytes < FAREWELL_BYTES && !wait.is_expired() {
                side.input.release(&local.means.spare);
                match ready!(side.poll_fill(cx, &local.means.spare)) {
                    Ok(n) => n_bytes += n,
                    Err(_) => break,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}
