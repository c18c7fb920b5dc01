//! A chat among the connections of one core, with sessions, the subprotocol `chat.v1` and a login that takes
//! time.
//!
//! Connect to `/?token=TOKEN` with a token of the table below. Everything said goes to everyone else; `/later
//! SECONDS TEXT` comes back to oneself. Every core is a room of its own: start with `--cores 1` for a single
//! one.

use std::{cell::RefCell, collections::BTreeMap, error::Error, rc::Rc, time::Duration};

use clap::Parser;
use mimalloc::MiMalloc;
use ringwire::{
    CloseCode, CloseReason, Connection, ConnectionId, Engine, Handler, Message, Upgrade, UpgradeRequest,
};
use ringwire_examples::{ServerArgs, log_to_stderr, print_ready};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A chat among the connections of one core.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
}

const SUBPROTOCOL: &str = "chat.v1";
const TOKENS: [(&str, &str); 3] = [("7f3a", "Ada"), ("91c2", "Grace"), ("d04e", "Linus")];

/// What is known of a connection from its login on.
struct Member {
    name: &'static str,
}

/// The room of one core. Nobody else has it: no lock is needed, only a cell for the futures that use it as
/// well.
#[derive(Default)]
struct Chat {
    room: Rc<RefCell<BTreeMap<ConnectionId, &'static str>>>,
}

impl Handler for Chat {
    type Session = Member;

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<Member> {
        if !request.subprotocols().any(|offer| offer == SUBPROTOCOL) {
            return Upgrade::reject(400, "this server speaks chat.v1 only\n");
        }
        let Some(token) = request.query().and_then(|query| query.strip_prefix("token=")) else {
            return Upgrade::reject(401, "a token is needed: /?token=TOKEN\n");
        };
        // The request is only lent: the future takes with it what it needs.
        let token = token.to_owned();
        Upgrade::defer(async move {
            match look_up(&token).await {
                Some(name) => Upgrade::accept(Member { name }).subprotocol(SUBPROTOCOL),
                None => Upgrade::reject(403, "nobody has this token\n"),
            }
        })
    }

    fn on_open(&mut self, connection: &mut Connection<'_, Member>) {
        let name = connection.session().name;
        let names: Vec<_> = self.room.borrow().values().copied().collect();
        let _ = connection.send(&format!("hello {name}, here are: {}", names.join(", ")));
        self.room.borrow_mut().insert(connection.id(), name);
        self.tell_others(connection, format!("{name} has come"));
    }

    fn on_message(&mut self, connection: &mut Connection<'_, Member>, message: Message<'_>) {
        let Message::Text(text) = message else {
            return connection.close(CloseCode::UNSUPPORTED, "chat.v1 is text");
        };
        match text.strip_prefix("/later ").map(|rest| rest.split_once(' ')) {
            None => self.tell_others(connection, format!("{}: {text}", connection.session().name)),
            Some(Some((seconds, text))) if seconds.parse::<u8>().is_ok() => {
                let pause = Duration::from_secs(seconds.parse().unwrap_or_default());
                remind(connection, pause, text.to_owned());
            }
            Some(_) => {
                let _ = connection.send("/later SECONDS TEXT, with at most 255 seconds");
            }
        }
    }

    fn on_close(&mut self, connection: &mut Connection<'_, Member>, _: &CloseReason) {
        self.room.borrow_mut().remove(&connection.id());
        self.tell_others(connection, format!("{} has left", connection.session().name));
    }
}

impl Chat {
    /// A call is lent its own connection and no other, so a future does this, which runs as soon as the call
    /// is over.
    fn tell_others(&self, connection: &mut Connection<'_, Member>, text: String) {
        let (room, handle, own) = (Rc::clone(&self.room), connection.handle(), connection.id());
        connection.spawn(async move {
            let others: Vec<_> = room.borrow().keys().copied().filter(|id| *id != own).collect();
            for id in others {
                // One that has just gone misses it; with one that does not keep up the engine does what
                // `--outbox-full` says.
                let _ = handle.with(id, |other| other.send(&text));
            }
        });
    }
}

fn remind(connection: &mut Connection<'_, Member>, pause: Duration, text: String) {
    let (handle, id) = (connection.handle(), connection.id());
    connection.spawn(async move {
        monoio::time::sleep(pause).await;
        let reminded = handle.with(id, |connection| connection.send(&text));
        if reminded.is_err() {
            tracing::info!(%id, "left before it was reminded");
        }
    });
}

/// Stands for a question to another service; anything that monoio can wait for will do.
async fn look_up(token: &str) -> Option<&'static str> {
    monoio::time::sleep(Duration::from_millis(50)).await;
    TOKENS.iter().find(|(known, _)| *known == token).map(|(_, name)| *name)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { server } = Arguments::parse();
    log_to_stderr();
    let engine = Engine::start(server.config(), |_| Chat::default())?;
    print_ready(&engine);
    engine.run_until_signal(Duration::from_secs(server.stop_seconds))?;
    Ok(())
}
