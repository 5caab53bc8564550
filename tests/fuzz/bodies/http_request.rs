//! The request parser: no input makes it panic, and what it takes obeys the rules that it promises.

use lb_http::http1::Framing;
use lb_http::http1::fields::Name;
use lb_http::http1::grammar;
use lb_http::http1::request::Request;
use lb_http::http1::scan::{HeadLimits, Scan, Scanned};

const LIMITS: HeadLimits = HeadLimits { line_bytes: 1024, field_bytes: 4096, n_fields: 30 };

fn scan(input: &[u8], step: usize) -> Option<Result<usize, ()>> {
    let (mut scan, mut shown) = (Scan::default(), step.min(input.len()));
    loop {
        match scan.advance(&input[..shown], &LIMITS) {
            Ok(Scanned::Head(n)) => return Some(Ok(n)),
            Ok(Scanned::FirstLine(_)) => {}
            Ok(Scanned::Partial) if shown == input.len() => return None,
            Ok(Scanned::Partial) => shown = (shown + step).min(input.len()),
            Err(_) => return Some(Err(())),
        }
    }
}

pub fn run(input: &[u8]) {
    let whole = scan(input, input.len().max(1));
    if let Some(Ok(n)) = whole {
        assert_eq!(scan(input, 1), whole, "a head ends where it ends, however it comes");
        let mut fields = Vec::new();
        if let Ok(request) = Request::parse(&input[..n], &mut fields) {
            assert!(request.host().is_empty() || grammar::is_host(request.host()));
            assert!(request.path() == b"*" || request.path().starts_with(b"/"));
            let codings = request.values(Name::TransferEncoding).count();
            let lengths = request.values(Name::ContentLength).count();
            match request.framing {
                Framing::None => assert_eq!((codings, lengths), (0, 0)),
                Framing::Length(_) => assert_eq!((codings, lengths), (0, 1)),
                Framing::Chunked => assert_eq!((codings, lengths), (1, 0)),
                Framing::UntilClose => panic!("of responses only"),
            }
        }
    }
}
