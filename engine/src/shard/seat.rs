//! A shard's place among the others.

use std::sync::Arc;

use super::envelope::{Envelope, Publication};
use crate::mesh::{self, Full, MeshEnd, mesh};

/// The queue through which any thread reaches a shard. Who puts something in is to wake the shard.
#[derive(Clone, Debug)]
pub struct Inbox(Arc<mesh::Inbox<Envelope>>);

impl Inbox {
    /// Puts in what the shard's subscribers are to get.
    ///
    /// # Errors
    /// When there is no room.
    pub fn publish(&self, publication: Publication) -> Result<(), Full> {
        self.push(Envelope::Publish(publication))
    }

    pub(crate) fn push(&self, envelope: Envelope) -> Result<(), Full> {
        self.0.push(envelope)
    }

    pub(crate) fn pop(&self) -> Option<Envelope> {
        self.0.pop()
    }
}

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
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        Inbox(self.0.inbox())
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

impl TopicLimits {
    /// Whether a topic may have this name.
    pub(super) fn allow_name(&self, name: &str) -> bool {
        (1..=self.name_bytes_max).contains(&name.len())
    }
}

impl Default for TopicLimits {
    fn default() -> Self {
        Self { name_bytes_max: 256, topics_max: 1024 }
    }
}
