//! Every connection subscribes to one topic; every message received is published to all others, on every
//! core.
//!
//! With `--echo` the publisher gets its messages as well. With `--window-ms` publications are gathered for so
//! long.

use std::{error::Error, time::Duration};

use clap::Parser;
use mimalloc::MiMalloc;
use ringwire::{Connection, Engine, Handler, Message, TopicRules, TopicSettings, Upgrade, UpgradeRequest};
use ringwire_examples::{ServerArgs, log_to_stderr, print_ready};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const TOPIC: &str = "all";

/// Publishes every WebSocket message to all other connections.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// The publisher gets its own messages too
    #[arg(long)]
    echo: bool,
    /// Gather publications for this many milliseconds
    #[arg(long)]
    window_ms: Option<u64>,
}

struct Fanout {
    echo: bool,
}

impl Handler for Fanout {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        if let Err(error) = connection.subscribe(TOPIC) {
            tracing::warn!(%error, "not subscribed");
        }
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        if self.echo {
            connection.publish_to_all(TOPIC, message);
        } else {
            connection.publish(TOPIC, message);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { server, echo, window_ms } = Arguments::parse();
    log_to_stderr();
    let mut config = server.config();
    config.topic_rules = TopicRules::new(move |_| {
        let mut settings = TopicSettings::default();
        settings.window = window_ms.map(Duration::from_millis);
        settings
    });
    let engine = Engine::start(config, move |_| Fanout { echo })?;
    print_ready(&engine);
    engine.run_until_signal(Duration::from_secs(server.stop_seconds))?;
    Ok(())
}
