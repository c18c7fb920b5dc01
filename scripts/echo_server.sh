# shellcheck shell=bash disable=SC2034
# Starts and stops the example echo server for the scripts that talk to it. Sourced, not run.
#
#   start_echo DRIVER LOG    sets ECHO_PID, ECHO_PORT and ECHO_READY (its line); DRIVER is io-uring, epoll or auto
#   stop_echo                SIGTERM, then the exit code of the server, which must be 0
#
# ECHO names another binary to test. The server listens on loopback, on a port the kernel picks.

ECHO_BINARY=${ECHO:-${CARGO_TARGET_DIR:-target}/release/echo}
ECHO_PID=
ECHO_PORT=
ECHO_READY=

start_echo() {
    local driver=$1 log=$2 deadline
    [ -x "$ECHO_BINARY" ] || { echo "$ECHO_BINARY is missing: cargo build --release" >&2; return 1; }
    mkdir -p "$(dirname "$log")"
    : >"$log" # the log of an earlier run names another port
    # The limits are those that Autobahn's cases 9.x need: 16 MiB, in up to 65,536 fragments and more.
    "$ECHO_BINARY" --listen 127.0.0.1:0 --cores 1 --driver "$driver" \
        --message-bytes-max 16777216 --fragments-max 1000000 >"$log" 2>&1 &
    ECHO_PID=$!
    trap kill_echo EXIT
    deadline=$((SECONDS + 20))
    until ECHO_READY=$(grep -m1 '^listening on ' "$log"); do
        if ! kill -0 "$ECHO_PID" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
            echo "the echo server did not start, its output:" >&2
            cat "$log" >&2
            return 1
        fi
        sleep 0.05
    done
    # A silent fallback to the other driver would test the wrong thing.
    case "$driver $ECHO_READY" in
        "auto "* | *" driver $driver,"* | *" driver ${driver/-/_},"*) ;;
        *) echo "asked for driver $driver, got: $ECHO_READY" >&2; return 1 ;;
    esac
    ECHO_PORT=$(sed -E 's/^listening on 127\.0\.0\.1:([0-9]+).*/\1/' <<<"$ECHO_READY")
}

# Waits for a server that was told to stop (by us, or by a client under test) for at most 20 s.
wait_echo() {
    local code=0 deadline=$((SECONDS + 20))
    while kill -0 "$ECHO_PID" 2>/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "the echo server did not stop within 20 s of SIGTERM" >&2
            kill_echo
            return 1
        fi
        sleep 0.05
    done
    wait "$ECHO_PID" || code=$?
    ECHO_PID=
    return "$code"
}

stop_echo() {
    if ! kill -TERM "$ECHO_PID" 2>/dev/null; then
        echo "the echo server died during the run" >&2
        return 1
    fi
    wait_echo
}

kill_echo() {
    [ -z "$ECHO_PID" ] || kill -KILL "$ECHO_PID" 2>/dev/null || true
    ECHO_PID=
}
