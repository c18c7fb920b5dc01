//! Echoes every message.

fn main() {}
