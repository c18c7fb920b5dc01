//! Receive buffers on lease: given back by those who go quiet, without a byte lost, and never above their
//! cap.

use std::{thread, time::Duration};

use ringwire::{Driver, OutboxFull};

use crate::{
    client::{Client, noise},
    script::Script,
    server::{Server, config},
};

on_both_drivers!(
    a_quiet_connection_gives_its_buffer_back,
    nothing_is_lost_around_the_moment_of_giving_back,
    a_pool_at_its_cap_is_no_obstacle,
    a_cork_pool_that_was_emptied_fills_again,
);

fn active(client: &mut Client, messages: usize) {
    (0..messages).for_each(|index| client.echo(&format!("active {index}")));
}

fn a_quiet_connection_gives_its_buffer_back(driver: Driver) {
    let server = Server::echo(driver);
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for round in 1..3 {
        clients.iter_mut().for_each(|client| active(client, 8));
        if driver == Driver::IoUring {
            server.eventually("the buffers", |counters| counters.receives_cancelled >= 20 * round);
        } else {
            thread::sleep(Duration::from_millis(1200));
        }
    }
    clients.iter_mut().for_each(|client| active(client, 8));
    clients.into_iter().for_each(Client::close);
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.messages_received, counters.messages_sent);
    assert_eq!(counters.messages_received, 20 * 8 * 3);
    if driver == Driver::Epoll {
        assert_eq!(counters.receives_cancelled, 0);
    }
}

fn nothing_is_lost_around_the_moment_of_giving_back(driver: Driver) {
    let server = Server::echo(driver);
    let address = server.address;
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            thread::spawn(move || {
                let mut clients: Vec<_> = (0..50).map(|_| Client::connect(address)).collect();
                for round in 0..4 {
                    clients.iter_mut().for_each(|client| active(client, 6));
                    // The look for quiet connections comes once a second, at those that are quiet for one:
                    // the messages arrive over that whole second, so that some meet the
                    // very moment.
                    thread::sleep(Duration::from_millis(950 + 10 * thread));
                    for (index, client) in clients.iter_mut().enumerate() {
                        let payload = noise(1 + (index * 191) % 9000, thread * 1000 + round);
                        client.send_binary(&payload[..payload.len() / 2]);
                        client.send_binary(&payload);
                        thread::sleep(Duration::from_millis(21));
                        assert!(client.receive_binary() == payload[..payload.len() / 2]);
                        assert!(client.receive_binary() == payload);
                    }
                }
                clients.into_iter().for_each(Client::close);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("nothing is lost"));
    let counters = server.stop(Duration::from_secs(5));
    assert_eq!(counters.messages_received, 200 * 4 * 8);
    assert_eq!(counters.messages_sent, counters.messages_received);
    assert_eq!(counters.receives_cancelled > 0, driver == Driver::IoUring);
}

fn a_pool_at_its_cap_is_no_obstacle(driver: Driver) {
    let mut config = config(driver);
    // Ten small buffers for fifty active connections, none of them large.
    config.buffer_bytes_max = 10 * 4096;
    config.buffers_preallocated = 256;
    config.outbox_full = OutboxFull::DropNewest;
    let server = Server::start(config, |_| Script::echo());
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for round in 0..20 {
        let payload = noise([20, 3000, 12_000, 40][round % 4], round as u64);
        clients.iter_mut().for_each(|client| client.send_binary(&payload));
        clients.iter_mut().for_each(|client| assert!(client.receive_binary() == payload));
    }
    if driver == Driver::IoUring {
        server.eventually("refused leases", |counters| counters.leases_refused > 0);
    }
    clients.into_iter().for_each(Client::close);
}

fn a_cork_pool_that_was_emptied_fills_again(driver: Driver) {
    let server = Server::echo(driver);
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for _ in 0..2 {
        clients.iter_mut().for_each(|client| client.send_text("together"));
        clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), "together"));
        thread::sleep(Duration::from_millis(3200));
    }
    clients.iter_mut().for_each(|client| active(client, 5));
}
