//! The only asynchronous code: monoio tasks that move bytes between the kernel and a shard.
//!
//! One [`Worker`] per core. Its tasks are: one that accepts, one per connection, one that takes what the ring
//! has received, one that ticks, one that wakes those who gave way, one that closes windows, and the user's
//! futures. The loop order of a turn: completions wake tasks; these feed the shard; when all have run, what
//! came of it is sent, for all connections together.

mod accept;
mod connection;
mod driver;
mod mailbox;
mod receiving;
mod sending;
mod spawn;
mod turns;
mod windows;
mod worker;

pub(crate) use driver::{Backend, DriverChoice, Transport, build};
pub(crate) use mailbox::{Command, Mailbox};
pub(crate) use worker::{Worker, WorkerSettings, settle};
