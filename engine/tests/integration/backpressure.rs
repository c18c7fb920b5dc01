//! Peers that read slowly or not at all: the outbox keeps to its limit, and what does leave is whole and in
//! order.

use std::{
    cell::Cell,
    future::poll_fn,
    io::Read,
    rc::Rc,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use ringwire::{
    CloseCode, CloseReason, Config, Connection, Driver, Initiator, OutboxFull, PublishStatus, SendStatus,
    protocol::{OpCode, frame::frame_bytes},
};

use crate::{
    client::{Client, Received, noise},
    script::Script,
    server::{Server, collect, config, wait_until_empty},
};

on_both_drivers!(
    the_outbox_is_filled_to_its_limit_and_not_beyond,
    the_newest_is_dropped_and_the_connection_lives,
    the_oldest_are_dropped_and_the_newest_arrive,
    what_was_dropped_is_told,
    a_full_outbox_closes_the_connection,
    a_full_outbox_of_a_peer_that_never_reads_ends_it,
    who_never_reads_can_be_cut_off,
    an_outbox_filled_on_open_follows_the_answer_to_the_upgrade,
    an_outbox_with_room_for_one_message_serves_who_reads,
    relayed_messages_are_never_torn,
    a_relayed_message_that_cannot_leave_is_counted,
    unread_pongs_are_bounded_and_the_newest_arrives,
    a_stalled_send_survives_a_quiet_second,
    a_peer_that_does_not_read_is_heard,
    an_outbox_that_drains_slowly_stays_in_order,
    a_stream_that_never_ends_does_not_starve_the_others,
    a_stream_through_a_topic_does_not_starve_the_others,
    a_peer_that_is_streamed_to_is_heard,
);

/// What one connection of these tests is given, so that the kernel's buffers are full after a few sends of
/// it.
const FLOOD_BYTES: usize = 16 * 1024 * 1024;
const OUTBOX_BYTES: usize = 100_000;

fn tight(driver: Driver, full: OutboxFull) -> Config {
    let mut config = config(driver);
    config.outbox_bytes_max = OUTBOX_BYTES;
    config.outbox_bytes_high = OUTBOX_BYTES / 2;
    config.outbox_bytes_low = OUTBOX_BYTES / 10;
    config.outbox_full = full;
    config
}

/// Message `index` of a stream: its number, then noise.
fn numbered(index: usize, bytes: usize) -> Vec<u8> {
    let mut payload = noise(bytes.max(8), index as u64);
    payload[..8].copy_from_slice(&(index as u64).to_be_bytes());
    payload
}

fn number(payload: &[u8]) -> usize {
    let number = u64::from_be_bytes(*payload.first_chunk().expect("a number")) as usize;
    assert!(payload == numbered(number, payload.len()), "message {number} is damaged");
    number
}

/// What the server tells of the sends that one message asked for.
#[derive(Clone, Debug, Default)]
struct Told {
    outbox_bytes_before: usize,
    statuses: Vec<SendStatus>,
    outbox_bytes: Vec<usize>,
}

/// Sends as many numbered messages as the client's text says, of the size it says, and tells what came of it.
fn sender(told: &mpsc::Sender<Told>) -> Script {
    let told = told.clone();
    let mut next = 0;
    Script::echo().on_message(move |connection, message| {
        let asked = String::from_utf8(message.bytes().to_vec()).expect("a text");
        let (count, bytes) = asked.split_once(' ').expect("two numbers");
        let (count, bytes): (usize, usize) = (count.parse().expect("count"), bytes.parse().expect("bytes"));
        let mut result = Told { outbox_bytes_before: connection.outbox_bytes(), ..Told::default() };
        for _ in 0..count {
            result.statuses.push(connection.send(&numbered(next, bytes)));
            result.outbox_bytes.push(connection.outbox_bytes());
            next += 1;
        }
        told.send(result).expect("the test listens");
    })
}

/// Asks for numbered messages until the server's outbox has been full.
fn fill(client: &mut Client, told: &mpsc::Receiver<Told>, bytes: usize) -> Vec<Told> {
    let mut all = Vec::new();
    for _ in 0..FLOOD_BYTES / bytes {
        client.send_text(&format!("10 {bytes}"));
        all.extend(collect(told, 1));
        if all.last().is_some_and(|told| told.statuses.contains(&SendStatus::Dropped)) {
            return all;
        }
    }
    panic!("the outbox was never full");
}

fn the_outbox_is_filled_to_its_limit_and_not_beyond(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| sender(&tell));
    for bytes in [8, 100, 125, 126, 1000, 8000, 9000, 40_000] {
        let mut client = Client::connect_narrow(server.address, 32 * 1024);
        let all = fill(&mut client, &told, bytes);
        let mut fullest = 0;
        for told in &all {
            let mut before = told.outbox_bytes_before;
            for (status, outbox) in told.statuses.iter().zip(&told.outbox_bytes) {
                assert!(*outbox <= OUTBOX_BYTES, "{outbox} bytes wait, {bytes} bytes each");
                fullest = fullest.max(*outbox);
                match status {
                    SendStatus::Dropped => {
                        assert!(before + frame_bytes(bytes) > OUTBOX_BYTES, "dropped with {before} waiting");
                        assert_eq!(*outbox, before);
                    }
                    SendStatus::Backpressure => assert!(*outbox > OUTBOX_BYTES / 2),
                    SendStatus::Sent => assert!(*outbox <= OUTBOX_BYTES / 2),
                }
                before = *outbox;
            }
        }
        assert!(fullest + frame_bytes(bytes) > OUTBOX_BYTES, "only {fullest} bytes waited");
        client.reset();
        // The next one's numbers go on from here: one connection at a time.
        wait_until_empty(&server);
    }
}

