//! What a subscriber that never read was given after all: read when everything has been published.
//!
//! Messages may be missing where the server drops what does not fit; those that are there must be whole and
//! in order.

use ringwire::protocol::{FrameHeader, OpCode};

use crate::Result;
use crate::payload::Payloads;

/// How far the reading of one such subscriber has come.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// The number of the message that is due.
    next: u64,
    missed: u64,
    /// The server ended the connection.
    pub(crate) is_cut_off: bool,
    /// The start of a frame.
    unread: Vec<u8>,
}

impl Leftovers {
    /// Takes bytes from the server.
    ///
    /// # Errors
    /// A message is not what was published, doubled or out of order, or the server broke the protocol.
    pub(crate) fn take(&mut self, bytes: &[u8], payloads: &Payloads) -> Result<()> {
        self.unread.extend_from_slice(bytes);
        let mut unread = &self.unread[..];
        while let Some((header, header_bytes)) = FrameHeader::decode(unread)? {
            let Some((frame, rest)) = unread.split_at_checked(header_bytes + header.payload_bytes as usize)
            else {
                break;
            };
            unread = rest;
            if header.opcode == OpCode::Close {
                self.is_cut_off = true;
            } else if !header.opcode.is_control() {
                let number = payloads.number_in(frame).unwrap_or(self.next);
                payloads.check(number, 0, frame)?;
                self.missed += number.checked_sub(self.next).ok_or("a message came twice or too late")?;
                self.next = number + 1;
            }
        }
        self.unread = unread.to_vec();
        Ok(())
    }

    /// Whether nothing can follow of `published` messages.
    pub(crate) fn is_over(&self, published: u64) -> bool {
        self.is_cut_off || self.next >= published
    }

    /// How many of `published` messages did not come though the connection lasted.
    pub(crate) fn missed(&self, published: u64) -> u64 {
        if self.is_cut_off { 0 } else { self.missed + published.saturating_sub(self.next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Content, Verify};
    use ringwire::protocol::frame::append_frame;

    #[test]
    fn missing_messages_are_counted_and_doubled_ones_refused() {
        let mut payloads = Payloads::new(Content::Binary, 200, Verify::Full, 0);
        let mut stream = Vec::new();
        for number in [1, 2, 5] {
            let mut sent = payloads.frame(number).to_vec();
            let (header, payload) = sent.split_at_mut(8);
            payload.iter_mut().zip(header[4..].iter().cycle()).for_each(|(byte, key)| *byte ^= key);
            append_frame(&mut stream, OpCode::Ping, b"");
            append_frame(&mut stream, OpCode::Binary, payload);
        }
        for split in 0..=stream.len() {
            let mut leftovers = Leftovers::default();
            leftovers.take(&stream[..split], &payloads).unwrap();
            leftovers.take(&stream[split..], &payloads).unwrap();
            assert_eq!((leftovers.missed(6), leftovers.is_over(6)), (3, true), "split at {split}");
            assert_eq!((leftovers.missed(8), leftovers.is_over(8)), (5, false));
            assert!(leftovers.take(&stream, &payloads).is_err());
        }
    }

    #[test]
    fn close_ends_the_counting() {
        let mut leftovers = Leftovers::default();
        leftovers.take(&[0x88, 0x00], &Payloads::new(Content::Binary, 20, Verify::Full, 0)).unwrap();
        assert_eq!((leftovers.missed(3), leftovers.is_over(3)), (0, true));
    }
}
