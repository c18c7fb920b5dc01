#!/usr/bin/env bash
# Builds what is measured and measures it: see bench/README.md, or --help.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
target=${CARGO_TARGET_DIR:-target}

case " $* " in
*" --help "* | *" -h "*) exec python3 bench/runner/run.py --target "$target" --help ;;
esac

cargo build --release --locked -p ringwire-examples -p ringwire-bench

python=python3
case " $* " in
*" --smoke "*) ;;
*)
    # Plots only; a report without them is better than none.
    venv=$target/bench-venv
    if ! cmp -s bench/runner/requirements.txt "$venv/requirements.txt"; then
        python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --requirement bench/runner/requirements.txt &&
            cp bench/runner/requirements.txt "$venv/" || echo "matplotlib could not be installed" >&2
    fi
    if [[ -x $venv/bin/python ]]; then python=$venv/bin/python; fi
    ;;
esac

exec "$python" -B bench/runner/run.py --target "$target" --started "$started" "$@"
