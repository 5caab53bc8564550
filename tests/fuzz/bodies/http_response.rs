//! The response parser: no input makes it panic, and what it takes is framed once.

use lb_http::http1::Framing;
use lb_http::http1::request::Method;
use lb_http::http1::response::Response;
use lb_http::http1::scan::{HeadLimits, Scan, Scanned};

const LIMITS: HeadLimits = HeadLimits { line_bytes: 1024, field_bytes: 4096, n_fields: 30 };

pub fn run(input: &[u8]) {
    let mut scan = Scan::default();
    let n = loop {
        match scan.advance(input, &LIMITS) {
            Ok(Scanned::FirstLine(_)) => {}
            Ok(Scanned::Head(n)) => break n,
            Ok(Scanned::Partial) | Err(_) => return,
        }
    };
    for method in [Method::Get, Method::Head] {
        if let Ok(response) = Response::parse(&input[..n], method, Vec::new()) {
            assert!((100..600).contains(&response.status));
            assert_eq!(response.head_bytes, n);
            let has_none =
                method == Method::Head || response.status < 200 || matches!(response.status, 204 | 304);
            assert_eq!(response.framing == Framing::None, has_none);
        }
    }
}
