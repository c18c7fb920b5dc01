//! What must be true: a record of every connection, kept beside the shards by those who feed and hear them.
//!
//! The handler runs under the shard's `catch_unwind`, so nothing here panics: what is wrong is noted with
//! [`Model::fail`], and the world looks after every step.

use std::collections::{HashMap, VecDeque};

use ringwire::{
    CloseCode, CloseReason, Initiator, OutboxFull, SendStatus,
    connection::{Endpoint, Phase, Settings, Timestamp},
    protocol::frame::frame_bytes,
};

use crate::{
    content::Content,
    publications::{Listener, Publications},
};

/// Everything that is known about what should be.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) records: Vec<Record>,
    pub(crate) publications: Publications,
    pub(crate) tally: Tally,
    pub(crate) failures: Vec<String>,
    pub(crate) now: Timestamp,
    settings: Settings,
    /// Tell what happens, for the replay of one seed.
    narrates: bool,
}

/// What is known about one client and its connection.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Sent by the client, not yet heard by the handler.
    pub(crate) uploads: VecDeque<Content>,
    /// Accepted from the handler, not yet heard by the client.
    pub(crate) downloads: VecDeque<Content>,
    /// Pings of the client's that have not been answered.
    pub(crate) pings: VecDeque<Vec<u8>>,
    pub(crate) opened: u32,
    pub(crate) closed: u32,
    pub(crate) reason: Option<CloseReason>,
    /// The handler has paused receipt.
    pub(crate) paused: bool,
    /// The high mark was passed or a message refused, and no drain was told since.
    pub(crate) congested: bool,
    /// This side has begun to close.
    pub(crate) must_close: bool,
    /// The handler has cut the connection off.
    pub(crate) aborted: bool,
    /// When the last message in either direction was queued or delivered.
    pub(crate) last_message: Timestamp,
    /// The codes that this side may have closed with.
    pub(crate) causes: Vec<CloseCode>,
    /// The close frame that the client has sent.
    pub(crate) client_close: Option<(CloseCode, String)>,
    /// The close frame that the client has received.
    pub(crate) server_close: Option<CloseCode>,
    /// The client reset the connection, or ended the stream without a close frame.
    pub(crate) vanished: bool,
    /// Everything that was queued has been given to the socket.
    pub(crate) flushed: bool,
    /// What it hears of topics.
    pub(crate) listener: Listener,
    /// Accepted from the handler, and passed over by what the client heard next.
    pub(crate) skipped: u64,
    /// Refused to the handler although the connection was open.
    pub(crate) refused: u64,
    /// What the connection itself said was dropped, when it ended.
    pub(crate) dropped: u64,
    /// What it said when the handler was last told that messages had been dropped.
    pub(crate) told_dropped: u64,
    /// When that was.
    pub(crate) told: Timestamp,
    /// So many pings were once under way, either way, that older ones may stay unanswered.
    pub(crate) skips_pongs: bool,
}

/// What happened over all, to be compared with what the shards counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) upgrades: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) delivered: u64,
    pub(crate) sent: u64,
    pub(crate) dropped_newest: u64,
    pub(crate) dropped_oldest: u64,
    /// What the connections themselves say was dropped.
    pub(crate) dropped: u64,
    pub(crate) dropped_closing: u64,
    pub(crate) given_up: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) panics: u64,
    pub(crate) drains: u64,
    pub(crate) pongs: u64,
    pub(crate) broken: u64,
    pub(crate) spawned: u64,
    pub(crate) finished: u64,
    pub(crate) publications: u64,
    pub(crate) publications_outside: u64,
    pub(crate) subscriptions: u64,
    /// Publications that clients heard.
    pub(crate) heard: u64,
    /// Publications that had to come, in place of which clients heard newer ones of the same key.
    pub(crate) replaced: u64,
    /// How often each reason of this side's own was given.
    pub(crate) reasons: HashMap<Box<str>, u64>,
}

