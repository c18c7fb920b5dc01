//! A WebSocket server engine for Linux: one pinned io_uring runtime per core.

pub mod buffer;
pub mod connection;
pub mod protocol;
pub mod shard;
#[doc(hidden)]
pub mod simd;

pub use connection::{CloseReason, Initiator, SendStatus};
pub use shard::{Connection, ConnectionId, Handler, LocalHandle, Message, Upgrade};
