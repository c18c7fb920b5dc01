//! The deadlines of a connection: when it needs attention next, and what happens then.

use super::{Endpoint, Initiator, Phase, Settings, Timestamp};
use crate::{buffer::CorkPool, protocol::CloseCode};

/// What a deadline brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The peer did not finish the close handshake, or did not end the stream after it.
    Close,
    /// The upgrade took too long.
    Handshake,
    /// No message in either direction for too long: closed with 1001.
    Idle,
    /// The longest lifetime is over: closed with 1001.
    Lifetime,
    /// A ping was not answered: the connection is lost.
    Pong,
}

impl Endpoint {
    /// When [`handle_deadline`](Self::handle_deadline) is to be called, unless something changes before.
    #[must_use]
    pub fn deadline(&self, settings: &Settings) -> Timestamp {
        if self.phase != Phase::Open {
            return if self.phase == Phase::Closed { Timestamp::NEVER } else { self.awaited_until };
        }
        let timeouts = &settings.timeouts;
        let idle = self.last_message.after_some(timeouts.idle);
        let keepalive = if self.paused {
            // A pong that has arrived cannot be seen: the peer is not to blame.
            Timestamp::NEVER
        } else if self.awaiting_pong {
            // The pong may stand behind a long frame that is arriving.
            self.awaited_until.max(self.last_received.after(timeouts.pong))
        } else {
            self.last_received.after_some(timeouts.ping_interval)
        };
        idle.min(keepalive).min(self.expires)
    }

    /// Does what is due at `now`. Answers what ended the connection, if anything did.
    pub fn handle_deadline(
        &mut self,
        settings: &Settings,
        corks: &mut CorkPool,
        now: Timestamp,
    ) -> Option<Expired> {
        if self.deadline(settings) > now {
            return None;
        }
        match self.phase {
            Phase::Handshake | Phase::Deciding => {
                self.abort(CloseCode::ABNORMAL, "handshake timeout", Initiator::Local);
                return Some(Expired::Handshake);
            }
            Phase::Closing | Phase::Flushing | Phase::Lingering => {
                self.abort(CloseCode::ABNORMAL, "close timeout", Initiator::Local);
                return Some(Expired::Close);
            }
            Phase::Closed => return None,
            Phase::Open => {}
        }
        if self.expires <= now {
            self.close(CloseCode::GOING_AWAY, "connection lifetime reached", settings, corks, now);
            return Some(Expired::Lifetime);
        }
        if self.last_message.after_some(settings.timeouts.idle) <= now {
            self.close(CloseCode::GOING_AWAY, "idle timeout", settings, corks, now);
            return Some(Expired::Idle);
        }
        // While the peer takes what stands in front of the ping, it is there.
        if self.awaiting_pong && !std::mem::take(&mut self.ping_moved) {
            self.abort(CloseCode::ABNORMAL, "ping not answered", Initiator::Local);
            return Some(Expired::Pong);
        }
        self.awaited_until = now.after(settings.timeouts.pong);
        if !self.awaiting_pong {
            self.awaiting_pong = true;
            self.ping_sent = now;
            self.bytes_before_ping = u32::try_from(self.outbox.bytes()).unwrap_or(u32::MAX);
            self.ping_moved = false;
            self.outbox.push_ping(&now.as_millis().to_be_bytes(), corks);
        }
        None
    }