/// In place of a client, where a failure is nobody's own.
pub(crate) const NOBODY: usize = usize::MAX;
/// What pings and pongs may add to the limit of an outbox, the close frame included.
pub(crate) const CONTROL_BYTES_MAX: usize = 4096;
/// What each of them counts for at most, besides its bytes.
const CONTROL_ENTRY_BYTES: usize = 64;

impl Model {
    pub(crate) fn new(settings: Settings, narrates: bool) -> Self {
        Self {
            records: Vec::new(),
            publications: Publications::default(),
            tally: Tally::default(),
            failures: Vec::new(),
            now: Timestamp::default(),
            settings,
            narrates,
        }
    }

    /// A connection whose outbox is full is closed.
    pub(crate) fn gives_up(&self) -> bool {
        matches!(self.settings.outbox.full, OutboxFull::Close(_))
    }

    pub(crate) fn fail(&mut self, peer: usize, what: impl Into<String>) {
        let whose = if peer == NOBODY { "the shards".to_owned() } else { format!("client {peer}") };
        let what = format!("{whose}: {}", what.into());
        self.narrate(|| format!("FAILURE: {what}"));
        self.failures.push(what);
    }

    pub(crate) fn check(&mut self, peer: usize, holds: bool, what: &str) {
        if !holds {
            self.fail(peer, what);
        }
    }

    pub(crate) fn narrate(&self, what: impl FnOnce() -> String) {
        if self.narrates {
            eprintln!("{}", what());
        }
    }

    /// The handler was told of an open connection.
    pub(crate) fn opened(&mut self, peer: usize) {
        self.narrate(|| format!("client {peer}: on_open"));
        let now = self.now;
        let record = &mut self.records[peer];
        record.opened += 1;
        record.last_message = now;
        let once = record.opened == 1 && record.closed == 0;
        self.tally.opened += 1;
        self.check(peer, once, "on_open comes once");
    }

    /// The handler was lent a message.
    pub(crate) fn delivered(&mut self, peer: usize, message: ringwire::Message<'_>, is_open: bool) {
        self.narrate(|| format!("client {peer}: on_message of {} bytes", message.bytes().len()));
        let now = self.now;
        let record = &mut self.records[peer];
        let expected = record.uploads.pop_front();
        record.last_message = now;
        let alive = record.opened == 1 && record.closed == 0;
        let paused = record.paused;
        self.tally.delivered += 1;
        self.check(peer, alive, "messages come between on_open and on_close");
        self.check(peer, is_open, "no message comes once a close has begun");
        self.check(peer, !paused, "no message comes during a pause");
        match expected {
            None => self.fail(peer, "a message that was never sent"),
            Some(content) if !content.is(message.kind(), message.bytes()) => self.fail(
                peer,
                format!(
                    "received {} bytes of {:?} in place of {} bytes of {:?}",
                    message.bytes().len(),
                    message.kind(),
                    content.bytes.len(),
                    content.kind
                ),
            ),
            Some(_) => {}
        }
    }

