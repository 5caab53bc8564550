//! `/api/events`: changes as server-sent events, and for the page its sections whenever they differ.
//!
//! A reader that does not keep up is cut off and comes back by itself; nobody is queued for without bound.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::broadcast;

use super::Admin;
use super::history::Change;
use super::page::Sections;
use super::server::{Answer, refuse};

/// What a reader may fall behind before it is cut off.
const N_QUEUED: usize = 256;
const MAX_READERS: usize = 64;
/// Keeps connections through middle boxes alive, and lets a reader notice a dead one.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Changes,
    Page,
}

#[derive(Debug)]
pub struct Feed {
    sender: broadcast::Sender<(Channel, Bytes)>,
    n_page_readers: Arc<AtomicUsize>,
    /// What the page's readers have.
    shown: Mutex<Sections>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(N_QUEUED).0,
            n_page_readers: Arc::default(),
            shown: Mutex::default(),
        }
    }
}

impl Feed {
    pub fn change(&self, change: &Change) {
        if let Ok(json) = serde_json::to_string(change) {
            // No reader is no error.
            let _ = self.sender.send((Channel::Changes, frame("change", &json)));
        }
    }
}

/// Sends the page's readers the sections that differ from what they have.
pub fn publish_page(admin: &Admin) {
    if admin.feed.n_page_readers.load(Ordering::Relaxed) == 0 {
        return;
    }
    let sections = Sections::of(admin);
    let mut shown = admin.feed.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let changed = sections.differing_from(&shown);
    if !changed.is_empty()
        && let Ok(json) = serde_json::to_string(&changed)
    {
        let _ = admin.feed.sender.send((Channel::Page, frame("page", &json)));
    }
    *shown = sections;
}

fn frame(event: &str, json: &str) -> Bytes {
    format!("event: {event}\ndata: {json}\n\n").into()
}

/// Counts a reader of the page for as long as it lives.
struct PageReader(Arc<AtomicUsize>);

impl Drop for PageReader {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub fn answer(admin: &Arc<Admin>, query: &str) -> Response<Answer> {
    let wants_page = query.split('&').any(|word| matches!(word, "page" | "page=1"));
    if admin.feed.sender.receiver_count() >= MAX_READERS {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many readers of events");
    }
    let receiver = admin.feed.sender.subscribe();
    let mut greeting = vec![frame_comment("waymark")];
    let reader = wants_page.then(|| {
        admin.feed.n_page_readers.fetch_add(1, Ordering::Relaxed);
        PageReader(Arc::clone(&admin.feed.n_page_readers))
    });
    if wants_page && let Ok(json) = serde_json::to_string(&Sections::of(admin)) {
        // Whatever changed since the page was made.
        greeting.push(frame("page", &json));
    }
    let state = (receiver, greeting.into_iter(), reader, admin.sources.closing.clone());
    let frames = stream::unfold(state, |(mut receiver, mut greeting, reader, stopping)| async move {
        let bytes = match greeting.next() {
            Some(bytes) => bytes,
            None => loop {
                let received = tokio::select! {
                    received = tokio::time::timeout(HEARTBEAT, receiver.recv()) => received,
                    () = stopping.cancelled() => return None,
                };
                match received {
                    Ok(Ok((Channel::Page, _))) if reader.is_none() => {}
                    Ok(Ok((_, bytes))) => break bytes,
                    // Fell behind, or nobody sends any more.
                    Ok(Err(_)) => return None,
                    Err(_) => break frame_comment(""),
                }
            },
        };
        Some((Ok::<_, Infallible>(Frame::data(bytes)), (receiver, greeting, reader, stopping)))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

fn frame_comment(text: &str) -> Bytes {
    format!(": {text}\n\n").into()
}
