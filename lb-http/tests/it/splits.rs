//! A connection is the same whatever pieces its bytes come in: random requests, cut at random places.
//!
//! Every run has another seed; a failure tells it, and `WAYMARK_SEED` repeats it.

#![allow(clippy::print_stdout, reason = "the seed is for whoever reads a failure")]

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::io::AsyncWriteExt;

use crate::support::*;

const N_CONNECTIONS: usize = 60;

/// A request and what its echo is.
fn request(random: &mut StdRng, number: usize) -> (Vec<u8>, String) {
    let body: String = (0..random.random_range(0..3000)).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    let fields: String =
        (0..random.random_range(0..20)).map(|i| format!("X-{i}: {}\r\n", "v".repeat(i))).collect();
    let begin = format!("POST /{number} HTTP/1.1\r\nHost: a.test\r\n{fields}");
    let bytes = match random.random_range(0..3) {
        0 => format!("{begin}Content-Length: {}\r\n\r\n{body}", body.len()),
        1 => {
            let mut text = format!("{begin}Transfer-Encoding: chunked\r\n\r\n");
            let mut rest = &*body;
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(random.random_range(1..=rest.len()));
                text += &format!("{:x};a=\"b\"\r\n{piece}\r\n", piece.len());
                rest = later;
            }
            text + "0\r\n\r\n"
        }
        _ => {
            return (
                format!("GET /{number} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n").into(),
                format!("/{number} "),
            );
        }
    };
    (bytes.into_bytes(), format!("/{number} {body}"))
}

#[tokio::test]
async fn any_cut_of_any_sequence_gives_the_same_responses() {
    let seed = std::env::var("WAYMARK_SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().next_u64());
    println!("WAYMARK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start().await;
    let echo = Backend::with(|_, request| {
        let target = request.head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = format!("{target} {}", String::from_utf8_lossy(&request.body));
        // Half of them as chunks.
        Reply::Bytes(match body.len() % 2 {
            0 => ok(&body),
            _ => format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
            .into_bytes(),
        })
    })
    .await;
    let app = AppSpec::new("/a").instance(echo.port);
    cluster.put(&app).await;
    for _ in 0..N_CONNECTIONS {
        let n = random.random_range(1..6);
        let (sent, expected): (Vec<_>, Vec<_>) = (0..n).map(|i| request(&mut random, i)).unzip();
        let sent = sent.concat();
        let mut client = Client::connect(app.address()).await;
        client.stream.set_nodelay(true).unwrap();
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let most = if random.random() { 3 } else { rest.len() };
            let (piece, later) = rest.split_at(random.random_range(1..=most.min(rest.len())));
            client.stream.write_all(piece).await.unwrap();
            // Lets the balancer see the piece by itself, now and then.
            if random.random_range(0..8) == 0 {
                tokio::task::yield_now().await;
            }
            rest = later;
        }
        for expect in expected {
            let response = client.response().await;
            assert_eq!((response.status(), &*response.body), (200, &*expect), "WAYMARK_SEED={seed}");
        }
    }
    cluster.stop().await;
}
