//! Memory that the kernel reads and writes: receive buffers on lease, buffers being sent, frames shared by
//! many.
//!
//! One of the few rooms where `unsafe` may live, because an operation in flight borrows memory from the type
//! system's sight. It knows nothing of connections or of the protocol.

mod cork;
mod lease;
mod send;

pub use cork::CorkPool;
pub use lease::{BufferClass, HEADROOM_BYTES, Lease, LeasePool};
pub use send::{LocalFrame, SendBuffer, SharedFrame};
