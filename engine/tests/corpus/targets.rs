//! What is fuzzed: a function per target, from any bytes to a panic if something is wrong.
//!
//! The fuzzer and the test that replays its findings share these. The bytes are read as a script: some steer,
//! the others are what a peer sends.

#[path = "connection.rs"]
mod connection;
#[path = "decoder.rs"]
mod decoder;
#[path = "handshake.rs"]
mod handshake;
#[path = "topics.rs"]
mod topics;

pub(crate) use self::{connection::connection, decoder::decoder, handshake::handshake};

/// Reads a script; at its end all is zero and empty.
#[derive(Debug)]
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// At most `count` bytes.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
