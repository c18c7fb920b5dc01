//! The queues between threads: one ring per ordered pair of shards, one inbox per shard for everybody else,
//! one doorbell per shard.
//!
//! It moves values of any type and knows nothing of topics or connections. Rings and inboxes are crates
//! without locks (`rtrb`, `crossbeam-queue`); what is made here is who wakes whom, and what happens when a
//! ring is full. A thread that is preempted in the middle of putting something into an inbox keeps the
//! shard spinning until it runs again; between shards nobody waits.

mod doorbell;
mod end;
mod gate;
mod inbox;
mod ring;

pub use doorbell::{Doorbell, Signal};
pub use end::{Full, MeshEnd, mesh};
pub use gate::Gate;
pub use inbox::{Inbox, Weight};
