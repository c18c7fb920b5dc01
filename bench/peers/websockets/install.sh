#!/usr/bin/env bash
# Installs what the server of this folder needs into a virtual environment in the folder given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: install.sh DESTINATION}

python3 -m venv --clear "$destination/venv"
"$destination/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
