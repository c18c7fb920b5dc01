#!/usr/bin/env bash
# run.sh DRIVER: the Autobahn testsuite, strictly, against the echo server on io-uring or epoll.
#
# 301 cases: all but permessage-deflate (12.* and 13.*). Only OK and INFORMATIONAL pass. The reports stay in
# target/autobahn/DRIVER/. AUTOBAHN_RUNNER=kosoku takes that runner even where wstest could run.
set -euo pipefail
driver=${1:?usage: run.sh io-uring|epoll}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
here=scripts/autobahn
cases=301
excluded=('12.*' '13.*')
limit_seconds=600

environment=$target/autobahn/${AUTOBAHN_RUNNER:-environment}
"$here/install.sh" "$environment"
runner=$(cat "$environment/runner")

# A killed run would leave the report of the run before it, and wstest exits 0 whatever happened.
out=$target/autobahn/$driver
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
. scripts/echo_server.sh
start_echo "$driver" "$out/echo.log"
echo "$runner against the server $ECHO_READY"

json_list() { printf '"%s",' "$@" | sed 's/,$//'; }

# wstest_shard NAME CASES EXCLUDED...: runs one part of the cases. A pattern without a case hangs wstest.
wstest_shard() {
    local name=$1 pattern=$2
    shift 2
    cat >"$out/$name.json" <<SPEC
{"options": {"failByDrop": false}, "outdir": "$out/$name",
 "servers": [{"agent": "ringwire-$driver", "url": "ws://127.0.0.1:$ECHO_PORT"}],
 "cases": ["$pattern"], "exclude-cases": [$(json_list "$@")], "exclude-agent-cases": {}}
SPEC
    timeout "$limit_seconds" "$environment/bin/wstest" -m fuzzingclient -s "$out/$name.json" \
        >"$out/$name.log" 2>&1
}

code=0
if [ "$runner" = wstest ]; then
    # The large messages of 9.* take as long as all other cases together.
    wstest_shard limits '9.*' "${excluded[@]}" &
    limits=$!
    wstest_shard core '*' '9.*' "${excluded[@]}" || code=$?
    wait "$limits" || code=$?
else
    timeout "$limit_seconds" "$environment/bin/kosoku" -m fuzzingclient "${excluded[@]/#/-x}" \
        -o "$out/core" "127.0.0.1:$ECHO_PORT" >"$out/core.log" 2>&1 || true # fails when a case is not OK
fi
if [ "$code" -ne 0 ]; then
    echo "$runner exited with $code (124: not done within $limit_seconds s)"
    tail -n 5 "$out"/*.log
fi
stop_echo || { echo "the echo server exited with an error"; tail -n 20 "$out/echo.log"; code=1; }
python3 "$here/check.py" "$out"/*/index.json --expect "$cases" || code=1
exit "$code"
