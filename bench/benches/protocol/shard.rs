//! A turn of a shard that echoes, without kernel and runtime: bytes in, handler called, bytes out.

use std::{sync::Arc, time::Duration};

use ringwire::{
    Connection, ConnectionId, Counters, Handler, Message, OutboxFull, Upgrade,
    buffer::HEADROOM_BYTES,
    connection::{OutboxLimits, Output, Settings, Timeouts, Timestamp},
    protocol::{CloseCode, Limits, OpCode, UpgradeRequest, frame::append_masked_frame},
    shard::Shard,
};

struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        let _ = connection.send(message);
    }
}

/// One connection of a shard, as its runtime serves it.
pub(crate) struct EchoingShard {
    shard: Shard<Echo>,
    id: ConnectionId,
    /// Headroom and `messages` frames. Their key is zero: the payload is the same when it was unmasked.
    input: Vec<u8>,
    /// What the last turn wrote over them is put right from here.
    stream: Vec<u8>,
}

impl EchoingShard {
    pub(crate) fn new(request: &[u8], opcode: OpCode, payload: &[u8], messages: usize) -> Self {
        let now = Timestamp::from_millis(1);
        let mut shard = Shard::new(0, Echo, settings(), 1, Arc::new(Counters::default()), 1, now);
        let id = shard.handle_accepted(([127, 0, 0, 1], 50_000).into(), now).expect("there is room");
        let mut stream = Vec::new();
        (0..messages).for_each(|_| append_masked_frame(&mut stream, opcode, payload, [0; 4]));
        let mut echoing = Self { shard, id, input: with_headroom(request), stream };
        echoing.turn(request.len());
        echoing.input = with_headroom(&echoing.stream);
        echoing
    }

    /// Receives the frames and sends the answers. Answers how many bytes were sent.
    pub(crate) fn run(&mut self) -> usize {
        // A header written in place is written over the client's.
        self.input[HEADROOM_BYTES..][..HEADER_BYTES_MAX].copy_from_slice(&self.stream[..HEADER_BYTES_MAX]);
        self.turn(self.stream.len())
    }

    fn turn(&mut self, received: usize) -> usize {
        let now = Timestamp::from_millis(1);
        let mut sent = 0;
        let input = &mut self.input[..HEADROOM_BYTES + received];
        if let Some(relayed) = self.shard.handle_received(self.id, input, now) {
            sent += relayed.len();
            self.shard.handle_relayed(self.id, relayed.len(), &[]);
        }
        while let Output::Send(buffer) = self.shard.poll_output(self.id) {
            let bytes = buffer.len();
            self.shard.handle_sent(self.id, buffer, bytes);
            sent += bytes;
        }
        sent
    }
}

/// The longest header of a client's frame.
const HEADER_BYTES_MAX: usize = 14;

fn with_headroom(bytes: &[u8]) -> Vec<u8> {
    let mut input = vec![0; HEADROOM_BYTES];
    input.extend_from_slice(bytes);
    input
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        message: Limits { message_bytes_max: 1 << 20, fragments_max: 16 },
        header_bytes_max: 8192,
        outbox: OutboxLimits {
            bytes_max: 1 << 20,
            bytes_high: 1 << 19,
            bytes_low: 1 << 18,
            full: OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
        },
        timeouts: Timeouts {
            handshake: second,
            idle: None,
            ping_interval: Some(second),
            pong: second,
            close: second,
            lifetime: None,
            lifetime_jitter: Duration::ZERO,
        },
    }
}
