#!/usr/bin/env bash
# Builds what is measured and measures it: see bench/README.md, or --help.
#
# Needs a Rust toolchain. What else it needs it installs, by apt when run as root; a peer whose tools cannot be had
# is reported as missing.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
logs=$target/bench-tools
arguments=" $* "
source scripts/need.sh

# What is missing costs some peers or the plots, not the run.
skip() {
    echo "$*" >&2
    exit 1
}
try_need() { (need "$@") || true; }

# Whether this engine is to be measured.
is_wanted() { [[ $arguments != *" --engine "* || $arguments == *" --engine $1 "* ]]; }

case "$arguments" in
*" --help "* | *" -h "*) exec python3 bench/runner/run.py --target "$target" --help ;;
esac

mkdir -p "$logs"
rm -f "$logs/apt-updated"
try_need cc build-essential
try_need python3 python3 python3-venv
if is_wanted uwebsockets; then try_need g++ build-essential; fi
if is_wanted ws; then try_need npm nodejs npm; fi
python3 -c 'import tomllib' || skip "bench/runner needs Python 3.11 or later"

cargo build --release --locked -p ringwire-examples -p ringwire-bench

# Plots only; a report without them is better than none.
python=python3
venv=$target/bench-venv
if ! cmp -s bench/runner/requirements.txt "$venv/requirements.txt"; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --requirement bench/runner/requirements.txt &&
        cp bench/runner/requirements.txt "$venv/" || echo "matplotlib could not be installed" >&2
fi
if [[ -x $venv/bin/python ]]; then python=$venv/bin/python; fi

exec "$python" -B bench/runner/run.py --target "$target" "$@"