fn the_newest_is_dropped_and_the_connection_lives(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let (drain, drained) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| {
        let drain = drain.clone();
        sender(&tell).on_drain(move |connection| {
            drain.send(connection.outbox_bytes()).expect("the test listens");
            let _ = connection.send("drained");
        })
    });
    let mut client = Client::connect_narrow(server.address, 32 * 1024);
    let mut sent = Vec::new();
    let mut dropped = 0;
    let mut first = 0;
    for _ in 0..3 {
        let all = fill(&mut client, &told, 3000);
        for (offset, status) in all.iter().flat_map(|told| &told.statuses).enumerate() {
            if status.is_sent() { sent.push(first + offset) } else { dropped += 1 }
        }
        first += all.iter().map(|told| told.statuses.len()).sum::<usize>();
        assert_eq!(drained.try_recv(), Err(mpsc::TryRecvError::Empty));
        let mut arrived = Vec::new();
        loop {
            match client.receive() {
                Received::Binary(payload) => arrived.push(number(&payload)),
                Received::Text(text) => {
                    assert_eq!(text, "drained");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        // Called once, at the low mark; everything that was not dropped arrived, in order, before what it
        // sent.
        assert!(collect(&drained, 1)[0] <= OUTBOX_BYTES / 10);
        assert_eq!(arrived, sent);
        sent.clear();
    }
    client.send_text("1 10");
    collect(&told, 1);
    assert_eq!(number(&client.receive_binary()), first);
    client.close();
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.dropped_newest, dropped);
    assert_eq!((counters.dropped_by_close, counters.dropped_closing, counters.closed_outbox_full), (0, 0, 0));
    assert_eq!(drained.try_iter().count(), 0);
}

fn the_oldest_are_dropped_and_the_newest_arrive(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropOldest), move |_| sender(&tell));
    for bytes in [20, 3000, 9000, 40_000] {
        let before = server.counters();
        let mut client = Client::connect_narrow(server.address, 32 * 1024);
        let mut count = 0;
        // Go on for a while after the first was dropped.
        let mut rounds_left = 20;
        while rounds_left > 0 {
            client.send_text(&format!("10 {bytes}"));
            for told in collect(&told, 1) {
                assert!(told.statuses.iter().all(|status| status.is_sent()), "{told:?}");
                assert!(told.outbox_bytes.iter().all(|bytes| *bytes <= OUTBOX_BYTES), "{told:?}");
            }
            count += 10;
            rounds_left -= usize::from(server.counters().dropped_oldest > before.dropped_oldest);
        }
        client.send(OpCode::Ping, b"the end");
        let mut arrived = Vec::new();
        loop {
            match client.receive() {
                Received::Binary(payload) => arrived.push(number(&payload)),
                Received::Pong(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(arrived.is_sorted_by(|one, next| one < next), "{arrived:?}");
        let dropped = server.counters().dropped_oldest - before.dropped_oldest;
        assert_eq!(arrived.len() as u64 + dropped, count);
        // The newest are all there, as many as the outbox holds but for what was on its way.
        let newest = arrived.windows(2).rev().take_while(|pair| pair[0] + 1 == pair[1]).count() + 1;
        assert!(newest >= (OUTBOX_BYTES / 2 / frame_bytes(bytes)).max(1), "{newest} of {arrived:?}");
        client.close();
    }
    let counters = server.counters();
    assert_eq!((counters.dropped_newest, counters.closed_outbox_full), (0, 0));
}

/// Of a peer that does nothing, so that nothing else calls the handler.
fn what_was_dropped_is_told(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| {
        let tell = tell.clone();
        Script::echo().on_open(|connection| connection.subscribe("news").expect("it is allowed")).on_dropped(
            move |connection| {
                let drops = connection.drops();
                assert_eq!(drops.total(), u64::from(drops.newest));
                tell.send(drops.total()).expect("the test listens");
            },
        )
    });
    let silent = Client::connect_narrow(server.address, 32 * 1024);
    server.eventually("the subscription", |_| server.handle.subscribers("news") == 1);
    let (mut published, mut heard, mut rounds_left) = (0, 0, 3);
    while rounds_left > 0 {
        assert!(published < (FLOOD_BYTES / 9000) as u64, "the outbox was never full");
        for _ in 0..50 {
            server.handle.publish("news", &[7; 9000]).expect("room");
        }
        published += 50;
        server.eventually("the last", |counters| counters.deliveries + counters.dropped_newest == published);
        let dropped = server.counters().dropped_newest;
        rounds_left -= usize::from(dropped > 0);
        while heard < dropped {
            let more = collect(&told, 1)[0];
            assert!(more > heard, "{more} after {heard}");
            heard = more;
        }
        assert_eq!(heard, dropped);
    }
    drop(silent);
}

fn a_full_outbox_closes_the_connection(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let full = OutboxFull::Close(CloseCode::TRY_AGAIN_LATER);
    let server = Server::start(tight(driver, full), move |_| {
        let end = end.clone();
        sender(&tell).on_close(move |connection, reason| {
            assert!(!connection.is_open());
            end.send((reason.clone(), connection.drops())).expect("the test listens");
        })
    });
    let mut other = server.connect();
    for bytes in [20, 3000, 9000, 40_000] {
        let before = server.counters();
        let mut client = Client::connect_narrow(server.address, 32 * 1024);
        fill(&mut client, &told, bytes);
        // What had begun to leave arrives whole, then the close frame.
        let mut last = None;
        let code = loop {
            match client.receive() {
                Received::Binary(payload) => {
                    let number = number(&payload);
                    assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
                    last = Some(number);
                }
                close @ Received::Close(_) => break close.close_code(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, Some(1013));
        client.send(OpCode::Close, &1013u16.to_be_bytes());
        client.receive_end();
        let reason = CloseReason {
            code: CloseCode::TRY_AGAIN_LATER,
            reason: "outbox full".into(),
            initiator: Initiator::Local,
        };
        let after = server.counters();
        let (told, drops) = collect(&ended, 1).remove(0);
        assert_eq!(told, reason);
        assert_eq!(u64::from(drops.by_close), after.dropped_by_close - before.dropped_by_close);
        assert_eq!(drops.total(), u64::from(drops.by_close));
        assert_eq!(after.closed_outbox_full, before.closed_outbox_full + 1);
        assert!(after.dropped_by_close > before.dropped_by_close, "{after:?}");
        assert_eq!(after.timeouts_close, 0);
    }
    other.send_text("1 10");
    number(&other.receive_binary());
}

fn a_full_outbox_of_a_peer_that_never_reads_ends_it(driver: Driver) {
    for bytes in [20, 3000, 40_000] {
        let (tell, told) = mpsc::channel();
        let full = OutboxFull::Close(CloseCode::TRY_AGAIN_LATER);
        let mut config = tight(driver, full);
        config.close_timeout = Duration::from_millis(300);
        let server = Server::start(config, move |_| sender(&tell));
        let mut client = Client::connect_narrow(server.address, 32 * 1024);
        fill(&mut client, &told, bytes);
        server.eventually("the close timeout", |counters| counters.timeouts_close == 1);
        server.eventually("the end of the connection", |counters| counters.connections_current == 0);
        let counters = server.stop(Duration::from_secs(5));
        assert_eq!((counters.closed_outbox_full, counters.connections_closed), (1, 1));
    }
}

fn who_never_reads_can_be_cut_off(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let mut config = tight(driver, OutboxFull::DropNewest);
    // Longer than anybody waits here.
    config.close_timeout = Duration::from_secs(600);
    let (end, ended) = mpsc::channel();
    let server = Server::start(config, move |_| {
        let end = end.clone();
        sender(&tell)
            .on_dropped(|connection| {
                connection.close(CloseCode::TRY_AGAIN_LATER, "you do not read");
                connection.abort("and did not");
            })
            .on_close(move |_, reason| end.send(reason.code).expect("the test listens"))
    });
    let mut client = Client::connect_narrow(server.address, 32 * 1024);
    fill(&mut client, &told, 3000);
    server.eventually("the end of the connection", |counters| counters.connections_current == 0);
    let counters = server.stop(Duration::from_secs(5));
    assert!(counters.dropped_unsent > 0, "{counters:?}");
    assert_eq!(collect(&ended, 1), [CloseCode::TRY_AGAIN_LATER]);
    assert_eq!((counters.connections_closed, counters.timeouts_close), (1, 0));
}

fn an_outbox_filled_on_open_follows_the_answer_to_the_upgrade(driver: Driver) {
    let full = OutboxFull::Close(CloseCode::TRY_AGAIN_LATER);
    let server = Server::start(tight(driver, full), |_| {
        Script::echo().on_open(|connection| {
            for index in 0..200 {
                let _ = connection.send(&numbered(index, 1000));
            }
        })
    });
    // `connect` wants the answer to its upgrade first.
    let mut client = server.connect();
    assert_eq!(client.receive_close(), Some(1013));
}

fn an_outbox_with_room_for_one_message_serves_who_reads(driver: Driver) {
    let mut config = tight(driver, OutboxFull::Close(CloseCode::TRY_AGAIN_LATER));
    config.message_bytes_max = 64 * 1024;
    config.outbox_bytes_max = frame_bytes(config.message_bytes_max);
    config.outbox_bytes_high = config.outbox_bytes_max;
    let server = Server::start(config, |_| {
        Script::echo().on_message(|connection, message| {
            // The next one arrives meanwhile, and is received in the same turn.
            thread::sleep(Duration::from_millis(100));
            let _ = connection.send(message);
        })
    });
    let mut client = server.connect();
    client.send_binary(b"first");
    for bytes in [100, 64 * 1024] {
        thread::sleep(Duration::from_millis(50));
        client.send_binary(&noise(bytes, 0));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.receive_binary(), b"first");
    for bytes in [100, 64 * 1024] {
        assert!(client.receive_binary() == noise(bytes, 0), "{bytes} bytes");
    }
}

fn relayed_messages_are_never_torn(driver: Driver) {
    let mut config = tight(driver, OutboxFull::DropNewest);
    config.message_bytes_max = 2 * OUTBOX_BYTES;
    let server = Server::start(config, |_| Script::echo());
    let mut client = Client::connect_narrow(server.address, 32 * 1024);
    let bytes = [5000, 20, 30_000, 99_000, 70, 8000, 16_000, 4096, 4095, 1, 99_990, 120_000, 9000];
    let start = Instant::now();
    let mut count = 0;
    while server.counters().dropped_newest < 100 {
        client.send_binary(&numbered(count, bytes[count % bytes.len()]));
        count += 1;
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    let mut last = None;
    while let Some(received) = client.receive_within(Duration::from_secs(1)) {
        let Received::Binary(payload) = received else { panic!("{received:?}") };
        let number = number(&payload);
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    client.echo("still here");
    let counters = server.counters();
    assert_eq!(counters.messages_received, counters.messages_sent + counters.dropped_newest);
    client.close();
}

fn unread_pongs_are_bounded_and_the_newest_arrives(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| {
        let tell = tell.clone();
        Script::echo().on_message(move |connection, _| {
            tell.send(connection.outbox_bytes()).expect("the test listens");
        })
    });
    let mut client = Client::connect_narrow(server.address, 32 * 1024);
    let mut sent: u64 = 0;
    let mut most = 0;
    while sent < 200_000 {
        let mut pings = Vec::new();
        for _ in 0..1000 {
            let mut payload = [7; 125];
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            pings.extend(client.frame(OpCode::Ping, &payload));
            sent += 1;
        }
        pings.extend(client.frame(OpCode::Text, b"how much?"));
        client.write(&pings);
        most = most.max(collect(&told, 1)[0]);
    }
    // They have a limit of their own, whatever messages may take.
    assert!(most <= 4096, "{most} bytes of pongs");
    assert!(most > 2048, "the peer's buffers took it all: {most}");
    let mut last = None;
    while last != Some(sent - 1) {
        let Received::Pong(payload) = client.receive() else { panic!("not a pong") };
        let number = u64::from_be_bytes(*payload.first_chunk().expect("a number"));
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    client.close();
}

fn a_stalled_send_survives_a_quiet_second(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| sender(&tell));
    // Many, because it is a matter of chance which of a connection's operations is found first.
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect_narrow(server.address, 32 * 1024)).collect();
    for client in &mut clients {
        fill(client, &told, 200);
    }
    // Their receives are taken back in the meantime; their sends are not.
    thread::sleep(Duration::from_millis(2500));
    for client in &mut clients {
        let mut last = None;
        while let Some(received) = client.receive_within(Duration::from_millis(200)) {
            let Received::Binary(payload) = received else { panic!("{received:?}") };
            let number = number(&payload);
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
        }
        client.send_text("1 8");
        collect(&told, 1);
        client.receive_binary();
    }
    assert_eq!(server.counters().connections_closed, 0);
}

fn a_peer_that_does_not_read_is_heard(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let mut config = tight(driver, OutboxFull::DropNewest);
    // No timer of the connection's own makes the server look at it.
    config.ping_interval = None;
    config.handshake_timeout = Duration::from_secs(120);
    let server = Server::start(config, move |_| sender(&tell));
    for bytes in [700, 3000, 6000] {
        let mut client = Client::connect_narrow(server.address, 32 * 1024);
        let mut waiting = 0;
        // One answer a message, until one of them waits in the outbox behind one that the socket refuses.
        while waiting < 2 * bytes {
            client.send_text(&format!("1 {bytes}"));
            waiting = collect(&told, 1)[0].outbox_bytes[0];
        }
        client.reset();
        wait_until_empty(&server);
    }
}

fn an_outbox_that_drains_slowly_stays_in_order(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(tight(driver, OutboxFull::DropNewest), move |_| sender(&tell));
    let mut client = Client::connect_narrow(server.address, 32 * 1024);
    let (mut last, mut arrived, mut asked) = (None, 0, 0);
    for round in 0..400 {
        client.send_text(&format!("20 {}", [30, 700, 5000, 9000, 17_000][round % 5]));
        asked += 20;
        for told in collect(&told, 1) {
            assert!(told.outbox_bytes.iter().all(|bytes| *bytes <= OUTBOX_BYTES));
        }
        // Sometimes a little, sometimes all of it.
        let patience = Duration::from_millis(if round % 50 == 49 { 100 } else { 1 });
        for _ in 0..if round % 50 == 49 { usize::MAX } else { round % 23 } {
            let Some(received) = client.receive_within(patience) else { break };
            let Received::Binary(payload) = received else { panic!("{received:?}") };
            let number = number(&payload);
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
            arrived += 1;
        }
    }
    while client.receive_within(Duration::from_millis(500)).is_some() {
        arrived += 1;
    }
    let counters = server.counters();
    assert_eq!(counters.messages_sent + counters.dropped_newest, asked);
    assert_eq!(counters.messages_sent, arrived);
    client.close();
}

fn a_stream_that_never_ends_does_not_starve_the_others(driver: Driver) {
    check_stream(driver, |connection| while connection.send(&[7; 16 * 1024][..]) == SendStatus::Sent {});
}

fn a_stream_through_a_topic_does_not_starve_the_others(driver: Driver) {
    check_stream(driver, |connection| {
        assert_eq!(connection.publish_to_all("stream", &vec![7; 300 * 1024]), PublishStatus::Published);
    });
}

/// A connection sends with `fill_up` whenever there is room, to a peer that reads as fast as it can:
/// everything fits into the socket.
fn check_stream(driver: Driver, fill_up: fn(&mut Connection<'_, ()>)) {
    let most_in_a_row = Arc::new(AtomicU32::new(0));
    let most = Arc::clone(&most_in_a_row);
    let server = Server::start(config(driver), move |_| {
        let drains = Rc::new(Cell::new(0));
        let (drained, most) = (Rc::clone(&drains), Arc::clone(&most));
        Script::echo()
            .on_message(move |connection, message| {
                match message.bytes() {
                    b"subscribe" => return connection.subscribe("stream").expect("it is allowed"),
                    b"stream" => {}
                    _ => return assert!(connection.send(message).is_sent()),
                }
                let (drains, most) = (Rc::clone(&drains), Arc::clone(&most));
                connection.spawn(async move {
                    // Wants its turn whenever there is one.
                    poll_fn(|context| {
                        most.fetch_max(drains.take(), Ordering::Relaxed);
                        context.waker().wake_by_ref();
                        Poll::<()>::Pending
                    })
                    .await;
                });
                fill_up(connection);
            })
            .on_drain(move |connection| {
                drained.set(drained.get() + 1);
                fill_up(connection);
            })
    });
    let mut reader = server.connect();
    reader.send_text("subscribe");
    reader.send_text("stream");
    let mut stream = reader.stream.try_clone().expect("clone");
    let reading = thread::spawn(move || {
        let mut input = vec![0; 1 << 20];
        while stream.read(&mut input).is_ok_and(|received| received > 0) {}
    });
    let mut polite = server.connect();
    for _ in 0..20 {
        polite.echo("am I heard?");
    }
    server.stop(Duration::from_millis(200));
    reading.join().expect("the reader");
    let most = most_in_a_row.load(Ordering::Relaxed);
    assert!((1..=16).contains(&most), "{most} times a quarter of a MiB before the others had their turn");
}

/// They read all that comes, at once, so that there is always room for more.
fn a_peer_that_is_streamed_to_is_heard(driver: Driver) {
    const PEERS: usize = 8;
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let tell = tell.clone();
        let fill_up = |connection: &mut Connection<'_, ()>| {
            while connection.send(&[7; 64 * 1024]) == SendStatus::Sent {}
        };
        Script::echo()
            .on_message(move |connection, message| match message.bytes() {
                b"stream" => fill_up(connection),
                _ => tell.send(connection.id()).expect("the test listens"),
            })
            .on_drain(fill_up)
    });
    let mut peers: Vec<Client> = (0..PEERS).map(|_| server.connect()).collect();
    let begun = Arc::new(Barrier::new(PEERS + 1));
    let readers: Vec<_> = peers
        .iter_mut()
        .map(|peer| {
            peer.send_text("stream");
            let (mut stream, begun) = (peer.stream.try_clone().expect("clone"), Arc::clone(&begun));
            thread::spawn(move || {
                let mut input = vec![0; 1 << 20];
                let _first = stream.read(&mut input);
                begun.wait();
                while stream.read(&mut input).is_ok_and(|received| received > 0) {}
            })
        })
        .collect();
    begun.wait();
    for peer in &mut peers {
        peer.send_text("am I heard?");
        collect(&told, 1);
    }
    server.stop(Duration::from_millis(200));
    readers.into_iter().for_each(|reader| reader.join().expect("the reader"));
}

fn a_relayed_message_that_cannot_leave_is_counted(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let gate = Arc::new(Mutex::new(()));
    let theirs = Arc::clone(&gate);
    let server = Server::start(config(driver), move |_| {
        let (tell, gate) = (tell.clone(), Arc::clone(&theirs));
        Script::echo().on_message(move |connection, message| {
            assert_eq!(connection.send(message), SendStatus::Sent);
            tell.send(()).expect("the test listens");
            drop(gate.lock());
        })
    });
    let mut client = server.connect();
    let held = gate.lock().expect("nobody panicked");
    client.send_binary(&noise(6000, 1));
    collect(&told, 1);
    client.reset();
    drop(held);
    wait_until_empty(&server);
    let counters = server.counters();
    assert_eq!((counters.messages_sent, counters.bytes_sent > 6000), (1, false));
    assert_eq!(counters.dropped_unsent, 1);
}
