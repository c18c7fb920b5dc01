//! In a steady state nothing is allocated for a message: not to receive it, not to hand it over, not to send
//! it; for a publication, nothing that grows with its subscribers; and for a pause, nothing that grows with
//! what waits behind it.
//!
//! One test, because the allocations of the whole process are counted. The clients here make none.

#[path = "integration/client.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod client;
#[path = "integration/script.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod script;
#[path = "integration/server.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod server;

use std::{
    alloc::System,
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc,
    time::{Duration, Instant},
};

use client::noise;
use ringwire::{Connection, Driver, Handler, Message, Upgrade, UpgradeRequest, protocol::OpCode};
use script::Script;
use server::{Server, config, run};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_message_in_a_steady_state_allocates_nothing() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        run(driver, |driver| {
            let binary =
                [(1, 1, 20), (50, 1, 20), (10, 20, 60), (4, 1, 3000), (4, 1, 6000), (4, 1, 16 * 1024)];
            let text = [(50, 1, 20), (10, 20, 60), (4, 1, 16 * 1024)];
            let pieces = [(2, 1, 256 * 1024)];
            for (opcode, settings) in
                [(OpCode::Binary, &binary[..]), (OpCode::Text, &text), (OpCode::Binary, &pieces)]
            {
                for &(connections, together, bytes) in settings {
                    let (allocations, messages) = echoed(driver, opcode, connections, together, bytes);
                    let told = format!(
                        "{driver:?}: {allocations} allocations for {messages} {opcode:?} messages of {bytes} \
                         bytes, {together} at once on each of {connections} connections"
                    );
                    println!("{told}");
                    // None for a message; a few where the shard is kept from running for longer than a
                    // tick. While a message is there in part only, its connection keeps a small box for it.
                    let most = if bytes > 64 * 1024 { messages } else { 5.min(messages / 10) };
                    assert!(messages >= 100 && allocations <= most, "{told}");
                }
            }
            let (allocations, publications) = published(driver);
            let told = format!("{driver:?}: {allocations} allocations for {publications} publications");
            println!("{told}");
            // The frame, what shares it between shards and what shares it within one; for a delivery, none.
            assert!(publications >= 100 && allocations <= 4 * publications + 20, "{told}");
            let (allocated, bytes) = paused_behind_each(driver);
            let told = format!("{driver:?}: {allocated} bytes allocated for {bytes} bytes in small messages");
            println!("{told}");
            // A future for each, but no copy of what is still to come.
            assert!(allocated <= 100 * bytes, "{told}");
        });
    }
}

/// How much is allocated for how many messages.
fn echoed(
    driver: Driver,
    opcode: OpCode,
    connections: usize,
    together: usize,
    bytes: usize,
) -> (usize, usize) {
    let server = Server::start(config(driver), |_| Script::echo());
    let mut clients: Vec<_> = (0..connections).map(|_| server.connect()).collect();
    let payload = match opcode {
        OpCode::Text => "\u{e4}".repeat(bytes / 2).into_bytes(),
        _ => noise(bytes, 1),
    };
    let frames: Vec<u8> = (0..together).flat_map(|_| clients[0].frame(opcode, &payload)).collect();
    let mut streams: Vec<TcpStream> =
        clients.iter().map(|client| client.stream.try_clone().expect("clone")).collect();
    let mut echoes = vec![0; ringwire::protocol::frame::frame_bytes(bytes) * together];
    let (allocations, rounds) = in_steady_state(|| {
        for stream in &mut streams {
            stream.write_all(&frames).expect("write");
        }
        for stream in &mut streams {
            stream.read_exact(&mut echoes).expect("read");
        }
    });
    (allocations, rounds * together * connections)
}

/// How much is allocated for how many publications to a hundred subscribers.
fn published(driver: Driver) -> (usize, usize) {
    const BYTES: usize = 100;
    let server = Server::start(config(driver), |_| ToAll);
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), "subscribed"));
    let frame = clients[0].frame(OpCode::Binary, &noise(BYTES, 1));
    let mut streams: Vec<TcpStream> =
        clients.iter().map(|client| client.stream.try_clone().expect("clone")).collect();
    let mut heard = vec![0; ringwire::protocol::frame::frame_bytes(BYTES)];
    in_steady_state(|| {
        streams[0].write_all(&frame).expect("write");
        for stream in &mut streams {
            stream.read_exact(&mut heard).expect("read");
        }
    })
}

/// How many bytes are allocated for a receive full of messages whose handler pauses behind each.
fn paused_behind_each(driver: Driver) -> (usize, usize) {
    const MESSAGES: usize = 3000;
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let (tell, mut messages) = (tell.clone(), 0);
        Script::echo().on_message(move |connection, _| {
            messages += 1;
            if messages == MESSAGES {
                return tell.send(()).expect("the test listens");
            }
            connection.pause_receive();
            let (handle, id) = (connection.handle(), connection.id());
            connection.spawn(async move {
                let _ = handle.with(id, |connection| connection.resume_receive());
            });
        })
    });
    let mut client = server.connect();
    let frames: Vec<u8> = (0..MESSAGES).flat_map(|_| client.frame(OpCode::Binary, b"a message")).collect();
    let region = Region::new(ALLOCATOR);
    client.stream.write_all(&frames).expect("write");
    told.recv_timeout(Duration::from_secs(20)).expect("every message");
    let change = region.change();
    (change.bytes_allocated, frames.len())
}

/// Subscribes everybody, and publishes each message.
struct ToAll;

impl Handler for ToAll {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        connection.subscribe("all").expect("below the limit");
        let _ = connection.send("subscribed");
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        connection.publish_to_all("all", message);
    }
}

/// How much is allocated in how many rounds when all is as it will be.
fn in_steady_state(mut round: impl FnMut()) -> (usize, usize) {
    // Until every buffer that is in turns has been made and every connection receives in its settled way.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1000) {
        round();
    }
    let region = Region::new(ALLOCATOR);
    let mut rounds = 0;
    // The looks for quiet connections and idle memory, once a second, are part of it.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        round();
        rounds += 1;
    }
    let change = region.change();
    (change.allocations + change.reallocations, rounds)
}
