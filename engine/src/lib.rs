//! A WebSocket server engine for Linux: one pinned io_uring runtime per core.
//!
//! A program implements [`Handler`] and starts an [`Engine`]. Every core gets a *shard*: a thread pinned to
//! it with a runtime, a listening socket, a handler and a share of the connections. Shards share nothing.
//!
//! ```no_run
//! use ringwire::{Config, Connection, Engine, Handler, Message, Upgrade, protocol::UpgradeRequest};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     type Session = ();
//!     fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
//!         Upgrade::accept(())
//!     }
//!     fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
//!         let _ = connection.send(message);
//!     }
//! }
//!
//! fn main() -> Result<(), ringwire::Error> {
//!     let engine = Engine::start(Config::new(([127, 0, 0, 1], 9001).into()), |_| Echo)?;
//!     engine.run_until_signal(std::time::Duration::from_secs(10))
//! }
//! ```
//!
//! `ARCHITECTURE.md` beside this crate's manifest has the layers, the way of one message and the decisions
//! with their figures.

pub mod buffer;
pub mod connection;
mod engine;
pub mod mesh;
mod os;
pub mod protocol;
mod runtime;
pub mod shard;
#[doc(hidden)]
pub mod simd;

pub use connection::{CloseReason, DropCounts, Initiator, OutboxFull, SendStatus};
pub use engine::{
    Answer, Config, ConfigError, Cores, Driver, Engine, EngineHandle, Error, HandleError, PortSharing,
    ShardInfo, Topic,
};
pub use protocol::{
    CloseCode,
    handshake::{HttpRequest, HttpResponse, UpgradeRequest},
};
pub use shard::{
    Conflation, Connection, ConnectionId, Counters, CountersSnapshot, Gone, Handler, LocalError, LocalHandle,
    Message, PreparedMessage, PublishStatus, SubscribeError, TopicRules, TopicSettings, Upgrade,
};

/// The programs of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
