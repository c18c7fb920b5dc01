#!/usr/bin/env bash
# Builds our small uWebSockets server and uWebSockets' own load generator into the folder given.
#
# The source is the real C++ that the crate libuwebsockets-sys carries; only its Rust wrapper (which goes through
# libuv) is left aside. Cargo fetches and verifies the crate.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: install.sh DESTINATION}
crate=libuwebsockets-sys
version=0.0.10

mkdir -p "$destination/fetch"
cd "$destination"
cat >fetch/Cargo.toml <<MANIFEST
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"

[lib]
path = "lib.rs"

[dependencies]
$crate = "=$version"

[workspace]
MANIFEST
: >fetch/lib.rs
manifest=$(cargo metadata --quiet --format-version 1 --manifest-path fetch/Cargo.toml |
    python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$crate")
source=$(dirname "$manifest")/uWebSockets
sockets=$source/uSockets/src

flags=(-O3 -march=native -flto=auto -DLIBUS_NO_SSL -DUWS_NO_ZLIB -I "$sockets")
objects=()
for file in "$sockets"/*.c "$sockets"/eventing/*.c "$sockets"/crypto/*.c; do
    object=$(basename "$file" .c).o
    gcc "${flags[@]}" -w -c "$file" -o "$object"
    objects+=("$object")
done
g++ "${flags[@]}" -w -std=c++20 -I "$source/src" "$here/server.cpp" "${objects[@]}" -o server
gcc "${flags[@]}" -w "$source/benchmarks/load_test.c" "${objects[@]}" -o load_test
rm -f -- "${objects[@]}"
