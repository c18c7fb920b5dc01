//! The server of these tests: its clients say by texts what it is to do for them.
//!
//! `sub T`, `unsub T`, `state` and `id` are answered with a text; `pub T payload`, `all T payload` and
//! `key T key payload` publish and are not answered, nor is `prep T,T,... payload`, which encodes once for
//! all of them.

use std::sync::mpsc;

use ringwire::{
    CloseCode, Config, Conflation, Connection, ConnectionId, Cores, Driver, DropCounts, Handler, Message,
    OutboxFull, PreparedMessage, TopicRules, TopicSettings, Upgrade, UpgradeRequest,
};

use crate::{
    client::Client,
    server::{Server, collect},
};

/// What a connection tells of itself when asked, past its own outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) id: ConnectionId,
    pub(crate) outbox_bytes: usize,
    pub(crate) drops: DropCounts,
    pub(crate) subscriptions: usize,
}

pub(crate) struct Commands {
    pub(crate) tell: mpsc::Sender<State>,
    pub(crate) messages: usize,
}

impl Handler for Commands {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        self.messages += 1;
        let Message::Text(text) = message else { panic!("a command is a text") };
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (topic, payload) = rest.split_once(' ').unwrap_or((rest, ""));
        match command {
            "sub" => {
                let answer = match connection.subscribe(topic) {
                    Ok(()) => "subscribed".to_owned(),
                    Err(error) => format!("{error:?}"),
                };
                let _ = connection.send(&answer);
            }
            "unsub" => {
                connection.unsubscribe(topic);
                let _ = connection.send("unsubscribed");
            }
            "pub" => drop(connection.publish(topic, payload)),
            "all" => drop(connection.publish_to_all(topic, payload)),
            "prep" => {
                let prepared = PreparedMessage::new(payload);
                for topic in topic.split(',') {
                    connection.publish_prepared(topic, &prepared);
                }
            }
            "key" => {
                let (key, payload) = payload.split_once(' ').expect("a key and a payload");
                connection.publish_keyed(topic, key.parse().expect("a key"), payload);
            }
            "echo" => drop(connection.send(rest)),
            "state" => {
                let state = State {
                    id: connection.id(),
                    outbox_bytes: connection.outbox_bytes(),
                    drops: connection.drops(),
                    subscriptions: connection.subscriptions(),
                };
                self.tell.send(state).expect("the test listens");
            }
            other => panic!("no such command: {other}"),
        }
    }

    fn allows_subscription(_: &(), topic: &str) -> bool {
        !topic.starts_with("secret")
    }
}

/// A server and what its connections tell.
pub(crate) struct Topics {
    pub(crate) server: Server,
    told: mpsc::Receiver<State>,
}

/// Two shards and rules by the beginning of a topic's name.
pub(crate) fn config(driver: Driver) -> Config {
    let mut config = crate::server::config(driver);
    config.cores = Cores::Count(2);
    config.topic_rules = TopicRules::new(|name| {
        let mut settings = TopicSettings::default();
        match name.split('/').next() {
            Some("newest") => settings.full = Some(OutboxFull::DropNewest),
            Some("oldest") => settings.full = Some(OutboxFull::DropOldest),
            Some("close") => settings.full = Some(OutboxFull::Close(CloseCode::TRY_AGAIN_LATER)),
            Some("latest") => {
                settings.full = Some(OutboxFull::DropNewest);
                settings.conflation = Conflation::Latest;
            }
            Some("hour") => settings.window = Some(std::time::Duration::from_secs(3600)),
            Some("window") => settings.window = Some(std::time::Duration::from_millis(20)),
            _ => {}
        }
        settings
    });
    config
}

impl Topics {
    pub(crate) fn start(config: Config) -> Self {
        let (tell, told) = mpsc::channel();
        let server = Server::start(config, move |_| Commands { tell: tell.clone(), messages: 0 });
        Self { server, told }
    }

    /// Asks a connection about itself; its client need not read for that.
    pub(crate) fn state(&self, client: &mut Client) -> State {
        client.send_text("state");
        collect(&self.told, 1)[0]
    }

    /// A client on this shard: the kernel chooses, so it is asked until it has chosen that one.
    pub(crate) fn connect_on(&self, shard: usize) -> Client {
        self.on(shard, || self.server.connect())
    }

    /// The same with hardly a receive buffer.
    pub(crate) fn connect_narrow_on(&self, shard: usize) -> Client {
        self.on(shard, || Client::connect_narrow(self.server.address, 4096))
    }

    fn on(&self, shard: usize, connect: impl Fn() -> Client) -> Client {
        for _ in 0..200 {
            let mut client = connect();
            if self.state(&mut client).id.shard() == shard {
                return client;
            }
        }
        panic!("200 connections, none on shard {shard}");
    }

    /// Waits until a topic has this many subscribers.
    pub(crate) fn wait_for_subscribers(&self, topic: &str, count: usize) {
        let handle = &self.server.handle;
        crate::client::eventually("the right number of subscribers", || handle.subscribers(topic) == count);
    }
}

/// Subscribes; the acknowledgement is the next that arrives.
pub(crate) fn subscribe(client: &mut Client, topic: &str) {
    client.send_text(&format!("sub {topic}"));
    assert_eq!(client.receive_text(), "subscribed");
}

/// Wants these texts in this order, and nothing between them.
pub(crate) fn expect(client: &mut Client, texts: impl IntoIterator<Item = String>) {
    for text in texts {
        assert_eq!(client.receive_text(), text);
    }
}
