//! DNS over HTTPS (RFC 8484): the same questions and answers as over UDP and TCP, in HTTP bodies.
//!
//! It answers nothing itself: the handler does, and the forwarder.

use std::net::IpAddr;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use hickory_server::proto::op::Message;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::{Answer, Api, refuse, text};
use crate::handler::Outcome;
use crate::stats::Transport;

const MESSAGE: &str = "application/dns-message";
/// Much more than a query needs, with any padding (RFC 8467).
const QUERY_BYTES: usize = 4096;

pub(super) async fn answer(api: &Arc<Api>, client: IpAddr, request: Request<Incoming>) -> Answer {
    let query = match *request.method() {
        Method::GET | Method::HEAD => {
            let words = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
            let dns = words.into_iter().find(|(key, _)| key == "dns");
            match dns.and_then(|(_, value)| decode_base64url(&value)) {
                Some(query) => query,
                None => return refuse(StatusCode::BAD_REQUEST, "dns is to be a query in base64url"),
            }
        }
        Method::POST => {
            let kind = request.headers().get(header::CONTENT_TYPE);
            if kind.is_none_or(|kind| kind != MESSAGE) {
                return refuse(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the body is to be application/dns-message",
                );
            }
            match Limited::new(request.into_body(), QUERY_BYTES).collect().await {
                Ok(body) => body.to_bytes().into(),
                Err(_) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "this is no DNS query"),
            }
        }
        _ => {
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            return response;
        }
    };
    let mut reply = Vec::new();
    // The responder is not held while upstreams are waited for.
    let outcome = api.responder().respond(&query, Transport::Https, client, &mut reply);
    match outcome {
        Outcome::Reply => {}
        Outcome::Silence => return refuse(StatusCode::BAD_REQUEST, "this is no DNS query"),
        Outcome::Forward(foreign) => api.forwarder.answer(&foreign, &api.counters, &mut reply).await,
    }
    // What is kept on the way must not outlive the answer (RFC 8484 section 5.1).
    let lifetime = Message::from_vec(&reply).ok().map_or(0, |message| {
        message.answers.iter().chain(&message.authorities).map(|record| record.ttl).min().unwrap_or(0)
    });
    let mut response = text(MESSAGE, reply);
    if let Ok(value) = HeaderValue::from_str(&format!("max-age={lifetime}")) {
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    response
}

/// RFC 4648 section 5, without padding; with it, it is not looked at.
fn decode_base64url(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    if text.len() > QUERY_BYTES * 4 / 3 + 2 {
        return None;
    }
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        for (text, expect) in [
            ("", Some(&b""[..])),
            ("AA", Some(b"\0")),
            ("AA==", Some(b"\0")),
            ("_-8", Some(b"\xff\xef")),
            ("Zm9vYmFy", Some(b"foobar")),
            ("Z", None),
            ("Zm+v", None),
        ] {
            assert_eq!(decode_base64url(text).as_deref(), expect, "{text}");
        }
    }
}