    /// The handler sent a message; the outbox held `before` bytes before and holds `after` bytes now.
    pub(crate) fn sent(&mut self, peer: usize, content: Content, status: SendStatus, outbox: Observed) {
        let Observed { was_open, is_open, before, after, dropped } = outbox;
        self.narrate(|| {
            format!("client {peer}: sends {} bytes: {status:?}, {before} -> {after}", content.bytes.len())
        });
        let bytes = frame_bytes(content.bytes.len());
        let (limits, now) = (self.settings.outbox, self.now);
        let fits = before + bytes <= limits.bytes_max;
        // What may be dropped to make room is what has not begun to leave: only the outbox knows.
        let makes_room = was_open && !fits && limits.full == OutboxFull::DropOldest;
        let made_room = makes_room && after <= limits.bytes_max && (after >= bytes && status.is_sent());
        let queued = if makes_room { after } else { before + bytes };
        let expected = match (was_open && (fits || made_room), queued > limits.bytes_high) {
            (false, _) => SendStatus::Dropped,
            (true, true) => SendStatus::Backpressure,
            (true, false) => SendStatus::Sent,
        };
        if status != expected {
            self.fail(peer, format!("{status:?} in place of {expected:?}, {before} + {bytes} bytes"));
        }
        let record = &mut self.records[peer];
        record.refused += u64::from(was_open && !status.is_sent());
        record.congested |= was_open && !fits && before > 0;
        let gives_up = was_open && !fits && matches!(limits.full, OutboxFull::Close(_));
        let as_expected = if makes_room && status.is_sent() {
            self.tally.sent += 1;
            self.tally.dropped_oldest += dropped;
            record.downloads.push_back(content);
            record.last_message = now;
            record.congested |= after > limits.bytes_high;
            dropped > 0 && is_open
        } else if makes_room {
            self.tally.dropped_newest += 1;
            // Nothing else was dropped for it in vain.
            dropped == 1 && after == before && is_open
        } else if status != SendStatus::Dropped {
            self.tally.sent += 1;
            record.downloads.push_back(content);
            record.last_message = now;
            record.congested |= after > limits.bytes_high;
            after == before + bytes && is_open
        } else if gives_up {
            self.tally.given_up += 1;
            record.paused = false;
            record.causes.push(CloseCode::TRY_AGAIN_LATER);
            !is_open
        } else if was_open {
            self.tally.dropped_newest += 1;
            after == before && is_open
        } else {
            self.tally.dropped_closing += 1;
            after == before
        };
        self.check(peer, as_expected, "a send does to the outbox what its status says");
    }

    /// The handler was told that sending may go on.
    pub(crate) fn drained(&mut self, peer: usize, outbox_bytes: usize, is_open: bool) {
        self.narrate(|| format!("client {peer}: on_drain at {outbox_bytes} bytes"));
        self.tally.drains += 1;
        let low = self.settings.outbox.bytes_low;
        let record = &mut self.records[peer];
        let congested = std::mem::take(&mut record.congested);
        let alive = record.opened == 1 && record.closed == 0;
        self.check(peer, congested, "a drain comes only when it was waited for");
        self.check(peer, outbox_bytes <= low, "a drain comes at the low mark");
        self.check(peer, is_open && alive, "a drain comes while messages can be sent");
    }

    /// The handler was told that messages had been dropped, `dropped` by now.
    pub(crate) fn hears_of_drops(&mut self, peer: usize, dropped: u64) {
        self.narrate(|| format!("client {peer}: on_dropped, {dropped} by now"));
        let record = &mut self.records[peer];
        let more = dropped > std::mem::replace(&mut record.told_dropped, dropped);
        record.told = self.now;
        let alive = record.opened == 1 && record.closed == 0;
        self.check(peer, more, "drops are told when there are more");
        self.check(peer, alive, "drops are told until the connection has ended");
    }

    /// The handler was told that a connection has ended.
    pub(crate) fn closed(&mut self, peer: usize, reason: &CloseReason, is_open: bool) {
        self.narrate(|| format!("client {peer}: on_close {reason:?}"));
        self.tally.closed += 1;
        let (now, idle) = (self.now, self.settings.timeouts.idle);
        let record = &mut self.records[peer];
        record.closed += 1;
        record.paused = false;
        let once = record.closed == 1 && record.opened == 1;
        self.stops_listening(peer);
        let record = &mut self.records[peer];
        let explained = match reason.initiator {
            Initiator::Local => {
                *self.tally.reasons.entry(reason.reason.clone()).or_default() += 1;
                record.causes.contains(&reason.code)
            }
            Initiator::Peer => record
                .client_close
                .as_ref()
                .is_some_and(|(code, text)| *code == reason.code && **text == *reason.reason),
            Initiator::Transport => reason.code == CloseCode::ABNORMAL && record.vanished,
        };
        let silence = now.since(record.last_message);
        let hasty = &*reason.reason == "idle timeout" && idle.is_some_and(|idle| silence < idle);
        let heard = reason.initiator != Initiator::Peer || record.uploads.is_empty();
        record.reason = Some(reason.clone());
        self.check(peer, once, "on_close comes once, behind on_open");
        self.check(peer, !hasty, "a connection is idle when neither side has sent a message for long");
        self.check(peer, !is_open, "on_close comes when nothing can be sent any more");
        if !explained {
            let causes = &self.records[peer].causes;
            self.fail(peer, format!("{reason:?} has no cause, there were {causes:?}"));
        }
        self.check(peer, heard, "everything in front of the client's close frame is delivered");
    }

