#!/usr/bin/env bash
# Runs every check of the project and prints a summary. Exits non-zero if one failed.
#
#   scripts/test.sh                      all steps
#   scripts/test.sh --only STEP ...      these steps only (repeat --only, or name several)
#   scripts/test.sh --list               the names of the steps
#
# Needs a Rust toolchain. What else a step needs is installed under target/, or by apt when run as root; what
# cannot be had makes that step be skipped, with the reason. The output of a step stays in target/test/STEP.log.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
logs=$target/test
source scripts/need.sh
drivers=(io-uring epoll)
clients=(python node tungstenite chromium)
fuzz_seconds=20
cargo_fuzz_version=0.13.2
# Packages that are not members of the workspace: their dependencies stay out of the engine's lock file.
outside=(engine/fuzz scripts/clients/tungstenite bench/peers/{fastwebsockets,tokio-tungstenite,tokio-websockets})

steps=(format build lint test tidy doc loom fuzz)
for driver in "${drivers[@]}"; do
    steps+=("autobahn-$driver")
    for client in "${clients[@]}"; do steps+=("$client-$driver"); done
done
steps+=(bench)

step_format() {
    cargo fmt --all --check
    for package in "${outside[@]}"; do cargo fmt --manifest-path "$package/Cargo.toml" --check; done
}

step_build() {
    need cc build-essential
    cargo build --workspace --release --locked
}

step_lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    for package in "${outside[@]}"; do
        cargo clippy --manifest-path "$package/Cargo.toml" --target-dir "$target/outside" --locked -- -D warnings
    done
}

step_test() {
    cargo test --workspace --locked --no-fail-fast
}

# The rules of the sources: layers, no clock or socket where none belongs, no unsafe outside its rooms.
step_tidy() {
    cargo test --package ringwire --test tidy --locked
}

step_doc() {
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked
}

# Every interleaving of what crosses cores, within loom's bounds. Another cfg is another build of everything.
step_loom() {
    local tests=(engine/tests/loom*.rs) arguments=()
    [ -e "${tests[0]}" ] || skip "there are no loom tests"
    for test in "${tests[@]}"; do arguments+=(--test "$(basename "$test" .rs)"); done
    RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3} \
        cargo test --release --package ringwire --locked --target-dir "$target/loom" "${arguments[@]}"
}

# The seeds and found cases are also replayed by the tests; this looks for new ones for a short while.
step_fuzz() {
    command -v rustup >/dev/null || skip "rustup, which selects the nightly toolchain, is missing"
    rustup run nightly rustc --version || skip "there is no nightly toolchain: rustup toolchain install nightly"
    need c++ build-essential
    local tools names name corpus
    tools=$(absolute "$target/tools")
    if [ "$("$tools/bin/cargo-fuzz" --version 2>/dev/null)" != "cargo-fuzz $cargo_fuzz_version" ]; then
        cargo install --locked --root "$tools" --version "$cargo_fuzz_version" cargo-fuzz ||
            skip "cargo-fuzz could not be installed"
    fi
    names=$("$tools/bin/cargo-fuzz" fuzz list --fuzz-dir engine/fuzz)
    for name in $names; do
        corpus=$(absolute "$target/fuzz/corpus/$name")
        mkdir -p "$target/fuzz/artifacts/$name"
        # New inputs go to the first folder; the committed seeds are only read.
        if ! PATH=$tools/bin:$PATH rustup run nightly cargo fuzz run --fuzz-dir engine/fuzz \
            --target-dir "$target/fuzz" "$name" "$corpus" "$PWD/engine/fuzz/seeds/$name" -- \
            -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix="$(absolute "$target/fuzz/artifacts/$name")/" >"$logs/fuzz-$name.txt" 2>&1; then
            tail -n 60 "$logs/fuzz-$name.txt"
            return 1
        fi
        echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/fuzz-$name.txt") inputs"
    done
}

step_autobahn() {
    need python3 python3-venv
    need_io_uring "$1"
    build_echo
    scripts/autobahn/run.sh "$1"
}

