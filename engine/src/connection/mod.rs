//! One connection's state machine: bytes and the time in, events and bytes out.
//!
//! [`Endpoint`] follows RFC 6455 from the first byte of the upgrade request to the last of the close
//! handshake. It is fed by the shard and knows neither sockets nor clocks nor the user's handler.

#![forbid(unsafe_code)]

mod close;
mod deadlines;
mod drops;
mod endpoint;
mod outbox;
mod queue;
mod settings;
mod time;

pub use close::{CloseReason, Initiator};
pub use deadlines::Expired;
pub use drops::{DropCounts, Dropped};
pub use endpoint::{Endpoint, Event, Output, Phase, Place};
pub use outbox::{Full, Outbox, SendStatus, SharedStatus};
pub use queue::ConflationKey;
pub use settings::{OutboxFull, OutboxLimits, Settings, Timeouts};
pub use time::Timestamp;