    /// The client received a message.
    pub(crate) fn arrived(&mut self, peer: usize, kind: ringwire::protocol::MessageKind, bytes: &[u8]) {
        self.narrate(|| format!("client {peer}: hears {} bytes of {kind:?}", bytes.len()));
        let record = &mut self.records[peer];
        let Some(skipped) = record.downloads.iter().position(|content| content.is(kind, bytes)) else {
            let next = record.downloads.front().map(|content| content.bytes.len());
            return self.fail(peer, format!("the client hears {} bytes in place of {next:?}", bytes.len()));
        };
        record.downloads.drain(..=skipped);
        record.skipped += skipped as u64;
        // Some topics make room in this way as well.
        let drops_oldest = self.settings.outbox.full == OutboxFull::DropOldest || record.listener.ever;
        self.check(
            peer,
            skipped == 0 || drops_oldest,
            "nothing is passed over unless the oldest are dropped",
        );
    }

    /// The client sends a ping. Where many are unanswered, the older ones may stay so.
    pub(crate) fn pinged(&mut self, peer: usize, payload: Vec<u8>) {
        let record = &mut self.records[peer];
        record.pings.push_back(payload);
        // Each pong may stand by itself between messages, as the server's own pings and its close frame do.
        let counted = |ping: &Vec<u8>| frame_bytes(ping.len()) + CONTROL_ENTRY_BYTES;
        let own = 8 * (frame_bytes(125) + CONTROL_ENTRY_BYTES);
        record.skips_pongs |= record.pings.iter().map(counted).sum::<usize>() + own > CONTROL_BYTES_MAX;
    }

    /// The client received a pong. Older pings may go unanswered, but never in another order.
    pub(crate) fn answered(&mut self, peer: usize, payload: &[u8]) {
        self.narrate(|| format!("client {peer}: hears a pong"));
        self.tally.pongs += 1;
        let record = &mut self.records[peer];
        let Some(skipped) = record.pings.iter().position(|ping| ping == payload) else {
            return self.fail(peer, "a pong without a ping");
        };
        record.pings.drain(..=skipped);
        let may_skip = record.skips_pongs;
        self.check(peer, skipped == 0 || may_skip, "every ping is answered where there is room");
    }

    /// Some of an outbox is about to leave, and `bytes` stay. Answers whether that must be told as a drain.
    pub(crate) fn leaves(&self, peer: usize, bytes: usize, is_open: bool) -> bool {
        let record = &self.records[peer];
        // A pong that waited for room takes it at once.
        record.congested && is_open && bytes <= self.settings.outbox.bytes_low && !record.skips_pongs
    }

    /// The state of a connection was looked at.
    pub(crate) fn observe(&mut self, peer: usize, endpoint: &Endpoint) {
        let (bytes, is_open) = (endpoint.outbox().bytes(), endpoint.is_open());
        let limits = self.settings.outbox;
        let record = &mut self.records[peer];
        if record.listener.ever {
            // What publications do to the outbox is not seen one by one.
            record.congested = endpoint.outbox().is_congested();
        }
        let ignored = record.must_close && is_open || record.aborted && endpoint.phase() < Phase::Closed;
        self.check(peer, !ignored, "a close, an abort or a panic of the handler's ends the connection");
        if bytes > limits.bytes_max + CONTROL_BYTES_MAX {
            self.fail(peer, format!("{bytes} bytes in an outbox of {}", limits.bytes_max));
        }
    }
}

/// The state of a connection around a send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    pub(crate) was_open: bool,
    pub(crate) is_open: bool,
    pub(crate) before: usize,
    pub(crate) after: usize,
    /// Messages that were dropped meanwhile.
    pub(crate) dropped: u64,
}
