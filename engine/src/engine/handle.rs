//! The handle: what any thread may ask of a running engine.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    runtime::{Command, Mailbox},
    shard::{Counters, CountersSnapshot},
};

/// A way to a running engine from any thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shards: Arc<[ShardHandle]>,
}

pub(super) struct ShardHandle {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
}

impl EngineHandle {
    /// Stops the engine: it accepts no more, closes every connection with 1001 and cuts off what is left after `deadline`.
    /// Returns at once; [`Engine::join`](crate::Engine::join) waits for the end.
    pub fn stop(&self, deadline: Duration) {
        for shard in self.shards.iter() {
            shard.mailbox.post(Command::Stop { deadline });
        }
    }

    /// The counts of all shards together.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        let mut sum = CountersSnapshot::default();
        for shard in self.shards.iter() {
            sum += shard.counters.snapshot();
        }
        sum
    }

    /// The counts of each shard.
    #[must_use]
    pub fn counters_by_shard(&self) -> Vec<CountersSnapshot> {
        self.shards.iter().map(|shard| shard.counters.snapshot()).collect()
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EngineHandle").field("shards", &self.shards.len()).finish()
    }
}
