#!/usr/bin/env bash
# Installs ws and its two native helpers next to a copy of the server of this folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: install.sh DESTINATION}

cp "$here/package.json" "$here/server.js" "$destination/"
cd "$destination"
npm install --no-audit --no-fund --no-package-lock --omit=dev
