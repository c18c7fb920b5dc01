#!/usr/bin/env bash
# Counts the instructions of the protocol's hot path, piece by piece, with valgrind: a figure that a noisy machine does
# not move. Two runs of different length are subtracted, so that what happens once does not count. A long memcpy is one
# instruction per byte here (rep movsb), which says nothing about its time.
#
# usage: scripts/instructions.sh [NAME...]     all pieces, if none is named
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

command -v valgrind >/dev/null || {
    echo "valgrind is not installed" >&2
    exit 1
}
# With symbols, so that the counts can be looked into by function.
CARGO_PROFILE_RELEASE_DEBUG=line-tables-only cargo build --quiet --release --locked -p ringwire-bench --example instructions
program=$target/release/examples/instructions

count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" 2>&1 | sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

printf '%-28s %14s %14s\n' piece instructions per-byte
"$program" | while read -r name bytes; do
    if (($# > 0)) && [[ " $* " != *" $name "* ]]; then continue; fi
    few=$(count "$name" 100)
    many=$(count "$name" 1100)
    awk -v name="$name" -v bytes="$bytes" -v count=$((many - few)) \
        'BEGIN { printf "%-28s %14.1f %14.3f\n", name, count / 1000, count / 1000 / bytes }'
done
