//! Tunnels: what an upgraded connection (WebSocket) says goes both ways until both sides have ended or nothing moves.
//!
//! The bytes are not looked at.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::Framing;
use super::flow::{Coding, Flow, FlowError, Means};
use super::side::Side;
use crate::exchange::Exchange;
use crate::wait::Wait;

/// `out` is the head of the response that opens the tunnel. The exchange counts as in flight until the tunnel's end.
pub(super) async fn run(
    client: &mut impl Side,
    mut exchange: Exchange,
    out: Vec<u8>,
    wait: &Wait,
    means: &Means,
) {
    exchange.consume_head();
    let mut up = Direction::new(Vec::new());
    let mut down = Direction::new(out);
    let end = poll_fn(|cx| {
        let server = &mut *exchange.upstream;
        let up = up.poll(cx, client, server, wait, means)?;
        let down = down.poll(cx, server, client, wait, means)?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(true)),
            _ if wait.is_expired() => Poll::Ready(Ok(false)),
            _ => Poll::Pending,
        }
    })
    .await;
    match end {
        Ok(true) => {}
        Ok(false) => tracing::debug!("a silent tunnel was closed"),
        Err::<_, FlowError>(error) => tracing::debug!(%error, "a tunnel broke"),
    }
    up.flow.release(means);
    down.flow.release(means);
}

/// One of the two.
struct Direction {
    flow: Flow,
    progress: Progress,
}

#[derive(Clone, Copy)]
enum Progress {
    Flowing,
    /// The end is to be passed on.
    Ending,
    Ended,
}

impl Direction {
    fn new(out: Vec<u8>) -> Self {
        Self { flow: Flow::new(Framing::UntilClose, Coding::Plain, out), progress: Progress::Flowing }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        wait: &Wait,
        means: &Means,
    ) -> Result<Poll<()>, FlowError> {
        loop {
            self.progress = match self.progress {
                Progress::Flowing => match self.flow.poll(cx, from, to, wait, means)? {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(()) => Progress::Ending,
                },
                Progress::Ending => match to.poll_end(cx).map_err(FlowError::Write)? {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(()) => Progress::Ended,
                },
                Progress::Ended => return Ok(Poll::Ready(())),
            };
        }
    }
}
