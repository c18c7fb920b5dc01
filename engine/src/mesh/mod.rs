//! The queues between threads: one ring per ordered pair of shards, one inbox per shard for everybody else,
//! one doorbell per shard.
//!
//! It moves values of any type and knows nothing of topics or connections. Rings and inboxes are lock-free
//! crates (`rtrb`, `crossbeam-queue`); what is made here is who wakes whom, and what happens when a ring is
//! full.

mod doorbell;
mod end;
mod gate;
mod inbox;
mod ring;

pub use doorbell::{Doorbell, Signal};
pub use end::{Full, MeshEnd, mesh};
pub use gate::Gate;
pub use inbox::{Inbox, Weight};
