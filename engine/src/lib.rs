//! A WebSocket server engine for Linux: one pinned io_uring runtime per core.

pub mod protocol;
#[doc(hidden)]
pub mod simd;
