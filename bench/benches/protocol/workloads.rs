//! The hot path of `ringwire::protocol`, cut into pieces that can be run any number of times.
//!
//! Used by the benchmark, which times them, and by the example `instructions`, which repeats one under a
//! profiler.

use std::hint::black_box;

use ringwire::protocol::frame::{append_frame, append_masked_frame, write_header_before};
use ringwire::protocol::utf8::Utf8Validator;
use ringwire::protocol::{
    Decoder, HttpRequest, Item, Limits, OpCode, Role, SwitchingProtocols, UpgradeRequest,
};
use ringwire::simd;

use crate::shard::EchoingShard;

/// One piece of work.
pub(crate) struct Workload {
    /// `group/case`.
    pub(crate) name: String,
    /// How many payload bytes one run handles.
    pub(crate) bytes: usize,
    /// Does it once.
    pub(crate) run: Box<dyn FnMut()>,
}

/// All of them.
pub(crate) fn all() -> Vec<Workload> {
    let mut workloads = Vec::new();
    for bytes in [20, 125, 1024, 16 * 1024, 256 * 1024] {
        workloads.push(decode("binary", OpCode::Binary, vec![7; bytes], 1));
        workloads.push(unmask(bytes));
        workloads.push(encode(bytes));
    }
    workloads.push(decode("binary-16-in-a-row", OpCode::Binary, vec![7; 20], 16));
    for bytes in [20, 1024, 16 * 1024] {
        workloads.push(decode("ascii", OpCode::Text, text("a", bytes), 1));
        workloads.push(decode("text", OpCode::Text, text("aé語🦀", bytes), 1));
        workloads.push(validate(bytes));
    }
    workloads.push(echo(OpCode::Binary, 20, 1));
    workloads.push(echo(OpCode::Binary, 20, 16));
    workloads.push(echo(OpCode::Text, 20, 16));
    workloads.push(echo(OpCode::Binary, 1024, 1));
    workloads.push(echo(OpCode::Binary, 16 * 1024, 1));
    workloads.push(relay_header());
    workloads.push(handshake());
    workloads
}

fn workload(name: String, bytes: usize, run: impl FnMut() + 'static) -> Workload {
    Workload { name, bytes, run: Box::new(run) }
}

/// Frames in, messages out. The key is zero, so that the payload is the same after it was unmasked in place:
/// the decoder does not look at the key's value.
fn decode(kind: &str, opcode: OpCode, payload: Vec<u8>, frames: usize) -> Workload {
    let mut stream = Vec::new();
    (0..frames).for_each(|_| append_masked_frame(&mut stream, opcode, &payload, [0; 4]));
    let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 16 };
    workload(format!("decode/{kind}-{}", payload.len()), payload.len() * frames, move || {
        let mut decoder = Decoder::new(Role::Server);
        let mut start = 0;
        while start < stream.len() {
            let decoded = decoder.decode(black_box(&mut stream[start..]), &limits).expect("frames are valid");
            assert!(matches!(decoded.item, Some(Item::Message { .. })));
            start += decoded.consumed;
        }
    })
}

fn unmask(bytes: usize) -> Workload {
    let mut payload = vec![7; bytes];
    workload(format!("unmask/{bytes}"), bytes, move || {
        simd::unmask(black_box(&mut payload), black_box([1, 2, 3, 4]), 0);
    })
}

fn encode(bytes: usize) -> Workload {
    let payload = vec![7; bytes];
    let mut out = Vec::with_capacity(bytes + 16);
    workload(format!("encode/{bytes}"), bytes, move || {
        out.clear();
        append_frame(&mut out, OpCode::Binary, black_box(&payload));
        black_box(&out);
    })
}

/// UTF-8 of characters of one to four bytes.
fn validate(bytes: usize) -> Workload {
    let text = text("aé語🦀", bytes);
    workload(format!("utf8/{bytes}"), bytes, move || {
        let mut validator = Utf8Validator::new();
        let valid = validator.feed(black_box(&text)).and_then(|()| validator.finish());
        assert!(valid.is_ok());
    })
}

/// A turn of a shard: messages received, handed to the handler, and sent back.
fn echo(opcode: OpCode, bytes: usize, messages: usize) -> Workload {
    let mut shard = EchoingShard::new(REQUEST, opcode, &vec![b'.'; bytes], messages);
    let kind = if opcode == OpCode::Text { "text" } else { "binary" };
    workload(format!("echo/{kind}-{bytes}x{messages}"), bytes * messages, move || {
        assert!(black_box(shard.run()) > bytes * messages);
    })
}

/// A server's header written over the client's.
fn relay_header() -> Workload {
    let mut buffer = vec![0; 64];
    workload("relay-header/20".to_owned(), 20, move || {
        black_box(write_header_before(black_box(&mut buffer), 6, OpCode::Binary, 20));
    })
}

/// A browser's upgrade request in, the response out.
fn handshake() -> Workload {
    let mut out = Vec::with_capacity(512);
    workload("handshake/browser".to_owned(), REQUEST.len(), move || {
        out.clear();
        let (request, _) = HttpRequest::parse(black_box(REQUEST), 8192).expect("valid").expect("complete");
        let upgrade = UpgradeRequest::check(&request, ([127, 0, 0, 1], 50_000).into()).expect("valid");
        let accept_key = upgrade.accept_key();
        let accept_key = &accept_key;
        SwitchingProtocols { accept_key, subprotocol: None, headers: &[] }.append_to(&mut out);
        black_box(&out);
    })
}

/// `pattern` over and over, filled up to `bytes` with dots.
fn text(pattern: &str, bytes: usize) -> Vec<u8> {
    let mut text = pattern.repeat(bytes / pattern.len());
    text.extend(std::iter::repeat_n('.', bytes - text.len()));
    text.into_bytes()
}

const REQUEST: &[u8] = b"GET /feed?symbols=a,b,c HTTP/1.1\r\n\
    Host: stream.example.com\r\n\
    Connection: Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\n\
    Origin: https://www.example.com\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
