#!/usr/bin/env bash
# Builds the server of this folder, for this machine's processor, into the folder given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: install.sh DESTINATION}

RUSTFLAGS="-C target-cpu=native" cargo build --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$destination/build"
install "$destination/build/release/server" "$destination/server"
rm -rf "$destination/build"
