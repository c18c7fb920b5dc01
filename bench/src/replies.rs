//! The incoming side of one client connection: follows the replies and checks them as they arrive.
//!
//! Nothing is kept but the place in the current frame. All data frames of a run start with the same byte, so
//! a frame that starts with another one is a control frame, or a violation. A reply in several fragments
//! would be legal, but no engine measured here sends one, and it would hide a cost: it is refused.

use ringwire::protocol::frame::{CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, OpCode};
use ringwire::protocol::{FrameHeader, parse_close};

use crate::Result;
use crate::payload::Payloads;

/// Where a connection is in the replies it is owed.
#[derive(Debug)]
pub(crate) struct Replies {
    tag: u64,
    received: u64,
    offset: usize,
    control: Vec<u8>,
    pong: Option<Vec<u8>>,
}

impl Replies {
    /// Expects the messages numbered by [`number`] with this tag, in order.
    pub(crate) fn new(tag: u64) -> Self {
        Self { tag, received: 0, offset: 0, control: Vec::new(), pong: None }
    }

    /// How many replies have been received whole.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes bytes from the server and returns how many replies they completed.
    ///
    /// # Errors
    /// A reply differs from what is due, or the server closed or broke the protocol.
    #[inline]
    pub(crate) fn take(&mut self, mut bytes: &[u8], payloads: &Payloads) -> Result<u64> {
        let received_before = self.received;
        let reply_bytes = payloads.reply_bytes();
        while let Some(&first) = bytes.first() {
            if self.offset == 0 && (first != payloads.reply_first_byte() || !self.control.is_empty()) {
                bytes = self.take_control(bytes)?;
                continue;
            }
            let (piece, rest) = bytes.split_at((reply_bytes - self.offset).min(bytes.len()));
            payloads.check(number(self.tag, self.received), self.offset, piece)?;
            self.offset += piece.len();
            if self.offset == reply_bytes {
                self.offset = 0;
                self.received += 1;
            }
            bytes = rest;
        }
        Ok(self.received - received_before)
    }

    /// The payload of a ping that is still to be answered.
    pub(crate) fn take_pong(&mut self) -> Option<Vec<u8>> {
        self.pong.take()
    }

    #[cold]
    fn take_control<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let held = self.control.len();
        let room = HEADER_BYTES_MAX + CONTROL_PAYLOAD_BYTES_MAX - held;
        self.control.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some((header, header_bytes)) = FrameHeader::decode(&self.control)? else {
            return Ok(&[]);
        };
        if header.mask.is_some() {
            return Err("masked frame from a server".into());
        }
        if !header.opcode.is_control() {
            return Err(format!("unexpected {:?} frame (fin {})", header.opcode, header.fin).into());
        }
        let frame_bytes = header_bytes + header.payload_bytes as usize;
        if self.control.len() < frame_bytes {
            return Ok(&[]);
        }
        let payload = &self.control[header_bytes..frame_bytes];
        match header.opcode {
            OpCode::Ping => self.pong = Some(payload.to_vec()),
            OpCode::Close => return Err(format!("the server closed: {:?}", parse_close(payload)).into()),
            _ => {}
        }
        self.control.clear();
        Ok(&bytes[frame_bytes - held..])
    }
}

/// The number of the `index`-th message of the connection with this tag.
#[inline]
pub(crate) fn number(tag: u64, index: u64) -> u64 {
    tag << 40 | index & 0xFF_FFFF_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Content, Verify};
    use ringwire::protocol::frame::append_frame;

    #[test]
    fn replies_and_pings_are_followed_across_any_split() {
        let mut payloads = Payloads::new(Content::Ascii, 20, Verify::Full, 0);
        let mut stream = Vec::new();
        for index in 0..3 {
            let mut sent = payloads.frame(number(9, index)).to_vec();
            let (header, payload) = sent.split_at_mut(6);
            payload.iter_mut().zip(header[2..].iter().cycle()).for_each(|(byte, key)| *byte ^= key);
            append_frame(&mut stream, OpCode::Ping, b"still there?");
            append_frame(&mut stream, OpCode::Text, payload);
        }
        for split in 0..=stream.len() {
            let mut replies = Replies::new(9);
            let (head, tail) = stream.split_at(split);
            let completed = replies.take(head, &payloads).unwrap() + replies.take(tail, &payloads).unwrap();
            assert_eq!(completed, 3, "split at {split}");
            assert_eq!(replies.take_pong().unwrap(), b"still there?");
        }
    }

    #[test]
    fn close_and_fragments_are_failures() {
        let payloads = Payloads::new(Content::Binary, 20, Verify::Full, 0);
        assert!(Replies::new(0).take(&[0x88, 0x02, 0x03, 0xE8], &payloads).is_err());
        assert!(Replies::new(0).take(&[0x02, 20], &payloads).is_err());
    }
}
