#!/usr/bin/env bash
# User-space instructions per A query over UDP (10,000 names, batches of 16), by callgrind: the one figure that is the
# same whatever else the machine does. Exits 1 above the limit. Wants valgrind and a release build of the benchmark:
# cargo bench -p tests --bench dns --no-run
set -euo pipefail
cd "$(dirname "$0")/../.."
limit=1250
bench=$(ls -t "${CARGO_TARGET_DIR:-target}"/release/deps/dns-* | grep -v '\.d$' | head -1)
work=${WAYMARK_BENCH_KEEP:-$(mktemp -d)}
[ -n "${WAYMARK_BENCH_KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
total() {
    WAYMARK_BENCH_CALLGRIND="$work/out.$1" "$bench" queries "$1" >/dev/null
    sed -n 's/^\(summary\|totals\): //p' "$work/out.$1" | head -1
}
# Each name is known by then, and there are so many queries that the start, which differs each time, does not matter.
few=$(total 20000)
many=$(total 220000)
each=$(((many - few) / 200000))
echo "$each instructions per query (limit $limit)"
[ "$each" -le "$limit" ]
