//! Deciding on a request: what the handler sees of it, and what of its answer reaches the client.

use std::{net::SocketAddr, sync::mpsc, time::Duration};

use ringwire::{CloseReason, Connection, Driver, Handler, HttpResponse, Message, Upgrade, UpgradeRequest};

use crate::{
    client::{Client, exchange, request, status},
    script::Script,
    server::{Server, collect, config},
};

on_both_drivers!(
    a_subprotocol_is_selected_from_the_offer,
    headers_reach_the_client_and_cannot_be_injected,
    a_refusal_carries_its_status_headers_and_body,
    the_handler_sees_the_request,
    a_session_stays_with_its_connection,
);

fn a_subprotocol_is_selected_from_the_offer(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_upgrade(|request| match request.path() {
            "/first" => match request.subprotocols().next() {
                Some(first) => Upgrade::accept(()).subprotocol(first),
                None => Upgrade::accept(()),
            },
            "/none" => Upgrade::accept(()),
            _ => Upgrade::accept(()).subprotocol("chat.v2"),
        })
    });
    for (path, offer, selected) in [
        ("/v2", &["chat.v1", "chat.v2"][..], Some("chat.v2")),
        ("/v2", &["chat.v1"], None),
        ("/v2", &["CHAT.V2"], None),
        ("/v2", &[], None),
        ("/first", &["b", "a"], Some("b")),
        ("/first", &[], None),
        ("/none", &["chat.v1"], None),
    ] {
        let (mut client, head) = Client::connect_to(server.address, path, offer);
        let line = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
        assert_eq!(line, selected, "{path} {offer:?}: {head}");
        client.echo("spoken");
        client.close();
    }
}

fn headers_reach_the_client_and_cannot_be_injected(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_upgrade(|_| {
            Upgrade::accept(())
                .header("Set-Cookie", "a=b; HttpOnly")
                .header("Set-Cookie", "c=d")
                .header("X-Split", "a\r\nX-Injected: 1")
                .header("X-Feed", "a\nX-Injected: 1")
                .header("X-Name\r\nX-Injected", "1")
                .header("X-Injected: 1\r\nX", "1")
                .header("X-Zero", "a\0b")
                .header("X Space", "a")
                .header("", "a")
                .header("Sec-WebSocket-Accept", "forged")
                .header("Sec-WebSocket-Extensions", "permessage-deflate")
                .header("Connection", "close")
                .header("Content-Length", "5")
                .header("Transfer-Encoding", "chunked")
        })
    });
    let (mut client, head) = Client::connect_to(server.address, "/", &[]);
    client.echo("a well-formed answer");
    let mut lines: Vec<_> = head.trim_end().lines().skip(1).collect();
    lines.sort_unstable();
    let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let expected =
        ["Connection: Upgrade", accept, "Set-Cookie: a=b; HttpOnly", "Set-Cookie: c=d", "Upgrade: websocket"];
    assert_eq!(lines, expected, "{head}");
}

fn a_refusal_carries_its_status_headers_and_body(driver: Driver) {
    let server = Server::start(config(driver), |_| {
        Script::echo().on_upgrade(|request| match request.path() {
            "/large" => Upgrade::reject(403, vec![b'x'; 300_000]),
            "/with" => Upgrade::reject_with(
                HttpResponse::new(429)
                    .header("Retry-After", "7")
                    .header("X-Evil", "a\r\nb: c")
                    .body("slower"),
            ),
            "/ok" => Upgrade::reject(200, "not an error"),
            "/absurd" => Upgrade::reject(101, ""),
            _ => Upgrade::reject(401, "no"),
        })
    });
    let answer = |path| exchange(server.address, &request(path, &[]));
    assert_eq!(status(&answer("/")), 401);
    assert!(answer("/").ends_with("Connection: close\r\nContent-Length: 2\r\n\r\nno"), "{}", answer("/"));
    let large = answer("/large");
    assert!(large.starts_with("HTTP/1.1 403") && large.ends_with(&"x".repeat(300_000)));
    let with = answer("/with");
    assert!(with.contains("429") && with.contains("Retry-After: 7\r\n") && !with.contains("Evil"), "{with}");
    // What would not refuse, or would open by half, is an error of the handler's: never a 101.
    assert_ne!(status(&answer("/absurd")), 101);
    assert_ne!(status(&answer("/ok")), 101);
    assert_eq!(server.stop(Duration::from_secs(5)).connections_opened, 0);
}

fn the_handler_sees_the_request(driver: Driver) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| {
        let (tell, tell_open) = (tell.clone(), tell.clone());
        let describe = |request: &UpgradeRequest<'_>| {
            let (path, query, host) = (request.path(), request.query(), request.host());
            format!("{path} {query:?} {host} {:?} {:?}", request.header("x-test"), request.origin())
        };
        Script::echo()
            .on_upgrade(move |request| {
                tell.send((describe(request), request.peer_address())).expect("the test listens");
                Upgrade::accept(())
            })
            .on_open(move |connection| {
                tell_open.send(("open".to_owned(), connection.peer_address())).expect("the test listens");
            })
    });
    let mut client = Client::connect_raw(server.address);
    let text = String::from_utf8(request("/room/7?token=a%20b&x", &[])).expect("ASCII");
    client.write(text.replacen("Host", "X-Test: yes\r\nOrigin: https://example.org\r\nHost", 1).as_bytes());
    client.read_upgrade();
    let address: SocketAddr = client.stream.local_addr().expect("an address");
    let seen = r#"/room/7 Some("token=a%20b&x") localhost Some("yes") Some("https://example.org")"#;
    assert_eq!(collect(&told, 2), [(seen.to_owned(), address), ("open".to_owned(), address)]);
}

fn a_session_stays_with_its_connection(driver: Driver) {
    struct Counting(mpsc::Sender<(String, u32)>);
    impl Handler for Counting {
        type Session = (String, u32);
        fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<(String, u32)> {
            Upgrade::accept((request.path().to_owned(), 0))
        }
        fn on_message(&mut self, connection: &mut Connection<'_, (String, u32)>, _: Message<'_>) {
            let (path, count) = connection.session_mut();
            *count += 1;
            let text = format!("{path} {count}");
            let _ = connection.send(&text);
        }
        fn on_close(&mut self, connection: &mut Connection<'_, (String, u32)>, _: &CloseReason) {
            self.0.send(connection.session().clone()).expect("the test listens");
        }
    }
    let (tell, told) = mpsc::channel();
    let server = Server::start(config(driver), move |_| Counting(tell.clone()));
    let mut clients: Vec<_> =
        (0..5).map(|index| Client::connect_to(server.address, &format!("/{index}"), &[]).0).collect();
    for count in 1..=4 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.send_text("");
            assert_eq!(client.receive_text(), format!("/{index} {count}"));
        }
    }
    clients.into_iter().for_each(Client::close);
    let mut sessions = collect(&told, 5);
    sessions.sort();
    let expected: Vec<_> = (0..5).map(|index| (format!("/{index}"), 4)).collect();
    assert_eq!(sessions, expected);
}