# step_client CLIENT DRIVER
step_client() {
    case $1 in
    python) need python3 python3-venv ;;
    node) need npm nodejs npm ;;
    tungstenite) need cc build-essential ;;
    chromium)
        need python3 python3
        command -v chromium-browser google-chrome >/dev/null || need chromium chromium
        ;;
    esac
    need_io_uring "$2"
    build_echo
    scripts/clients/run.sh "$1" "$2"
}

step_bench() {
    [ -x scripts/bench.sh ] || skip "there is no scripts/bench.sh"
    scripts/bench.sh --smoke
}

run_step() {
    case $1 in
    autobahn-*) step_autobahn "${1#autobahn-}" ;;
    *-io-uring) step_client "${1%-io-uring}" io-uring ;;
    *-epoll) step_client "${1%-epoll}" epoll ;;
    *) "step_$1" ;;
    esac
}

build_echo() { cargo build --release --locked --quiet --package ringwire-examples --bin echo; }

# The reason is the last line of the step's output.
skip() {
    echo "$*"
    exit 77
}

# about STEP: what the summary says about a step that passed, from its output.
about() {
    local log=$logs/$1.log
    case $1 in
    test | loom) awk '/^test result: ok/ { passed += $4 } END { print passed " tests" }' "$log" ;;
    fuzz) echo "$(grep -c ' inputs$' "$log") targets, $fuzz_seconds s each" ;;
    autobahn-*) tail -n 1 "$log" ;;
    bench) grep -E '^[0-9]+ passed' "$log" | tail -n 1 ;;
    *-io-uring | *-epoll) echo "$(grep -c '^ok ' "$log") checks" ;;
    esac
}

absolute() {
    mkdir -p "$1"
    (cd "$1" && pwd)
}

# Containers often forbid io_uring. Asked of the kernel, not of the engine, whose failure must not look like that.
need_io_uring() {
    [ "$1" = io-uring ] || return 0
    command -v python3 >/dev/null || return 0
    python3 - <<'PROBE' || skip "the kernel or a seccomp profile refuses io_uring_setup"
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(425, 0, None)  # no entries: EINVAL or EFAULT from a kernel that would make a ring
sys.exit(ctypes.get_errno() in (errno.ENOSYS, errno.EPERM, errno.EACCES))
PROBE
}

selected=()
while [ $# -gt 0 ]; do
    case $1 in
    --list)
        printf '%s\n' "${steps[@]}"
        exit
        ;;
    --only) ;;
    -h | --help)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit
        ;;
    *)
        [[ " ${steps[*]} " == *" $1 "* ]] || { echo "no step $1; --list names them" >&2; exit 2; }
        selected+=("$1")
        ;;
    esac
    shift
done
[ "${#selected[@]}" -gt 0 ] || selected=("${steps[@]}")

mkdir -p "$logs"
rm -f "$logs/apt-updated"
passed=0 failed=0 skipped=0 rows=() broken=
for step in "${selected[@]}"; do
    start=$SECONDS
    if [ -n "$broken" ]; then
        code=77
        echo "the build failed" >"$logs/$step.log"
    else
        printf '\n== %s\n' "$step"
        # Not in a condition: there `set -e` would be off within the step.
        set +e
        (set -e; run_step "$step") 2>&1 | tee "$logs/$step.log"
        code=${PIPESTATUS[0]}
        set -e
    fi
    seconds=$((SECONDS - start))
    case $code in
    0) result=pass passed=$((passed + 1)) about=$(about "$step" || true) ;;
    77) result=skipped skipped=$((skipped + 1)) about=$(tail -n 1 "$logs/$step.log") ;;
    *) result=fail failed=$((failed + 1)) about="exit code $code, see $logs/$step.log" ;;
    esac
    if [ "$step" = build ] && [ "$result" != pass ]; then broken=yes; fi
    [ -n "$broken" ] && [ "$step" != build ] || printf '%s: %s in %d s\n' "$step" "$result" "$seconds"
    rows+=("$(printf '%-20s %-8s %5d s  %s' "$step" "$result" "$seconds" "$about")")
done

printf '\n== summary, %d s\n' "$SECONDS"
printf '%s\n' "${rows[@]}"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]
