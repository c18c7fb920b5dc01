//! The endpoint, frame by frame.

mod closing;
mod receiving;

use std::time::Duration;

use super::*;
use crate::{
    buffer::HEADROOM_BYTES,
    connection::{Initiator, OutboxFull, OutboxLimits, Timeouts},
    protocol::{
        CloseCode, Limits,
        frame::{append_frame, append_masked_frame},
    },
};

const SETTINGS: Settings = Settings {
    message: Limits { message_bytes_max: 100_000, fragments_max: 16 },
    header_bytes_max: 8192,
    outbox: OutboxLimits {
        bytes_max: 64 * 1024,
        bytes_high: 32 * 1024,
        bytes_low: 1024,
        full: OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
    },
    timeouts: Timeouts {
        handshake: Duration::from_secs(10),
        idle: None,
        ping_interval: Some(Duration::from_secs(25)),
        pong: Duration::from_secs(10),
        close: Duration::from_secs(5),
        lifetime: None,
        lifetime_jitter: Duration::ZERO,
    },
};

/// What came of received bytes, payloads included.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Message(MessageKind, Vec<u8>),
    Ping,
    Pong,
    Closed(Option<ProtocolError>),
}

/// What the transport was told to do.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Send(Vec<u8>),
    Shutdown,
    Close,
}

struct Fixture {
    endpoint: Endpoint,
    settings: Settings,
    corks: CorkPool,
    now: Timestamp,
}

impl Fixture {
    /// At the upgrade request.
    fn accepted(settings: Settings) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let endpoint = Endpoint::new(&settings, Duration::ZERO, now);
        Self { endpoint, settings, corks: CorkPool::new(), now }
    }

    /// An open connection whose response has left.
    fn open() -> Self {
        let mut fixture = Self::accepted(SETTINGS);
        fixture.endpoint.accept(b"101".to_vec(), fixture.now);
        assert_eq!(fixture.told(), [Told::Send(b"101".to_vec())]);
        fixture
    }

    /// Receives `bytes`, and pauses behind the message number `pause_behind`.
    fn receive_until(&mut self, bytes: &[u8], pause_behind: usize) -> Vec<Seen> {
        let mut input = vec![0; HEADROOM_BYTES];
        input.extend_from_slice(bytes);
        match self.endpoint.handle_received(&mut input, self.now) {
            Ok(start) => self.process(&mut input, start, pause_behind),
            Err(mut joined) => self.process(&mut joined, 0, pause_behind),
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.receive_until(bytes, usize::MAX)
    }

    /// Resumes receipt, and processes what was kept.
    fn resume(&mut self) -> Vec<Seen> {
        self.endpoint.pause_receive(false);
        if !self.endpoint.take_resumed(&self.settings, self.now) {
            return Vec::new();
        }
        let (mut kept, start) = self.endpoint.take_kept();
        self.process(&mut kept, start, usize::MAX)
    }

    fn process(&mut self, input: &mut [u8], start: usize, pause_behind: usize) -> Vec<Seen> {
        let (mut position, mut seen, mut messages) = (start, Vec::new(), 0);
        loop {
            let endpoint = &mut self.endpoint;
            match endpoint.poll_event(input, &mut position, &self.settings, &mut self.corks, self.now) {
                None => break,
                Some(Event::Message(kind, place)) => {
                    seen.push(Seen::Message(
                        kind,
                        match place {
                            Place::Input(range) => input[range].to_vec(),
                            Place::Assembly => {
                                let (assembly, start) = endpoint.take_assembly();
                                assert_eq!(start, 10, "room for any header of a server's");
                                assembly[start..].to_vec()
                            }
                        },
                    ));
                    messages += 1;
                    if messages == pause_behind {
                        endpoint.pause_receive(true);
                    }
                }
                Some(Event::Ping) => seen.push(Seen::Ping),
                Some(Event::Pong) => seen.push(Seen::Pong),
                Some(Event::Closed(error)) => seen.push(Seen::Closed(error)),
            }
        }
        self.endpoint.keep(&input[position..]);
        seen
    }

    fn send(&mut self, payload: &[u8]) -> Result<SendStatus, Full> {
        self.endpoint.send(OpCode::Binary, payload, &self.settings, &mut self.corks)
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        self.endpoint.close(code, reason, &self.settings, &mut self.corks, self.now);
    }

    /// What the transport is told until it has nothing to do, when the socket takes everything.
    fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        loop {
            let had_output = self.endpoint.has_output();
            let output = self.endpoint.poll_output(&mut self.corks);
            assert_eq!(had_output, !matches!(output, Output::Idle), "has_output foretells the output");
            told.push(match output {
                Output::Idle => return told,
                Output::Shutdown => Told::Shutdown,
                Output::Close => Told::Close,
                Output::Send(buffer) => {
                    let bytes = buffer.unsent().to_vec();
                    let _ = self.endpoint.handle_sent(buffer, bytes.len(), &self.settings, &mut self.corks);
                    Told::Send(bytes)
                }
            });
        }
    }

    /// A buffer that the socket does not take yet.
    fn in_flight(&mut self) -> SendBuffer {
        match self.endpoint.poll_output(&mut self.corks) {
            Output::Send(buffer) => buffer,
            output => panic!("{output:?}"),
        }
    }

    fn sent(&mut self, buffer: SendBuffer, bytes: usize) -> bool {
        self.endpoint.handle_sent(buffer, bytes, &self.settings, &mut self.corks)
    }

    fn ended(&mut self) -> Option<(u16, Initiator)> {
        self.endpoint.take_ended().map(|reason| (reason.code.value(), reason.initiator))
    }

    /// Lets the time to the next deadline pass, and handles it.
    fn expire(&mut self) -> Option<super::super::Expired> {
        self.now = self.endpoint.deadline(&self.settings);
        assert_ne!(self.now, Timestamp::NEVER);
        self.endpoint.handle_deadline(&self.settings, &mut self.corks, self.now)
    }
}

