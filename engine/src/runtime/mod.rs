//! The only asynchronous code: monoio tasks that move bytes between the kernel and a shard.
//!
//! One [`Worker`] per core. Its tasks are: one that accepts, one per connection, one that ticks, and the
//! user's futures. The loop order of a turn: completions wake tasks; a task feeds its shard and sends what
//! came of it; connections that became dirty on the way are woken and send at the end of the same turn.

mod accept;
mod connection;
mod driver;
mod mailbox;
mod spawn;
mod turns;
mod worker;

pub(crate) use driver::{Backend, DriverChoice, build};
pub(crate) use mailbox::{Command, Mailbox};
pub(crate) use worker::{Worker, WorkerSettings, settle};
