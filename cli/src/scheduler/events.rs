//! The event bus: frames each event once and hands it to the subscribers that asked for its type.
//!
//! Not here: when an event is sent (`core`), nor the HTTP response that carries it (`api::stream`).

use std::collections::HashSet;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::timestamp::Timestamp;

/// Frames a subscriber may be behind before its stream is closed; Marathon's
/// `--event_stream_max_outstanding_messages`.
const MAX_OUTSTANDING: usize = 1024;

/// How a subscriber wants deployment plans: with the groups before and after, or only the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanFormat {
    Heavy,
    Light,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberId(u64);

#[derive(Debug)]
struct Subscriber {
    id: SubscriberId,
    remote: String,
    /// Empty: every type.
    types: HashSet<String>,
    plans: PlanFormat,
    frames: mpsc::Sender<Bytes>,
    /// Ends the connection, which may be stuck in a write.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
pub struct EventHub {
    subscribers: Vec<Subscriber>,
    last_id: u64,
    n_slow_closed: u64,
    n_published: u64,
}

impl EventHub {
    /// Adds a subscriber and tells everybody, itself included: its first event is its own attachment.
    pub fn attach(
        &mut self,
        remote: String,
        types: HashSet<String>,
        plans: PlanFormat,
        closing: CancellationToken,
    ) -> (SubscriberId, mpsc::Receiver<Bytes>) {
        let (frames, receiver) = mpsc::channel(MAX_OUTSTANDING);
        self.last_id += 1;
        let id = SubscriberId(self.last_id);
        self.subscribers.push(Subscriber { id, remote: remote.clone(), types, plans, frames, closing });
        self.publish("event_stream_attached", || json!({"remoteAddress": remote}));
        (id, receiver)
    }

    pub fn detach(&mut self, id: SubscriberId) {
        if let Some(index) = self.subscribers.iter().position(|s| s.id == id) {
            let gone = self.subscribers.swap_remove(index);
            self.publish("event_stream_detached", || json!({"remoteAddress": gone.remote}));
        }
    }

    /// `event` is only written when somebody listens.
    pub fn publish(&mut self, kind: &str, event: impl Fn() -> Value) {
        self.send(kind, |_| event());
    }

    /// An event whose text depends on the subscriber's plan format.
    pub fn publish_plan(&mut self, kind: &str, event: impl Fn(PlanFormat) -> Value) {
        self.send(kind, event);
    }

    fn send(&mut self, kind: &str, event: impl Fn(PlanFormat) -> Value) {
        let now = Timestamp::now();
        self.n_published += 1;
        let mut frames: [Option<Bytes>; 2] = [None, None];
        let mut slow = Vec::new();
        for subscriber in &self.subscribers {
            if !subscriber.types.is_empty() && !subscriber.types.contains(kind) {
                continue;
            }
            let frame = frames[subscriber.plans as usize]
                .get_or_insert_with(|| frame(kind, event(subscriber.plans), now))
                .clone();
            if subscriber.frames.try_send(frame).is_err() {
                slow.push(subscriber.id);
            }
        }
        for id in slow {
            // A closed channel is a stream whose client has just gone; a full one is a slow client.
            if let Some(subscriber) = self.subscribers.iter().find(|s| s.id == id)
                && !subscriber.frames.is_closed()
            {
                self.n_slow_closed += 1;
                subscriber.closing.cancel();
                tracing::warn!(remote = subscriber.remote, "closed an event stream that was too slow");
            }
            self.detach(id);
        }
    }

    pub fn n_subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Events since the start, whether or not anybody listened.
    pub fn n_published(&self) -> u64 {
        self.n_published
    }

    /// Streams closed because their client did not keep up.
    pub fn n_slow_closed(&self) -> u64 {
        self.n_slow_closed
    }
}

fn frame(kind: &str, mut event: Value, now: Timestamp) -> Bytes {
    event["eventType"] = kind.into();
    event["timestamp"] = now.to_string().into();
    Bytes::from(format!("event: {kind}\r\ndata: {event}\r\n\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(receiver: &mut mpsc::Receiver<Bytes>) -> Vec<String> {
        let mut kinds = Vec::new();
        while let Ok(frame) = receiver.try_recv() {
            let text = String::from_utf8(frame.to_vec()).expect("UTF-8");
            assert!(text.ends_with("\r\n\r\n") && text.matches('\n').count() == 3, "{text:?}");
            kinds.push(text["event: ".len()..text.find('\r').expect("CRLF")].to_owned());
        }
        kinds
    }

    #[test]
    fn filters_and_attachments() {
        let mut hub = EventHub::default();
        let (_, mut all) =
            hub.attach("a".into(), HashSet::new(), PlanFormat::Heavy, CancellationToken::new());
        let only = HashSet::from(["deployment_info".to_owned()]);
        let (second, mut some) = hub.attach("b".into(), only, PlanFormat::Light, CancellationToken::new());
        hub.publish("status_update_event", || json!({}));
        hub.publish_plan("deployment_info", |format| json!({"light": format == PlanFormat::Light}));
        hub.detach(second);
        assert_eq!(
            drain(&mut all),
            [
                "event_stream_attached",
                "event_stream_attached",
                "status_update_event",
                "deployment_info",
                "event_stream_detached"
            ]
        );
        assert_eq!(drain(&mut some), ["deployment_info"]);
    }

    #[test]
    fn a_slow_subscriber_is_closed_and_counted_and_the_others_go_on() {
        let mut hub = EventHub::default();
        let closing = CancellationToken::new();
        let (_, mut slow) = hub.attach("slow".into(), HashSet::new(), PlanFormat::Heavy, closing.clone());
        let (_, mut quick) =
            hub.attach("quick".into(), HashSet::new(), PlanFormat::Heavy, CancellationToken::new());
        for _ in 0..MAX_OUTSTANDING {
            hub.publish("status_update_event", || json!({}));
            while quick.try_recv().is_ok() {}
        }
        assert_eq!((hub.n_slow_closed(), hub.n_subscribers()), (1, 1));
        assert!(closing.is_cancelled());
        assert_eq!(drain(&mut slow).len(), MAX_OUTSTANDING);
        assert!(slow.try_recv().is_err_and(|e| e == mpsc::error::TryRecvError::Disconnected));
    }
}
