//! The name of a connection.

use std::fmt;

/// Names one connection of an engine for as long as the process runs: a slot that is used again gets a new
/// generation, so a stale id is recognised and never reaches a stranger. Where generations begin is drawn at
/// random, so that an id of another engine in the process is almost certainly recognised too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
    shard: u16,
}

impl ConnectionId {
    pub(crate) fn new(shard: u16, index: u32, generation: u32) -> Self {
        Self { index, generation, shard }
    }

    /// The shard that owns the connection.
    #[must_use]
    pub fn shard(self) -> usize {
        usize::from(self.shard)
    }

    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    pub(crate) fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}-{}", self.shard, self.index, self.generation)
    }
}
