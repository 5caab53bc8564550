//! The bodies of the fuzz targets (tests/fuzz) on right packets and on a few thousand mutations of them: the same in
//! every run, so that a target neither rots nor has to be built to be checked. `FUZZ_ROUNDS` makes it longer.

#[path = "../../tests/fuzz/bodies/dns_packet.rs"]
mod dns_packet;
#[path = "../../tests/fuzz/bodies/dns_upstream.rs"]
mod dns_upstream;
#[path = "../../tests/fuzz/bodies/mutations.rs"]
mod mutations;

fn check(seeds: &[&[u8]], body: fn(&[u8])) {
    const TELLING: [&[u8]; 8] = [b"\0", b"\x01", b"\x0c", b"\x29", b"\x3f", b"\x40", b"\xc0", b"\xff"];
    mutations::check(seeds, &TELLING, 20_000, body);
}

#[test]
fn queries() {
    check(
        &[
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x08marathon\x04mesos\0\0\x01\0\x01",
            // With EDNS: a cookie and NSID.
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x06leader\x05mesos\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\x10\0\x0a\0\x08abcdefgh\0\x03\0\0",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05mesos\0\0\x06\0\x01",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04_web\x04_tcp\x08marathon\x05mesos\0\0\x21\0\x01",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x011\x010\x010\x03127\x07in-addr\x04arpa\0\0\x0c\0\x01",
        ],
        dns_packet::run,
    );
}

#[test]
fn answers_of_upstreams() {
    check(
        &[
            b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07Example\x03com\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01",
            b"\x12\x34\x81\x83\0\x01\0\0\0\0\0\x01\x07Example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0",
        ],
        dns_upstream::run,
    );
}
