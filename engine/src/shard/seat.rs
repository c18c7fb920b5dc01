//! A shard's place among the others.

use std::sync::Arc;

use super::envelope::Envelope;
use crate::mesh::{self, MeshEnd, mesh};

/// The queue through which any thread reaches a shard.
pub(crate) type Inbox = Arc<mesh::Inbox<Envelope>>;

/// A shard's place in the mesh.
#[derive(Debug)]
pub struct MeshSeat(pub(crate) MeshEnd<Envelope>);

impl MeshSeat {
    /// Places for `count` shards that are connected to each other.
    #[must_use]
    pub fn connect(count: usize) -> Vec<Self> {
        mesh(count).into_iter().map(Self).collect()
    }

    /// The queue through which any thread reaches this shard.
    pub(crate) fn inbox(&self) -> Inbox {
        self.0.inbox()
    }
}

/// The limits of topics.
#[derive(Clone, Copy, Debug)]
pub struct TopicLimits {
    /// The longest name, in bytes.
    pub name_bytes_max: usize,
    /// Subscriptions per connection.
    pub topics_max: usize,
}

impl Default for TopicLimits {
    fn default() -> Self {
        Self { name_bytes_max: 256, topics_max: 1024 }
    }
}
