//! A producer outside the engine publishes prices thousands of times a second; slow readers get the latest of
//! each.
//!
//! Connect a client that reads slowly, or suspend it for some seconds (pings that are not answered would end
//! it): when it reads again, it continues with the newest value of every symbol, behind what was queued up to
//! its high mark and what the kernel had taken, while all others got every update. Once a second the counters
//! are printed; `conflated` begins to count when the kernel's buffers and the high mark are full.

use std::{
    error::Error,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use mimalloc::MiMalloc;
use ringwire::{
    Conflation, Connection, Engine, EngineHandle, Handler, Message, TopicRules, TopicSettings, Upgrade,
    UpgradeRequest,
};
use ringwire_examples::{ServerArgs, log_to_stderr, print_ready};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const TOPIC: &str = "prices";

/// Publishes prices to everybody who connects.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// Updates a second, all symbols together
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    /// Symbols, each a key of its own
    #[arg(long, default_value_t = 100)]
    symbols: u32,
}

struct Ticker;

/// What is kept of a reader.
#[derive(Default)]
struct Reader {
    is_behind: bool,
}

impl Handler for Ticker {
    type Session = Reader;

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<Reader> {
        Upgrade::accept(Reader::default())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, Reader>) {
        if let Err(error) = connection.subscribe(TOPIC) {
            tracing::warn!(%error, "not subscribed");
        }
    }

    fn on_message(&mut self, _: &mut Connection<'_, Reader>, _: Message<'_>) {}

    fn on_dropped(&mut self, connection: &mut Connection<'_, Reader>) {
        // It may have caught up since.
        let is_behind = connection.outbox_bytes() > 0;
        if is_behind && !std::mem::replace(&mut connection.session_mut().is_behind, true) {
            tracing::info!(id = %connection.id(), "reads slowly: gets the newest values only");
        }
    }

    fn on_drain(&mut self, connection: &mut Connection<'_, Reader>) {
        connection.session_mut().is_behind = false;
        tracing::info!(id = %connection.id(), dropped = connection.drops().total(), "caught up");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    log_to_stderr();
    let mut config = arguments.server.config();
    config.topic_rules = TopicRules::new(|_| {
        let mut settings = TopicSettings::default();
        settings.conflation = Conflation::Latest;
        settings
    });
    let engine = Engine::start(config, |_| Ticker)?;
    print_ready(&engine);
    let handle = engine.handle();
    let (rate, symbols) = (arguments.rate.max(1), arguments.symbols.max(1));
    thread::spawn(move || produce(&handle, rate, symbols));
    engine.run_until_signal(Duration::from_secs(arguments.server.stop_seconds))?;
    Ok(())
}

/// Publishes on a schedule, until the process ends.
fn produce(handle: &EngineHandle, rate: u32, symbols: u32) {
    let topic = handle.topic(TOPIC);
    let (start, mut reported) = (Instant::now(), Duration::ZERO);
    for update in 0u64.. {
        let due = Duration::from_secs_f64(update as f64 / f64::from(rate));
        thread::sleep(due.saturating_sub(start.elapsed()));
        let symbol = update % u64::from(symbols);
        let price = format!("{{\"symbol\":{symbol},\"update\":{update}}}");
        if let Err(error) = topic.publish_keyed(symbol, &price) {
            tracing::warn!(%error, "an update was lost");
        }
        if due - reported >= Duration::from_secs(1) {
            reported = due;
            let counters = handle.counters();
            println!(
                "{} updates, {} subscribers, {} delivered, {} conflated, {} dropped",
                update,
                topic.subscribers(),
                counters.deliveries,
                counters.conflated,
                counters.dropped_newest + counters.dropped_oldest + counters.dropped_by_close
            );
        }
    }
}
