//! In a steady state nothing is allocated for a message: not to receive it, not to hand it over, not to send
//! it.
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
    time::{Duration, Instant},
};

use client::noise;
use ringwire::{Driver, protocol::OpCode};
use script::Script;
use server::{Server, config, run};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_message_in_a_steady_state_allocates_nothing() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        run(driver, |driver| {
            for (connections, together, bytes) in
                [(1, 1, 20), (50, 1, 20), (10, 20, 60), (4, 1, 3000), (4, 1, 6000)]
            {
                let (allocations, messages) = echoed(driver, connections, together, bytes);
                let told = format!(
                    "{driver:?}: {allocations} allocations for {messages} messages of {bytes} bytes, \
                     {together} at once on each of {connections} connections"
                );
                println!("{told}");
                // Not one for a message; a few where more buffers are in turns than ever before.
                assert!(messages >= 300 && allocations <= 20, "{told}");
            }
        });
    }
}

/// How much is allocated for how many messages.
fn echoed(driver: Driver, connections: usize, together: usize, bytes: usize) -> (usize, usize) {
    let server = Server::start(config(driver), |_| Script::echo());
    let mut clients: Vec<_> = (0..connections).map(|_| server.connect()).collect();
    let payload = noise(bytes, 1);
    let frames: Vec<u8> = (0..together).flat_map(|_| clients[0].frame(OpCode::Binary, &payload)).collect();
    let mut streams: Vec<TcpStream> =
        clients.iter().map(|client| client.stream.try_clone().expect("clone")).collect();
    let mut echoes = vec![0; ringwire::protocol::frame::frame_bytes(bytes) * together];
    let mut round = || {
        for stream in &mut streams {
            stream.write_all(&frames).expect("write");
        }
        for stream in &mut streams {
            stream.read_exact(&mut echoes).expect("read");
        }
    };
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
    (change.allocations + change.reallocations, rounds * together * connections)
}
