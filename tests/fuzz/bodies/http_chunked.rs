//! The chunked decoder: no input makes it panic, and pieces give what the whole gives.

use lb_http::http1::chunked::{BadChunk, Decoder, Piece};

/// Body and bytes used; `Ok(None)`: it has not ended.
fn decode(input: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, BadChunk> {
    let (mut decoder, mut body, mut at, mut shown) =
        (Decoder::default(), Vec::new(), 0, step.min(input.len()));
    loop {
        match decoder.next(&input[at..shown])? {
            Piece::Partial if shown == input.len() => return Ok(None),
            Piece::Partial => shown = (shown + step).min(input.len()),
            Piece::Framing(n) | Piece::TrailerLine(n) => at += n,
            Piece::Data(n) => {
                body.extend_from_slice(&input[at..at + n]);
                at += n;
            }
            Piece::End(n) => return Ok(Some((body, at + n))),
        }
    }
}

pub fn run(input: &[u8]) {
    let whole = decode(input, input.len().max(1));
    if let Ok(Some((body, n))) = &whole {
        assert!(body.len() < *n);
        assert_eq!(decode(input, 1).as_ref(), whole.as_ref(), "pieces are the whole");
    }
}
