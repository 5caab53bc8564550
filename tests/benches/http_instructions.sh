#!/usr/bin/env bash
# User-space instructions per proxied request (128 bytes, keep-alive, sticky cookie, statistics), by callgrind: the one
# figure that is the same whatever else the machine does. Exits 1 above the limit. Wants valgrind and a release build
# of the benchmark: cargo bench -p tests --bench http --no-run
set -euo pipefail
cd "$(dirname "$0")/../.."
limit=9000
bench=$(ls -t "${CARGO_TARGET_DIR:-target}"/release/deps/http-* | grep -v '\.d$' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
total() {
    WAYMARK_BENCH_CALLGRIND="$work/out.$1" "$bench" requests "$1" >/dev/null
    sed -n 's/^\(summary\|totals\): //p' "$work/out.$1" | head -1
}
few=$(total 2000)
many=$(total 12000)
each=$(((many - few) / 10000))
echo "$each instructions per request (limit $limit)"
[ "$each" -le "$limit" ]
