//! See the body.
#![no_main]

#[path = "../bodies/http_balancer.rs"]
mod http_balancer;

#[path = "../bodies/http_connection.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
