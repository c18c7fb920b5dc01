#!/usr/bin/env bash
# run.sh CLIENT DRIVER: a real client against the echo server on io-uring or epoll.
#
# CLIENT is python (websockets), node (ws), tungstenite or chromium. A client prints a line per check; the
# last one stops the server with SIGTERM, and the server's exit code is checked here. What a client needs is
# installed into target/clients/. Exits 77, the reason being the last line, when a client cannot be had.
set -euo pipefail
client=${1:?usage: run.sh python|node|tungstenite|chromium io-uring|epoll}
driver=${2:?usage: run.sh CLIENT io-uring|epoll}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
here=scripts/clients/$client
installed=$target/clients/$client

skip() {
    echo "$*"
    exit 77
}

# Runs what installs a client; its output matters only if it fails.
quietly() {
    if ! "$@" >"$installed/install.log" 2>&1; then
        tail -n 5 "$installed/install.log"
        skip "$1 could not install the client"
    fi
}

# The pins of what is installed lie beside it: others mean a new installation.
is_installed() { cmp -s "$1" "$installed/pins"; }

case $client in
python)
    command -v python3 >/dev/null || skip "python3 is missing"
    if ! is_installed "$here/requirements.txt"; then
        rm -rf "$installed"
        mkdir -p "$installed"
        quietly python3 -m venv "$installed"
        quietly "$installed/bin/pip" install -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$installed/pins"
    fi
    command=("$installed/bin/python" "$here/check.py")
    ;;
node)
    command -v npm >/dev/null || skip "npm is missing"
    # node resolves packages beside the script, so the script goes where they may be installed.
    if ! is_installed "$here/package-lock.json"; then
        rm -rf "$installed"
        mkdir -p "$installed"
        cp "$here/package.json" "$here/package-lock.json" "$installed"
        quietly npm ci --prefix "$installed" --no-audit --no-fund
        cp "$here/package-lock.json" "$installed/pins"
    fi
    cp "$here/check.js" "$installed"
    command=(node "$installed/check.js")
    ;;
tungstenite)
    cargo build --quiet --locked --manifest-path "$here/Cargo.toml" --target-dir "$target/clients/tungstenite"
    command=("$installed/debug/tungstenite-client")
    ;;
chromium)
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    [ -n "$browser" ] || skip "chromium is missing"
    command -v python3 >/dev/null || skip "python3, which serves the page, is missing"
    command=(python3 "$here/check.py")
    ;;
*)
    echo "no client $client" >&2
    exit 2
    ;;
esac

. scripts/echo_server.sh
start_echo "$driver" "$target/clients/$client-$driver.log"
echo "$client against the server $ECHO_READY"
code=0
timeout 300 "${command[@]}" "ws://127.0.0.1:$ECHO_PORT" "$ECHO_PID" ${browser:+"$browser"} || code=$?
[ "$code" -eq 0 ] || kill -TERM "$ECHO_PID" 2>/dev/null || true
if wait_echo; then
    echo "ok   the server stopped with exit code 0"
else
    echo "FAIL the server stopped with exit code $?"
    tail -n 20 "$target/clients/$client-$driver.log"
    code=1
fi
exit "$code"
