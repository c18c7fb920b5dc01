//! Dropping queued messages, oldest first: whole frames, never one whose first byte has left, never a control
//! frame.
//!
//! Queued frames are walked by their headers (RFC 6455 section 5.2); nothing but their bytes is kept of them.

use std::ops::Range;

use super::queue::Queue;
use crate::{buffer::SendBuffer, protocol::FrameHeader};

/// What a buffer of which little is left may hold on to.
const KEPT_CAPACITY_MAX: usize = 512;

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Messages.
    pub messages: u64,
    /// Bytes of encoded frames.
    pub bytes: usize,
}

/// How many messages for one connection were dropped while it was open, by reason. A count that has reached
/// `u32::MAX` stays there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropCounts {
    /// The outbox was full and the policy drops the oldest.
    pub oldest: u32,
    /// The outbox was full, and the policy drops the newest, or the oldest could not make room.
    pub newest: u32,
    /// The outbox was full and the policy closes.
    pub by_close: u32,
    /// Newer values took their place.
    pub conflated: u32,
}

impl DropCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.oldest, self.newest, self.by_close, self.conflated].into_iter().map(u64::from).sum()
    }

    /// Counts `messages` more in `count`.
    pub(crate) fn add(count: &mut u32, messages: u64) {
        *count = count.saturating_add(u32::try_from(messages).unwrap_or(u32::MAX));
    }
}

/// Drops the oldest data frames until `excess` bytes have gone, or nothing is left that may be dropped.
pub(super) fn drop_oldest(queue: &mut Queue, excess: usize) -> Dropped {
    let mut dropped = Dropped::default();
    let mut position = 0;
    // What is behind is not looked at: there may be thousands, and this comes with every message.
    while dropped.bytes < excess
        && let Some(entry) = queue.get_mut(position)
    {
        if !entry.buffer.is_torn() {
            drop_from(&mut entry.buffer, excess, &mut dropped);
        }
        if entry.buffer.is_empty() {
            queue.remove(position);
        } else {
            position += 1;
        }
    }
    dropped
}

/// Drops every data frame that may be dropped.
pub(super) fn drop_all(queue: &mut Queue) -> Dropped {
    let mut dropped = Dropped::default();
    queue.retain(|entry| {
        if !entry.buffer.is_torn() {
            drop_from(&mut entry.buffer, usize::MAX, &mut dropped);
        }
        !entry.buffer.is_empty()
    });
    dropped
}

/// How many data frames have not begun to leave.
pub(super) fn whole_messages(queue: &Queue) -> u64 {
    let mut messages = 0;
    for entry in queue.iter() {
        let mut position = begun_bytes(&entry.buffer);
        while let Some((frame, is_data)) = frame_at(entry.buffer.unsent(), position) {
            position = frame.end;
            messages += u64::from(is_data);
        }
    }
    messages
}

/// How many of the unsent bytes are the rest of a frame of which a part has left, or no frame.
pub(super) fn begun_bytes(buffer: &SendBuffer) -> usize {
    let (frames, sent) = buffer.frames();
    let mut position = 0;
    while position < sent {
        position = frame_at(frames, position).map_or(frames.len(), |(frame, _)| frame.end);
    }
    let before_frames = buffer.len() - (frames.len() - sent);
    before_frames + position - sent
}

/// Whether `excess` bytes of data frames may be dropped.
pub(super) fn can_drop(queue: &Queue, excess: usize) -> bool {
    let mut bytes = 0;
    for entry in queue.iter().filter(|entry| !entry.buffer.is_torn()) {
        let mut position = 0;
        while bytes < excess
            && let Some((frame, is_data)) = frame_at(entry.buffer.unsent(), position)
        {
            position = frame.end;
            bytes += if is_data { frame.len() } else { 0 };
        }
        if bytes >= excess {
            return true;
        }
    }
    bytes >= excess
}

