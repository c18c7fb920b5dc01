//! Memory that the kernel reads and writes: receive buffers on lease, buffers being sent, frames shared by
//! many.
//!
//! It knows nothing of connections or of the protocol.
#![forbid(unsafe_code)]

mod cork;
mod lease;
mod send;

pub use cork::CorkPool;
pub use lease::{BufferClass, HEADROOM_BYTES, Lease, LeasePool};
pub use send::{LocalFrame, SendBuffer, SharedFrame};
