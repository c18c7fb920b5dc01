//! The load generator behind `scripts/bench.sh`.

fn main() {}