fn client_frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_masked_frame(&mut frame, opcode, payload, [0x5A, 0x01, 0xFF, 0x80]);
    frame
}

fn client_fragment(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(opcode, payload);
    frame[0] &= 0x7F;
    frame
}

fn server_frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, opcode, payload);
    frame
}

fn binary(payload: &[u8]) -> Seen {
    Seen::Message(MessageKind::Binary, payload.to_vec())
}

const NORMAL: &[u8] = b"\x03\xE8";

#[test]
fn a_message_is_relayed_only_past_an_idle_outbox() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), Some(SendStatus::Sent));
    assert_eq!(fixture.endpoint.outbox().bytes(), 5004);
    assert!(!fixture.endpoint.handle_relayed(5004, SendBuffer::owned(Vec::new(), 0), &SETTINGS));

    assert_eq!(fixture.send(b"queued"), Ok(SendStatus::Sent));
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "something is queued");
    let buffer = fixture.in_flight();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "something is in flight");
    let _ = fixture.sent(buffer, 8);
    assert_eq!(fixture.endpoint.reserve_relay(64 * 1024, &SETTINGS), None, "over the limit");
    fixture.close(CloseCode::NORMAL, "");
    let _ = fixture.told();
    assert_eq!(fixture.endpoint.reserve_relay(5000, &SETTINGS), None, "closing");
}

#[test]
fn a_relay_that_drains_a_closing_connection_tells_nobody() {
    let mut fixture = Fixture::open();
    assert_eq!(fixture.endpoint.reserve_relay(40_000, &SETTINGS), Some(SendStatus::Backpressure));
    fixture.close(CloseCode::NORMAL, "");
    assert!(!fixture.endpoint.handle_relayed(40_004, SendBuffer::owned(Vec::new(), 0), &SETTINGS));
    assert_eq!(fixture.told(), [Told::Send(server_frame(OpCode::Close, NORMAL))]);
}
