//! Reads one open event stream to its end: bytes to frames to signals, and a deadline on silence.
//!
//! It never waits for the watcher: when that is busy, signals are dropped and one [`Signal::Everything`] stands for
//! them. Marathon closes streams of slow readers, so reading has to go on.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use tokio::sync::{broadcast, mpsc};

use super::events;
use super::sse::{Decoder, Frame};
use crate::error::StreamError;
use crate::sources::Signal;
use crate::stats::Stats;

#[derive(Debug)]
pub(crate) enum Report {
    Signal(Signal),
    Down(StreamError),
}

/// An event as the scheduler wrote it, for people who look on.
#[derive(Debug, PartialEq, Eq)]
pub struct SeenEvent {
    pub kind: String,
    /// JSON, as received.
    pub data: String,
}

pub(crate) struct StreamReader {
    pub deadline: Duration,
    pub max_event_bytes: usize,
    pub reports: mpsc::Sender<Report>,
    pub seen: broadcast::Sender<Arc<SeenEvent>>,
    pub stats: Arc<Stats>,
}

impl StreamReader {
    pub(crate) async fn run(self, response: Response) {
        let error = self.read(response).await;
        // The watcher may have stopped; then nobody is interested.
        let _ = self.reports.send(Report::Down(error)).await;
    }

    async fn read(&self, mut response: Response) -> StreamError {
        let mut decoder = Decoder::new(self.max_event_bytes);
        let mut lost = false;
        loop {
            let chunk = match tokio::time::timeout(self.deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return StreamError::Closed,
                Ok(Err(error)) => return StreamError::Broken(error.without_url()),
                Err(_) => return StreamError::Silent(self.deadline),
            };
            let read = decoder.push(&chunk, |frame| {
                let signal = self.signal(frame);
                if signal == Signal::Nothing {
                    return;
                }
                if self.reports.try_send(Report::Signal(signal)).is_err() {
                    self.stats.n_events_dropped.add_one();
                    lost = true;
                }
            });
            if let Err(endless) = read {
                return StreamError::Endless(endless);
            }
            if lost {
                lost = self.reports.try_send(Report::Signal(Signal::Everything)).is_err();
            }
        }
    }

    fn signal(&self, frame: Frame) -> Signal {
        let (kind, data) = match frame {
            Frame::Event { kind, data } => (kind, data),
            Frame::Oversized { kind } => {
                self.stats.n_events_oversized.add_one();
                tracing::warn!(kind, limit_bytes = self.max_event_bytes, "left out an event over the limit");
                return Signal::Everything;
            }
        };
        let signal = events::signal(&kind, &data).unwrap_or_else(|error| {
            self.stats.n_events_unreadable.add_one();
            tracing::debug!(kind, %error, "cannot read an event");
            Signal::Everything
        });
        match &signal {
            Signal::Nothing | Signal::Attached => self.stats.n_events_ignored.add_one(),
            Signal::Ended { .. } => {
                self.stats.n_events_relevant.add_one();
                self.stats.n_events_retiring.add_one();
            }
            Signal::Touched { .. } => self.stats.n_events_relevant.add_one(),
            Signal::Everything => {}
        }
        if self.seen.receiver_count() > 0 {
            // Fails only when the last one has just left.
            let _ = self.seen.send(Arc::new(SeenEvent { kind, data }));
        }
        signal
    }
}
