//! A handler that panics costs the one connection it panicked for.

use std::{cell::Cell, rc::Rc, time::Duration};

use ringwire::{
    Config, Connection, Driver, Handler, HttpResponse, Message, OutboxFull, SendStatus, Upgrade,
    UpgradeRequest,
};

use crate::{
    client::{Client, Received, exchange, request, status},
    script::Script,
    server::{Server, config, wait_until_empty},
};

on_both_drivers!(
    a_panic_deciding_on_a_request_is_answered_with_500,
    a_panic_in_a_call_closes_the_connection_with_1011,
    a_panic_in_on_drain_closes_the_connection_with_1011,
    a_panic_in_on_dropped_closes_the_connection_with_1011,
    a_panic_in_on_close_is_counted,
    a_panic_in_a_future_is_counted,
    a_panic_in_the_drop_of_a_session_is_counted,
);

/// What a test with a panic begins and ends with: somebody else, who notices nothing.
fn beside(server: Server, test: impl FnOnce(&Server)) {
    let mut other = server.connect();
    other.echo("before");
    test(&server);
    other.echo("after");
    other.close();
    server.connect().echo("new");
    wait_until_empty(&server);
    server.stop(Duration::from_secs(5));
}

fn a_panic_deciding_on_a_request_is_answered_with_500(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo()
            .on_upgrade(|request| match request.path() {
                "/now" => panic!("in on_upgrade"),
                "/later" => Upgrade::defer(async {
                    monoio::time::sleep(Duration::from_millis(20)).await;
                    panic!("in a deferred decision")
                }),
                "/at-once" => Upgrade::defer(async { panic!("in a deferred decision, at once") }),
                _ => Upgrade::accept(()),
            })
            .on_http(|request| match request.path() {
                "/ok" => HttpResponse::new(200),
                _ => panic!("in on_http"),
            })
    });
    beside(server.expecting_panics(4), |server| {
        for path in ["/now", "/later", "/at-once"] {
            assert_eq!(status(&exchange(server.address, &request(path, &[]))), 500, "{path}");
        }
        assert_eq!(status(&exchange(server.address, b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n")), 500);
        assert_eq!(status(&exchange(server.address, b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n")), 200);
        assert_eq!(server.counters().connections_opened, 1);
    });
}

fn a_panic_in_a_call_closes_the_connection_with_1011(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        let panics = Rc::new(Cell::new(false));
        let decided = Rc::clone(&panics);
        Script::echo()
            .on_upgrade(move |request| {
                decided.set(request.path() == "/open");
                Upgrade::accept(())
            })
            .on_open(move |_| assert!(!panics.get(), "in on_open"))
            .on_message(|connection, message| match message {
                Message::Text("panic") => {
                    let _ = connection.send("before the panic");
                    panic!("in on_message")
                }
                Message::Text("handle") => {
                    let (handle, id) = (connection.handle(), connection.id());
                    connection.spawn(async move {
                        let _ = handle.with(id, |_| panic!("through a handle"));
                    });
                }
                Message::Binary(_) => {
                    // The payload is being relayed when the handler panics.
                    let _ = connection.send(message);
                    panic!("in on_message, with a relay")
                }
                _ => drop(connection.send(message)),
            })
    });
    beside(server.expecting_panics(4), |server| {
        let (mut client, _) = Client::connect_to(server.address, "/open", &[]);
        assert_eq!(client.receive_close(), Some(1011));
        client.receive_end();

        let mut client = server.connect();
        client.send_text("panic");
        client.send_text("not looked at");
        assert_eq!(client.receive_text(), "before the panic");
        assert_eq!(client.receive_close(), Some(1011));
        client.receive_end();

        let mut client = server.connect();
        client.send_text("handle");
        assert_eq!(client.receive_close(), Some(1011));
        client.receive_end();

        let mut client = server.connect();
        client.send_binary(&[5; 10_000]);
        assert_eq!(client.receive_binary(), [5; 10_000]);
        assert_eq!(client.receive_close(), Some(1011));
        client.receive_end();
    });
}

fn a_panic_in_on_drain_closes_the_connection_with_1011(driver: Driver) {
    a_panic_behind_much_closes_the_connection_with_1011(driver, |script| {
        script.on_drain(|_| panic!("in on_drain"))
    });
}

fn a_panic_in_on_dropped_closes_the_connection_with_1011(driver: Driver) {
    a_panic_behind_much_closes_the_connection_with_1011(driver, |script| {
        script.on_dropped(|_| panic!("in on_dropped"))
    });
}

/// There is room for it once, not twice.
fn a_panic_behind_much_closes_the_connection_with_1011(driver: Driver, panicking: fn(Script) -> Script) {
    let mut config: Config = config(driver);
    config.outbox_bytes_max = 10_000_000;
    config.outbox_bytes_high = 200_000;
    config.outbox_full = OutboxFull::DropNewest;
    let server = Server::start(config, move |_| {
        panicking(Script::echo().on_message(|connection, message| match message.bytes() {
            b"much" => (0..2).for_each(|_| assert_ne!(connection.send(&[1; 8_000_000]), SendStatus::Sent)),
            _ => assert_eq!(connection.send(&[1; 10]), SendStatus::Sent),
        }))
    });
    let server = server.expecting_panics(1);
    let mut other = server.connect();
    let mut client = server.connect();
    client.send_text("much");
    assert_eq!(client.receive_binary().len(), 8_000_000);
    assert_eq!(client.receive_close(), Some(1011));
    client.receive_end();
    other.send_text("little");
    assert_eq!(other.receive_binary().len(), 10);
}

fn a_panic_in_on_close_is_counted(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        let mut calls = 0;
        Script::echo().on_close(move |_, _| {
            calls += 1;
            assert!(calls > 2, "in on_close");
        })
    });
    beside(server.expecting_panics(2), |server| {
        server.connect().close();
        server.connect().reset();
        server.eventually("both ends", |counters| counters.connections_closed == 2);
    });
}

fn a_panic_in_a_future_is_counted(driver: Driver) {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("in the drop of a future");
        }
    }
    let server = Server::start(config(driver), |_| {
        Script::echo().on_message(|connection, message| {
            match message {
                Message::Text("now") => connection.spawn(async { panic!("in a future") }),
                Message::Text("later") => connection.spawn(async {
                    monoio::time::sleep(Duration::from_millis(20)).await;
                    panic!("in a future that had waited")
                }),
                Message::Text("drop") => connection.spawn(async {
                    let _guard = PanicsWhenDropped;
                    std::future::pending::<()>().await;
                }),
                _ => {}
            }
            let _ = connection.send(message);
        })
    });
    beside(server.expecting_panics(3), |server| {
        let mut client = server.connect();
        client.echo("now");
        client.echo("later");
        server.eventually("both panics", |counters| counters.handler_panics == 2);
        // A future belongs to the shard, not to the connection that started it. The one left panics at the
        // stop.
        client.echo("drop");
        client.echo("it lives");
        client.close();
    });
}

fn a_panic_in_the_drop_of_a_session_is_counted(driver: Driver) {
    struct Bomb(bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0, "in the drop of a session");
        }
    }
    struct Bombs;
    impl Handler for Bombs {
        type Session = Bomb;
        fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<Bomb> {
            Upgrade::accept(Bomb(false))
        }
        fn on_message(&mut self, connection: &mut Connection<'_, Bomb>, message: Message<'_>) {
            connection.session_mut().0 |= message.bytes() == b"arm";
            let _ = connection.send(message);
        }
    }
    beside(Server::start(config(driver), |_| Bombs).expecting_panics(1), |server| {
        let mut client = server.connect();
        client.echo("arm");
        client.close();
        let mut client = server.connect();
        client.echo("another");
        assert_eq!(client.receive_within(Duration::from_millis(50)), None::<Received>);
    });
}