    /// `sent` bytes have left, perhaps in front of a ping.
    pub(super) fn note_sent(&mut self, sent: usize) {
        if self.bytes_before_ping > 0 && sent > 0 {
            let sent = u32::try_from(sent).unwrap_or(u32::MAX);
            self.bytes_before_ping = self.bytes_before_ping.saturating_sub(sent);
            self.ping_moved = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        connection::{OutboxFull, OutboxLimits, Output, Timeouts},
        protocol::{Limits, OpCode, frame::append_masked_frame},
    };

    const START: Timestamp = Timestamp::from_millis(5_000_000);
    const SETTINGS: Settings = Settings {
        message: Limits { message_bytes_max: 1000, fragments_max: 16 },
        header_bytes_max: 8192,
        outbox: OutboxLimits {
            bytes_max: 1000,
            bytes_high: 600,
            bytes_low: 200,
            full: OutboxFull::DropNewest,
        },
        timeouts: Timeouts {
            handshake: Duration::from_secs(10),
            idle: Some(Duration::from_secs(100)),
            ping_interval: Some(Duration::from_secs(25)),
            pong: Duration::from_secs(7),
            close: Duration::from_secs(5),
            lifetime: Some(Duration::from_secs(1000)),
            lifetime_jitter: Duration::ZERO,
        },
    };

    fn seconds(seconds: u64) -> Timestamp {
        START.after(Duration::from_secs(seconds))
    }

    struct Fixture {
        endpoint: Endpoint,
        settings: Settings,
        corks: CorkPool,
    }

    impl Fixture {
        fn open() -> Self {
            Self::with(SETTINGS)
        }

        fn with(settings: Settings) -> Self {
            let mut endpoint = Endpoint::new(&settings, Duration::ZERO, START);
            endpoint.accept(b"101".to_vec(), START);
            let mut fixture = Self { endpoint, settings, corks: CorkPool::new() };
            assert_eq!(fixture.sent(), b"101");
            fixture
        }

        fn deadline(&self) -> Timestamp {
            self.endpoint.deadline(&self.settings)
        }

        /// Nothing is due a moment before the deadline. Answers what is due at it.
        fn expire(&mut self) -> Option<Expired> {
            let deadline = self.deadline();
            let before = Timestamp::from_millis(deadline.as_millis() - 1);
            assert_eq!(self.endpoint.handle_deadline(&self.settings, &mut self.corks, before), None);
            assert_eq!(self.deadline(), deadline, "nothing happened before it");
            self.endpoint.handle_deadline(&self.settings, &mut self.corks, deadline)
        }

        /// The bytes that the socket takes.
        fn sent(&mut self) -> Vec<u8> {
            let Output::Send(buffer) = self.endpoint.poll_output(&mut self.corks) else { return Vec::new() };
            let bytes = buffer.unsent().to_vec();
            let _ = self.endpoint.handle_sent(buffer, bytes.len(), &self.settings, &mut self.corks);
            bytes
        }

        fn receive(&mut self, opcode: OpCode, payload: &[u8], now: Timestamp) {
            let mut input = Vec::new();
            append_masked_frame(&mut input, opcode, payload, [1, 2, 3, 4]);
            let received = self.endpoint.handle_received(&mut [0; crate::buffer::HEADROOM_BYTES], now);
            assert_eq!(received, Ok(crate::buffer::HEADROOM_BYTES));
            let mut position = 0;
            let endpoint = &mut self.endpoint;
            while endpoint
                .poll_event(&mut input, &mut position, &self.settings, &mut self.corks, now)
                .is_some()
            {}
        }
    }

    #[test]
    fn silence_is_asked_about_and_then_ends_the_connection() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.deadline(), seconds(25));
        assert_eq!(fixture.expire(), None);
        let ping = fixture.sent();
        assert_eq!(ping[..2], [0x89, 8]);
        assert_eq!(ping[2..], seconds(25).as_millis().to_be_bytes());
        assert_eq!(fixture.deadline(), seconds(32));
        assert_eq!(fixture.expire(), Some(Expired::Pong));
        assert!(matches!(fixture.endpoint.poll_output(&mut fixture.corks), Output::Close));
        assert_eq!(fixture.deadline(), Timestamp::NEVER);
        let reason = fixture.endpoint.take_ended().expect("it has ended");
        assert_eq!((reason.code, reason.initiator), (CloseCode::ABNORMAL, Initiator::Local));
    }

    #[test]
    fn any_byte_received_puts_the_ping_off_but_only_the_pong_answers_it() {
        let mut fixture = Fixture::open();
        fixture.receive(OpCode::Binary, b"", seconds(20));
        assert_eq!(fixture.deadline(), seconds(45));
        assert_eq!(fixture.expire(), None);
        fixture.receive(OpCode::Binary, b"not a pong", seconds(46));
        assert_eq!(fixture.deadline(), seconds(53), "it has just been heard");
        fixture.receive(OpCode::Pong, &seconds(45).as_millis().to_be_bytes(), seconds(47));
        assert_eq!(fixture.deadline(), seconds(72));
    }

    #[test]
    fn a_pong_behind_a_long_frame_is_waited_for_while_the_frame_arrives() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.expire(), None);
        for second in [30, 36, 42] {
            let piece = &mut [0; crate::buffer::HEADROOM_BYTES];
            assert!(fixture.endpoint.handle_received(piece, seconds(second)).is_ok());
            assert_eq!(fixture.deadline(), seconds(second + 7));
        }
        assert_eq!(fixture.expire(), Some(Expired::Pong));
    }

    #[test]
    fn any_pong_shows_that_the_peer_is_there_and_only_the_right_one_how_far() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.expire(), None);
        // RFC 6455 section 5.5.3: it may answer the newest ping alone, which was the program's own.
        fixture.receive(OpCode::Pong, b"another ping's", seconds(26));
        assert_eq!(fixture.deadline(), seconds(51));
        assert_eq!(fixture.endpoint.round_trip(), None);
    }

    #[test]
    fn a_ping_behind_a_backlog_is_waited_for_while_the_backlog_leaves() {
        let mut fixture = Fixture::open();
        let Fixture { endpoint, settings, corks } = &mut fixture;
        let _ = endpoint.send(OpCode::Binary, &[7; 900], settings, corks).expect("there is room");
        assert_eq!(fixture.expire(), None);
        for second in [25, 32] {
            assert_eq!(fixture.deadline(), seconds(second + 7));
            let Output::Send(buffer) = fixture.endpoint.poll_output(&mut fixture.corks) else { panic!() };
            let settings = fixture.settings;
            let _ = fixture.endpoint.handle_sent(buffer, 100, &settings, &mut fixture.corks);
            assert_eq!(fixture.expire(), None);
        }
        // The rest leaves, the ping with it, and from then on the pong is due.
        while !fixture.sent().is_empty() {}
        assert_eq!(fixture.expire(), None);
        assert_eq!(fixture.expire(), Some(Expired::Pong));
    }

    #[test]
    fn a_stream_that_the_kernel_takes_hides_no_lost_peer() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.expire(), None);
        while !fixture.sent().is_empty() {}
        let Fixture { endpoint, settings, corks } = &mut fixture;
        let _ = endpoint.send(OpCode::Binary, b"later", settings, corks).expect("there is room");
        while !fixture.sent().is_empty() {}
        assert_eq!(fixture.expire(), Some(Expired::Pong));
    }

    #[test]
    fn pings_keep_no_connection_from_being_idle_and_messages_do() {
        let mut fixture = Fixture::with(Settings {
            timeouts: Timeouts { ping_interval: None, ..SETTINGS.timeouts },
            ..SETTINGS
        });
        fixture.receive(OpCode::Ping, b"", seconds(60));
        assert_eq!(fixture.sent(), [0x8A, 0]);
        assert_eq!(fixture.deadline(), seconds(100));
        fixture.receive(OpCode::Text, b"", seconds(70));
        assert_eq!(fixture.deadline(), seconds(170));
        fixture.endpoint.note_message(seconds(80));
        assert_eq!(fixture.deadline(), seconds(180), "a message to the peer counts as well");
        assert_eq!(fixture.expire(), Some(Expired::Idle));
        assert_eq!(fixture.endpoint.phase(), Phase::Closing);
        assert_eq!(fixture.sent()[2..4], [0x03, 0xE9]);
        assert_eq!(fixture.deadline(), seconds(185), "the close handshake has its own deadline");
        assert_eq!(fixture.expire(), Some(Expired::Close));
    }

    #[test]
    fn the_lifetime_ends_the_busiest_connection() {
        let mut fixture = Fixture::open();
        for second in (0..1000).step_by(10) {
            fixture.receive(OpCode::Binary, b"busy", seconds(second));
        }
        assert_eq!(fixture.deadline(), seconds(1000));
        assert_eq!(fixture.expire(), Some(Expired::Lifetime));
        assert_eq!(fixture.sent()[2..4], [0x03, 0xE9]);
    }

    #[test]
    fn the_lifetime_is_lengthened_by_its_jitter() {
        let endpoint = Endpoint::new(&SETTINGS, Duration::from_secs(77), START);
        assert_eq!(endpoint.expires, seconds(1077));
    }

    #[test]
    fn without_timeouts_an_open_connection_waits_for_ever() {
        let timeouts = Timeouts { idle: None, ping_interval: None, lifetime: None, ..SETTINGS.timeouts };
        let mut fixture = Fixture::with(Settings { timeouts, ..SETTINGS });
        assert_eq!(fixture.deadline(), Timestamp::NEVER);
        let settings = fixture.settings;
        let never = fixture.endpoint.handle_deadline(&settings, &mut fixture.corks, seconds(1 << 40));
        assert_eq!(never, None);
    }

    #[test]
    fn a_pause_stops_the_keepalive_but_neither_idleness_nor_lifetime() {
        let mut fixture = Fixture::open();
        fixture.endpoint.pause_receive(true);
        assert_eq!(fixture.deadline(), seconds(100));
        assert_eq!(fixture.expire(), Some(Expired::Idle));
        assert!(!fixture.endpoint.is_paused(), "the peer's close frame is waited for");
    }

    #[test]
    fn a_pong_that_waited_behind_a_pause_is_not_held_against_the_peer() {
        let mut fixture = Fixture::open();
        assert_eq!(fixture.expire(), None);
        fixture.endpoint.pause_receive(true);
        assert_eq!(fixture.deadline(), seconds(100));
        // Long after the pong was due, receipt is resumed; the pong has yet to be read.
        fixture.endpoint.pause_receive(false);
        assert!(fixture.endpoint.take_resumed(&SETTINGS, seconds(90)));
        assert_eq!(fixture.deadline(), seconds(97));
        fixture.receive(OpCode::Pong, &seconds(25).as_millis().to_be_bytes(), seconds(91));
        assert_eq!(fixture.deadline(), seconds(100));
    }

    #[test]
    fn the_close_has_one_deadline_and_codes_that_cannot_be_sent_are_not() {
        let mut fixture = Fixture::open();
        let Fixture { endpoint, settings, corks } = &mut fixture;
        endpoint.close(CloseCode::ABNORMAL, "", settings, corks, seconds(10));
        assert_eq!(fixture.sent(), [0x88, 2, 0x03, 0xE8]);
        fixture.receive(OpCode::Close, &[0x03, 0xE8], seconds(14));
        assert_eq!(fixture.endpoint.phase(), Phase::Flushing);
        assert_eq!(fixture.deadline(), seconds(15));
    }

    #[test]
    fn a_jump_of_the_clock_ends_a_connection_once() {
        let mut fixture = Fixture::open();
        let late = seconds(100_000);
        let settings = fixture.settings;
        let expired = fixture.endpoint.handle_deadline(&settings, &mut fixture.corks, late);
        assert_eq!(expired, Some(Expired::Lifetime));
        assert_eq!(fixture.endpoint.handle_deadline(&settings, &mut fixture.corks, late), None);
        assert_eq!(fixture.deadline(), late.after(Duration::from_secs(5)));
    }
}
