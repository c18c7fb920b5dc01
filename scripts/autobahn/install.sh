#!/usr/bin/env bash
# install.sh DIR: a virtual environment in DIR with the Autobahn testsuite's fuzzing client.
#
# The reference is wstest, which runs on CPython 2.7 only: PY27 names the interpreter, else pyenv's or the
# one on the PATH is taken. Where there is none, or AUTOBAHN_RUNNER=kosoku asks for it, kosoku (the same cases
# and report on Python 3.10 or newer) stands in for it. DIR/runner says which one it became.
set -euo pipefail
dir=${1:?usage: install.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)

python27() {
    local candidate
    for candidate in "${PY27:-}" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7.*/bin/python2.7 \
        "$(command -v python2.7 || true)"; do
        # A pyenv shim exists for every version, but runs only when that version is selected.
        if [ -n "$candidate" ] && "$candidate" -c 'import ssl' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# The requirements' checksum in the marker makes an environment of older pins be built anew.
pins=$(cat "$here/constraints.txt" "$here/install.sh" | sha256sum | cut -c 1-16)
if [ "$(cat "$dir/pins" 2>/dev/null)" = "$pins" ]; then exit 0; fi
rm -rf "$dir"
python=
if [ "${AUTOBAHN_RUNNER:-wstest}" = wstest ]; then python=$(python27); fi
if [ -n "$python" ]; then
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    python3 -m venv "$temporary/venv"
    # The last virtualenv that creates Python 2.7 environments; it carries a pip for them.
    "$temporary/venv/bin/pip" install -q 'virtualenv==20.21.1'
    "$temporary/venv/bin/virtualenv" -q -p "$python" --no-periodic-update "$dir"
    # pip 20.3 for Python 2.7 says in several lines that it is old.
    "$dir/bin/pip" install -q --no-python-version-warning -c "$here/constraints.txt" autobahntestsuite
    "$dir/bin/wstest" -a
    echo wstest >"$dir/runner"
else
    python3 -m venv "$dir"
    "$dir/bin/pip" install -q 'kosoku==0.1.0'
    echo kosoku >"$dir/runner"
fi
echo "$pins" >"$dir/pins"
