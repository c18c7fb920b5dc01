//! Requests and answers from any bytes.

#![no_main]
#![allow(dead_code, unused_imports, reason = "each target runs one of the functions")]

#[path = "../../tests/corpus/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::handshake(data));
