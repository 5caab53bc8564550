//! What happens to the bytes and the ends of one connection.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use l4_vip::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("half", &[address]).await;
    for client_first in [true, false] {
        let (mut client, mut server) = through(vip, &listener).await;
        exchange(&mut client, &mut server).await;
        let (first, second) =
            if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        first.write_all(b"last").await.unwrap();
        first.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon("end of one direction", second.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"last");
        for piece in [b"more", b"and!"] {
            second.write_all(piece).await.unwrap();
            assert_eq!(read_some(first, 4).await, piece);
        }
        second.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon("end of the other", first.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
    }
    assert_eq!(rig.plane.vips()[0].counters.n_resets, 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("reset", &[address]).await;
    let mut n_resets = 0;
    for half_closed in [false, true] {
        for from_client in [true, false] {
            let (mut client, mut server) = through(vip, &listener).await;
            exchange(&mut client, &mut server).await;
            let (mut from, mut to) = if from_client { (client, server) } else { (server, client) };
            if half_closed {
                // Its FIN has arrived; nothing is read from it any more when the RST comes.
                from.shutdown().await.unwrap();
                let mut nothing = [0; 1];
                assert_eq!(soon("fin", to.read(&mut nothing)).await.unwrap(), 0);
            }
            from.set_zero_linger().unwrap();
            drop(from);
            let kind = if half_closed {
                // After the FIN a reset shows on the next write: the first may still be taken.
                soon("error", async {
                    to.ready(tokio::io::Interest::ERROR).await.unwrap();
                    to.take_error().unwrap().unwrap().kind()
                })
                .await
            } else {
                read_to_error(&mut to).await
            };
            assert!(
                matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "half_closed {half_closed}, from_client {from_client}: {kind:?}"
            );
            n_resets += 1;
        }
    }
    assert_eq!(rig.plane.vips()[0].counters.n_resets, n_resets);
    rig.stop().await;
}

/// Bytes that do not repeat at any buffer's or page's length.
fn stream_of(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[tokio::test]
async fn long_streams_arrive_whole_in_both_directions_at_once() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("long", &[address]).await;
    let (client, server) = through(vip, &listener).await;
    let sent = Arc::new(stream_of(32 * 1024 * 1024));
    let pump = |stream: TcpStream| {
        let sent = Arc::clone(&sent);
        let (mut reader, mut writer) = stream.into_split();
        let write = tokio::spawn(async move {
            // Pieces of changing size, some of them short: copying and splicing take turns.
            let mut rest = &sent[..];
            for size in [1, 700, 60_000, 1_000_000, 3_000_000, 9].iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*size));
                writer.write_all(piece).await.unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            writer.shutdown().await.unwrap();
        });
        async move {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            write.await.unwrap();
            got
        }
    };
    let (at_client, at_server) = soon("streams", async { tokio::join!(pump(client), pump(server)) }).await;
    assert!(at_client == *sent, "{} bytes of {} from the endpoint", at_client.len(), sent.len());
    assert!(at_server == *sent, "{} bytes of {} from the client", at_server.len(), sent.len());
    let counters = rig.plane.vips()[0].counters;
    assert_eq!((counters.bytes_in, counters.bytes_out), (sent.len() as u64, sent.len() as u64));
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer() {
    let mut rig = Rig::start(1, Config::default());
    let (listener, address) = endpoint().await;
    let vip = rig.serve("slow", &[address]).await;
    let (client, mut server) = through(vip, &listener).await;
    let sent = stream_of(64 * 1024);
    let mut n_taken = 0;
    // Nobody reads: at some point nothing more is taken, however long one waits.
    while let Ok(ready) = tokio::time::timeout(Duration::from_millis(300), client.writable()).await {
        ready.unwrap();
        match client.try_write(&sent) {
            Ok(n) => n_taken += n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        assert!(n_taken < 256 * 1024 * 1024, "the forwarder buffers without bound");
    }
    drop(client);
    let mut n_got = 0;
    let mut buffer = vec![0; 65_536];
    loop {
        match soon("read", server.read(&mut buffer)).await.unwrap() {
            0 => break,
            n => n_got += n,
        }
    }
    assert_eq!(n_got, n_taken);
    drop(server);
    rig.stop().await;
}