fn drop_from(buffer: &mut SendBuffer, excess: usize, dropped: &mut Dropped) {
    let mut skipped = 0;
    while dropped.bytes < excess
        && let Some((frame, true)) = frame_at(buffer.unsent(), skipped)
    {
        skipped = frame.end;
        dropped.messages += 1;
        dropped.bytes += frame.len();
    }
    buffer.skip(skipped);
    if dropped.bytes < excess && !buffer.is_empty() {
        drop_behind_control(buffer, excess, dropped);
    }
    // A few bytes that stay are not to keep the memory of all that went.
    if buffer.owned_capacity() > KEPT_CAPACITY_MAX && buffer.len() < buffer.owned_capacity() / 4 {
        buffer.keep(buffer.unsent().to_vec());
    }
}

/// The same where a control frame comes first: in one pass, into memory of its own.
fn drop_behind_control(buffer: &mut SendBuffer, excess: usize, dropped: &mut Dropped) {
    let bytes = buffer.unsent();
    let mut kept = Vec::with_capacity(usize::from(buffer.control()));
    let mut position = 0;
    while dropped.bytes < excess
        && let Some((frame, is_data)) = frame_at(bytes, position)
    {
        position = frame.end;
        if is_data {
            dropped.messages += 1;
            dropped.bytes += frame.len();
        } else {
            kept.extend_from_slice(&bytes[frame]);
        }
    }
    if kept.len() < position {
        kept.extend_from_slice(&bytes[position..]);
        buffer.keep(kept);
    }
}

fn frame_at(frames: &[u8], position: usize) -> Option<(Range<usize>, bool)> {
    let (header, header_bytes) = FrameHeader::decode(frames.get(position..)?).ok()??;
    let end = position + header_bytes + usize::try_from(header.payload_bytes).ok()?;
    (end <= frames.len()).then_some((position..end, !header.opcode.is_control()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        buffer::{LocalFrame, SharedFrame},
        connection::queue::Entry,
        protocol::{OpCode, frame::append_frame},
    };

    fn frames(opcodes: &[OpCode]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for opcode in opcodes {
            append_frame(&mut bytes, *opcode, b"12345678");
        }
        bytes
    }

    fn owned(opcodes: &[OpCode]) -> Entry {
        Entry { buffer: SendBuffer::owned(frames(opcodes), 0), key: None }
    }

    fn queue(entries: impl IntoIterator<Item = Entry>) -> Queue {
        let mut queue = Queue::default();
        entries.into_iter().for_each(|entry| queue.push_back(entry));
        queue
    }

    fn buffer_at(queue: &mut Queue, position: usize) -> &SendBuffer {
        &queue.get_mut(position).expect("an entry").buffer
    }

    #[test]
    fn the_oldest_go_until_there_is_room() {
        let frame = LocalFrame::new(SharedFrame::new(frames(&[OpCode::Text; 3])));
        let shared = Entry { buffer: SendBuffer::shared(frame), key: None };
        let mut queue = queue([shared, owned(&[OpCode::Text])]);
        assert_eq!(drop_oldest(&mut queue, 11), Dropped { messages: 2, bytes: 20 });
        assert_eq!(buffer_at(&mut queue, 0).unsent(), frames(&[OpCode::Text]));
        assert!(!buffer_at(&mut queue, 0).is_torn());
        assert_eq!(drop_oldest(&mut queue, usize::MAX), Dropped { messages: 2, bytes: 20 });
        assert!(queue.is_empty());
    }

    #[test]
    fn what_can_be_dropped_is_known_before() {
        let mut torn = owned(&[OpCode::Binary]);
        torn.buffer.advance(1);
        let queue = queue([torn, owned(&[OpCode::Ping, OpCode::Text]), owned(&[OpCode::Text])]);
        assert!(can_drop(&queue, 20));
        assert!(!can_drop(&queue, 21));
    }

    #[test]
    fn control_frames_and_torn_frames_stay() {
        let mut torn = owned(&[OpCode::Binary]);
        torn.buffer.advance(3);
        let mixed = owned(&[OpCode::Ping, OpCode::Text, OpCode::Close, OpCode::Text]);
        let mut queue = queue([torn, mixed]);
        assert_eq!(drop_oldest(&mut queue, usize::MAX), Dropped { messages: 2, bytes: 20 });
        assert_eq!(buffer_at(&mut queue, 0).len(), 7);
        assert_eq!(buffer_at(&mut queue, 1).unsent(), frames(&[OpCode::Ping, OpCode::Close]));
    }
}
