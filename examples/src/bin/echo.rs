//! Echoes every message. `--help` lists the arguments.
//!
//! `/reject` is answered with 403, `/later` is accepted by a deferred decision, the subprotocol `echo` is
//! selected where it is offered, and a plain `GET /` gets a page that talks to the server from a browser.

use std::{error::Error, time::Duration};

use clap::Parser;
use ringwire::{Connection, Engine, Handler, HttpRequest, HttpResponse, Message, Upgrade, UpgradeRequest};
use ringwire_examples::{ServerArgs, log_to_stderr, print_ready};

/// Echoes every WebSocket message.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
}

struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<()> {
        if request.path() == "/reject" {
            return Upgrade::reject(403, "this path is closed\n");
        }
        let upgrade = match request.subprotocols().find(|name| *name == "echo") {
            Some(name) => Upgrade::accept(()).subprotocol(name),
            None => Upgrade::accept(()),
        };
        if request.path() == "/later" { Upgrade::defer(async { upgrade }) } else { upgrade }
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        // A message that finds the outbox full is counted, and the connection closed.
        let _ = connection.send(message);
    }

    fn on_http(&mut self, request: &HttpRequest<'_>) -> HttpResponse {
        match request.path() {
            "/" => HttpResponse::new(200)
                .header("Content-Type", "text/html; charset=utf-8")
                .body(include_str!("../echo.html")),
            "/health" => HttpResponse::new(200).body("ok\n"),
            _ => HttpResponse::not_found(),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { server } = Arguments::parse();
    log_to_stderr();
    let engine = Engine::start(server.config(), |_| Echo)?;
    print_ready(&engine);
    engine.run_until_signal(Duration::from_secs(server.stop_seconds))?;
    Ok(())
}
