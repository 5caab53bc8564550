//! What is a chunked body and what is none, however its bytes arrive.

use super::*;

/// Body, trailer, and the number of bytes after the end.
type Decoded = (Vec<u8>, Vec<u8>, usize);

/// `None`: it has not ended.
fn decode(mut decoder: Decoder, input: &[u8], most: usize) -> Result<Option<Decoded>, BadChunk> {
    let (mut body, mut trailer) = (Vec::new(), Vec::new());
    let (mut at, mut shown) = (0, most.min(input.len()));
    loop {
        let piece = &input[at..shown];
        match decoder.next(piece)? {
            Piece::Partial if shown == input.len() => return Ok(None),
            Piece::Partial => shown = (shown + most).min(input.len()),
            Piece::Framing(n) => at += n,
            Piece::Data(n) => {
                body.extend_from_slice(&piece[..n]);
                at += n;
            }
            Piece::TrailerLine(n) => {
                trailer.extend_from_slice(&piece[..n]);
                at += n;
            }
            Piece::End(n) => return Ok(Some((body, trailer, input.len() - at - n))),
        }
    }
}

fn check(input: &str, expect: Result<Option<(&str, &str, usize)>, BadChunk>) {
    for most in [1, 2, 3, 5, usize::MAX] {
        let decoded = decode(Decoder::default(), input.as_bytes(), most);
        let texts = expect.map(|e| e.map(|(b, t, n)| (b.as_bytes().to_vec(), t.as_bytes().to_vec(), n)));
        assert_eq!(decoded, texts, "{input:?} by {most}");
    }
}

#[test]
fn bodies() {
    check("0\r\n\r\n", Ok(Some(("", "", 0))));
    check("5\r\nHELLO\r\n0\r\n\r\nGET", Ok(Some(("HELLO", "", 3))));
    check("5\r\nHELLO\r\nA\r\n0123456789\r\n000\r\n\r\n", Ok(Some(("HELLO0123456789", "", 0))));
    check("5;a=b;c=\"d;\\\"\\e\"\r\nHELLO\r\n0;x\r\n\r\n", Ok(Some(("HELLO", "", 0))));
    check("0\r\nX-T: 1\r\nY: 2\r\n\r\n", Ok(Some(("", "X-T: 1\r\nY: 2\r\n", 0))));
    check("0\r\nContent-Length: 50\r\nX: 1\r\nHost: evil\r\nx_y: 1\r\n\r\n", Ok(Some(("", "X: 1\r\n", 0))));
    for partial in
        ["", "5", "5\r", "5\r\nHEL", "5\r\nHELLO", "5\r\nHELLO\r\n", "0\r\n", "0\r\nX: 1\r\n", "0\r\n\r"]
    {
        check(partial, Ok(None));
    }
}

#[test]
fn what_is_none() {
    for input in [
        "+5\r\nHELLO\r\n0\r\n\r\n",
        "0x5\r\n",
        " 5\r\n",
        "\t5\r\n",
        "5 \r\n",
        "5_0\r\n",
        "xyz\r\n",
        "\r\n",
        ";a\r\n",
        "\"5\"\r\n",
        "5\0\r\n",
        "5\n",
        "5\rX",
        "5;a\nb\r\n",
        "5;a\0\r\n",
        "5;\"a\0\"\r\n",
        "5;\"a\r\n",
        "10000000000000000\r\n",
        "FFFFFFFFFFFFFFFF\r\n",
        "0000000000000005\r\n",
        "5\r\nHELLOX",
        "5\r\nHELLO\n",
        "5\r\nHELLO\rX",
        "0\r\n\n",
        "0\r\n\rX",
        "0\r\nX\r\n",
        "0\r\nX : 1\r\n",
        "0\r\nX: 1\n",
        "0\r\n folded: 1\r\n",
    ] {
        check(input, Err(BadChunk::Malformed));
    }
    check(&format!("5;{}\r\n", "x".repeat(MOST_EXTENSION_BYTES + 1)), Err(BadChunk::LongExtension));
    check(&format!("0\r\nx: {}\r\n\r\n", "x".repeat(MOST_TRAILER_BYTES)), Err(BadChunk::LongTrailer));
}

#[test]
fn a_trailer_line_that_connection_names_stays_here() {
    let decoder = Decoder::new(0, b"close, x-hop,X-HOP".to_vec());
    let decoded = decode(decoder, b"0\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n", 99).unwrap();
    assert_eq!(decoded, Some((vec![], b"X-End: 2\r\n".to_vec(), 0)));
}

#[test]
fn chunks_written_are_chunks_read() {
    for n in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 65_536] {
        let mut out = Vec::new();
        open(&mut out, n);
        assert_eq!(out, format!("{n:x}\r\n").as_bytes());
        assert!(out.len() + 2 <= OVERHEAD);
    }
}
