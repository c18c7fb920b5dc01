//! The frame decoder: what it finds in a stream does not depend on how the stream is cut, and what it finds
//! survives being encoded again.

use ringwire::protocol::{
    Decoder, Item, Limits, MessageKind, OpCode, ProtocolError, Role,
    frame::{append_frame, append_masked_frame},
};

use super::Script;

/// A byte that chooses the role, one that chooses the limits, two that cut the stream, then the stream.
pub(crate) fn decoder(data: &[u8]) {
    let mut script = Script(data);
    let role = if script.byte() % 4 == 3 { Role::Client } else { Role::Server };
    let limits = match script.byte() % 3 {
        0 => Limits { message_bytes_max: 1 << 20, fragments_max: 1000 },
        1 => Limits { message_bytes_max: 100, fragments_max: 3 },
        _ => Limits { message_bytes_max: usize::MAX, fragments_max: u32::MAX },
    };
    let cuts = [script.byte(), script.byte()].map(|cut| usize::from(cut) + 1);
    let stream = script.0;

    let whole = decode(stream, role, &limits, &[stream.len().max(1)]);
    let bytewise = decode(stream, role, &limits, &[1]);
    assert_eq!(whole, bytewise, "cut into bytes");
    assert_eq!(whole, decode(stream, role, &limits, &cuts), "cut into {cuts:?}");

    let encoded = encode(&whole.items, role);
    let again = decode(&encoded, role, &limits, &cuts);
    assert_eq!(again.items, whole.items, "encoded again");
    assert_eq!(again.error, None, "encoded again");
}

#[derive(Debug, PartialEq)]
struct Findings {
    items: Vec<Found>,
    error: Option<ProtocolError>,
}

#[derive(Debug, PartialEq)]
enum Found {
    Message(MessageKind, Vec<u8>),
    Control(OpCode, Vec<u8>),
}

/// Decodes the stream in chunks of these lengths, over and over.
fn decode(stream: &[u8], role: Role, limits: &Limits, chunks: &[usize]) -> Findings {
    let mut decoder = Decoder::new(role);
    let mut items = Vec::new();
    let mut message = Vec::new();
    let mut pending = Vec::new();
    let mut chunks = chunks.iter().cycle();
    let mut rest = stream;
    while !rest.is_empty() {
        let (chunk, later) = rest.split_at((*chunks.next().unwrap()).min(rest.len()));
        rest = later;
        pending.extend_from_slice(chunk);
        loop {
            let decoded = match decoder.decode(&mut pending, limits) {
                Ok(decoded) => decoded,
                Err(error) => {
                    let after = decoder.decode(&mut [0x81, 0x80, 0, 0, 0, 0], limits);
                    assert_eq!(after.map(|decoded| decoded.item), Ok(None), "an item after an error");
                    return Findings { items, error: Some(error) };
                }
            };
            let bytes = |range: std::ops::Range<usize>| {
                assert!(range.end <= decoded.consumed, "a payload beyond what was consumed");
                pending[range].to_vec()
            };
            match decoded.item {
                None => {
                    pending.drain(..decoded.consumed);
                    assert!(pending.len() < 14 + 125, "{} bytes left to the caller", pending.len());
                    break;
                }
                Some(Item::Message { kind, payload }) => items.push(Found::Message(kind, bytes(payload))),
                Some(Item::Part { payload }) => {
                    let part = bytes(payload);
                    assert!(!part.is_empty(), "an empty part");
                    message.extend(part);
                    assert!(message.len() <= limits.message_bytes_max);
                }
                Some(Item::LastPart { kind, payload }) => {
                    message.extend(bytes(payload));
                    items.push(Found::Message(kind, std::mem::take(&mut message)));
                }
                Some(Item::Ping { payload }) => items.push(Found::Control(OpCode::Ping, bytes(payload))),
                Some(Item::Pong { payload }) => items.push(Found::Control(OpCode::Pong, bytes(payload))),
                Some(Item::Close { payload }) => items.push(Found::Control(OpCode::Close, bytes(payload))),
            }
            if let Some(Found::Message(kind, payload)) = items.last() {
                assert!(payload.len() <= limits.message_bytes_max);
                assert!(*kind == MessageKind::Binary || std::str::from_utf8(payload).is_ok(), "not UTF-8");
            }
            pending.drain(..decoded.consumed);
        }
    }
    Findings { items, error: None }
}

fn encode(items: &[Found], role: Role) -> Vec<u8> {
    let mut stream = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let (opcode, payload) = match item {
            Found::Message(MessageKind::Text, payload) => (OpCode::Text, payload),
            Found::Message(MessageKind::Binary, payload) => (OpCode::Binary, payload),
            Found::Control(opcode, payload) => (*opcode, payload),
        };
        match role {
            Role::Client => append_frame(&mut stream, opcode, payload),
            Role::Server => append_masked_frame(&mut stream, opcode, payload, (index as u32).to_be_bytes()),
        }
    }
    stream
}
