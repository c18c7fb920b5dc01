//! What a shard counts. One thread writes, any thread reads; a count costs a plain load, add and store.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the shard's own thread may call this.
    pub(crate) fn add(&self, amount: u64) {
        // One writer: no read-modify-write instruction is needed.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds `amount` to a count that other threads write, and the shard does not.
    pub(crate) fn add_from_anywhere(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counts of one shard since it started.
        #[derive(Debug, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// The counts of one shard or of a whole engine at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct CountersSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Reads every count.
            #[must_use]
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.value(),)* }
            }
        }

        impl std::ops::AddAssign for CountersSnapshot {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl CountersSnapshot {
            /// Every count with its name, for export.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Sockets accepted.
    connections_accepted,
    /// Sockets turned away with 503 because `connections_max` was reached.
    connections_refused,
    /// Upgrades accepted: connections that were opened.
    connections_opened,
    /// Opened connections that ended.
    connections_closed,
    /// Connections at this moment, upgrades in progress included.
    connections_current,
    /// Failed `accept` calls, such as for want of descriptors.
    accept_errors,
    /// Upgrade requests answered with an error status, by the engine or by the handler.
    upgrades_refused,
    /// Plain HTTP requests answered.
    http_requests,
    /// Messages received in full.
    messages_received,
    /// Bytes received from sockets.
    bytes_received,
    /// Messages queued to one connection.
    messages_sent,
    /// Bytes that sockets took.
    bytes_sent,
    /// Pings received.
    pings_received,
    /// Pings of ours that were answered.
    pongs_received,
    /// Connections that broke the protocol.
    protocol_errors,
    /// Panics of the handler, which cost a connection each (closed with 1011; before the upgrade, 500), and
    /// of futures, closures of `run_on`, sessions being dropped and the rules of topics.
    handler_panics,
    /// Messages published by handlers of this shard.
    publications,
    /// Publications queued to subscribers.
    deliveries,
    /// Subscriptions made.
    subscriptions,
    /// Publications that took the place of older ones with a subscriber who had fallen behind.
    conflated,
    /// Envelopes sent to other shards.
    envelopes_sent,
    /// Publications dropped because another shard did not take their envelopes, which may hold several.
    envelopes_refused,
    /// Publications and requests of other threads that found this shard's inbox full.
    inbox_refused,
    /// Envelopes with publications received from other shards and threads.
    envelopes_received,
    /// Other shards woken because something was sent to them.
    wakes,
    /// Other shards that were sent something in a turn, were awake and needed no wake.
    wakes_elided,
    /// Times this shard found its bell rung, by other shards and threads, or by itself where there was more
    /// than a turn's worth. What rang together counts once.
    wakes_heard,
    /// Requests that named a connection which had ended.
    stale_ids,
    /// Topics known at this moment.
    topics_current,
    /// Messages dropped because the outbox was full and the policy drops the oldest.
    dropped_oldest,
    /// Messages dropped because the outbox was full, and the policy drops the newest, or the oldest could not
    /// make room.
    dropped_newest,
    /// Messages dropped because the outbox was full and the policy closes.
    dropped_by_close,
    /// Messages dropped because the connection was closing already.
    dropped_closing,
    /// Messages that were queued, and had not begun to leave, when the connection was lost or cut off.
    dropped_unsent,
    /// Connections closed because the outbox was full.
    closed_outbox_full,
    /// Upgrades that took too long.
    timeouts_handshake,
    /// Connections closed for silence.
    timeouts_idle,
    /// Connections lost because a ping was not answered.
    timeouts_pong,
    /// Close handshakes that the peer did not finish in time.
    timeouts_close,
    /// Connections closed at the end of their lifetime.
    lifetimes_reached,
    /// Receives that found no buffer to lease and took the slower way.
    leases_refused,
    /// Pending receives cancelled because the connection had gone quiet.
    receives_cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up() {
        let counters = Counters::default();
        counters.messages_received.add(2);
        let mut sum = counters.snapshot();
        sum += counters.snapshot();
        assert_eq!(sum.messages_received, 4);
        assert_eq!(
            sum.entries().find(|entry| entry.0 == "messages_received"),
            Some(("messages_received", 4))
        );
    }
}
