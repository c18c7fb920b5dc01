//! What is being sent: bytes with a position, owned by one connection or shared by many.
//!
//! Invariant: `offset <= bytes.len()`; the bytes lie on the heap, so they stay in their place when the buffer
//! is moved, and nothing changes them through a shared reference: the kernel may read them while the buffer
//! exists.

use std::{rc::Rc, sync::Arc};

/// One encoded frame (or several in a row) that many connections send from the same memory.
#[derive(Clone, Debug)]
pub struct SharedFrame(Arc<Vec<u8>>);

/// A shared frame in the hands of one shard: its connections count their references without atomic
/// operations.
#[derive(Clone, Debug)]
pub struct LocalFrame(Rc<SharedFrame>);

impl LocalFrame {
    /// Takes a frame into this thread.
    #[must_use]
    pub fn new(frame: SharedFrame) -> Self {
        Self(Rc::new(frame))
    }

    /// The encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl SharedFrame {
    /// Shares encoded bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Arc<Vec<u8>>>) -> Self {
        Self(bytes.into())
    }

    /// The encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<SharedFrame> for Arc<Vec<u8>> {
    fn from(frame: SharedFrame) -> Self {
        frame.0
    }
}

/// Bytes on their way to the socket. A short send moves the position on; the rest goes out next.
#[derive(Debug)]
pub struct SendBuffer {
    bytes: Bytes,
    offset: usize,
    /// A part has left, or counts as if it had: the rest must follow.
    torn: bool,
    /// Where the first whole frame begins, in `bytes`.
    lead: u32,
    /// What the control frames among these bytes count for.
    control: u16,
}

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Shared(LocalFrame),
}

impl SendBuffer {
    /// Sends `bytes` from position `offset` on.
    ///
    /// # Panics
    /// When `offset` lies beyond the end.
    #[must_use]
    pub fn owned(bytes: Vec<u8>, offset: usize) -> Self {
        assert!(offset <= bytes.len(), "offset beyond the end");
        Self { bytes: Bytes::Owned(bytes), offset, torn: false, lead: saturated(offset), control: 0 }
    }

    /// Sends a frame that others send as well.
    #[must_use]
    pub fn shared(frame: LocalFrame) -> Self {
        Self { bytes: Bytes::Shared(frame), offset: 0, torn: false, lead: 0, control: 0 }
    }

    /// What is still to be sent.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes()[self.offset..]
    }

    /// All bytes from the first whole frame on, and how many of them have been sent.
    #[must_use]
    pub fn frames(&self) -> (&[u8], usize) {
        let lead = (self.lead as usize).min(self.bytes().len());
        (&self.bytes()[lead..], self.offset.saturating_sub(lead))
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned(bytes) => bytes,
            Bytes::Shared(frame) => frame.bytes(),
        }
    }

    /// How many bytes are still to be sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unsent().len()
    }

    /// Nothing is left to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of this buffer has left already.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// `bytes` more have been sent.
    pub fn advance(&mut self, bytes: usize) {
        self.torn |= bytes > 0;
        self.skip(bytes);
    }

    /// What is here must leave as it is: the first `bytes` are the rest of a frame of which a part has left,
    /// or no frame.
    pub fn mark_torn(&mut self, bytes: usize) {
        self.torn = true;
        self.lead = saturated(self.offset + bytes);
    }

    /// What the control frames among these bytes count for, by the measure of whoever queued them.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.control
    }

    /// Control frames were added that count for so much.
    pub fn add_control(&mut self, counted: u16) {
        self.control = self.control.saturating_add(counted);
    }

    /// Leaves only these of the bytes, control frames included.
    pub fn keep(&mut self, bytes: Vec<u8>) {
        self.bytes = Bytes::Owned(bytes);
        self.offset = 0;
        self.lead = 0;
    }

    /// How much memory this buffer holds for itself.
    #[must_use]
    pub fn owned_capacity(&self) -> usize {
        match &self.bytes {
            Bytes::Owned(bytes) => bytes.capacity(),
            Bytes::Shared(_) => 0,
        }
    }

    /// The first `bytes` are not to be sent after all.
    pub fn skip(&mut self, bytes: usize) {
        self.offset += bytes.min(self.len());
    }

    /// Room at the end for more frames, when this buffer is owned and untouched by a send.
    pub fn cork(&mut self) -> Option<&mut Vec<u8>> {
        match &mut self.bytes {
            Bytes::Owned(bytes) if self.offset == 0 && !self.torn => Some(bytes),
            _ => None,
        }
    }

    /// The owned memory, for recycling.
    #[must_use]
    pub fn into_owned(self) -> Option<Vec<u8>> {
        match self.bytes {
            Bytes::Owned(bytes) => Some(bytes),
            Bytes::Shared(_) => None,
        }
    }
}

/// Beyond 4 GiB no whole frames are told apart.
fn saturated(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_send_leaves_the_rest() {
        let mut buffer = SendBuffer::owned(b"..hello".to_vec(), 2);
        buffer.advance(2);
        assert_eq!(buffer.unsent(), b"llo");
        assert!(buffer.is_torn() && buffer.cork().is_none());
        buffer.advance(9);
        assert!(buffer.is_empty());
    }

    #[test]
    fn shared_frames_are_one_memory() {
        let frame = LocalFrame::new(SharedFrame::new(vec![1, 2, 3]));
        let (one, two) = (SendBuffer::shared(frame.clone()), SendBuffer::shared(frame));
        assert_eq!(one.unsent().as_ptr(), two.unsent().as_ptr());
        assert!(one.into_owned().is_none());
    }
}
