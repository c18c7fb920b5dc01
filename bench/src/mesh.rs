//! `mesh`: what it takes to get from one shard to another.
//!
//! The engine runs in this process, so that both ends of a hop read the same clock. A hop is a closure that a
//! shard's thread posts to another shard, whose bell is the one that publications ring. Afterwards
//! subscribers on all shards show how often publications wake a shard.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use ringwire::{
    Config, Connection, Cores, Driver, Engine, EngineHandle, HandleError, Handler, Message, Upgrade,
    protocol::UpgradeRequest,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Result,
    fanout::{self, Fanout},
    latency::Latencies,
};

/// The options of `mesh`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Mesh {
    #[command(flatten)]
    #[serde(flatten)]
    fanout: Fanout,
    /// How the engine speaks to the kernel.
    #[arg(long, value_enum, default_value = "io-uring")]
    driver: DriverName,
    /// How many hops to time in each state.
    #[arg(long, default_value_t = 2000)]
    hops: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum DriverName {
    IoUring,
    Epoll,
}

/// A shard of the engine under measurement.
struct Shard {
    hops: Latencies,
}

impl Handler for Shard {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::accept(())
    }

    fn on_open(&mut self, connection: &mut Connection<'_, ()>) {
        // The name is short and the only one.
        let _ = connection.subscribe(TOPIC);
    }

    fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
        connection.publish_to_all(TOPIC, message);
    }
}

/// Runs the scenario.
///
/// # Errors
/// The machine has one core, or a delivery was wrong or is missing.
pub(crate) fn run(options: &Mesh) -> Result<Value> {
    let mut config = Config::new(([127, 0, 0, 1], 0).into());
    config.cores = Cores::Count(2);
    config.driver = match options.driver {
        DriverName::IoUring => Driver::IoUring,
        DriverName::Epoll => Driver::Epoll,
    };
    let engine = Engine::start(config, |_| Shard { hops: Latencies::new() })?;
    let handle = engine.handle();
    let asleep = hops(&handle, options.hops)?;
    let awake = keep_awake(&handle, || hops(&handle, options.hops))?;

    let before = handle.counters();
    let mut results = fanout::run(&options.fanout.at(engine.local_address()))?;
    let after = handle.counters();
    handle.stop(STOP_DEADLINE);
    engine.join()?;

    let envelopes = after.envelopes_sent - before.envelopes_sent;
    let wakes = after.wakes - before.wakes;
    results["hop_asleep"] = asleep;
    results["hop_awake"] = awake;
    results["envelopes_sent"] = json!(envelopes);
    results["wakes"] = json!(wakes);
    results["wakes_elided"] = json!(after.wakes_elided - before.wakes_elided);
    let per_million = |count: u64| json!(wakes as f64 * 1e6 / count.max(1) as f64);
    results["wakes_per_million_messages"] = per_million(after.publications - before.publications);
    results["wakes_per_million_deliveries"] = per_million(after.deliveries - before.deliveries);
    Ok(results)
}

/// Times `count` hops from the first shard to the second, far enough apart for both to fall asleep.
fn hops(handle: &EngineHandle, count: u64) -> Result<Value> {
    handle.run_on(TO, |shard: &mut Shard| shard.hops = Latencies::new())?.wait()?;
    for _ in 0..count {
        let onward = handle.clone();
        let hop = move |_: &mut Shard| {
            let posted = Instant::now();
            onward.run_on(TO, move |shard: &mut Shard| shard.hops.record(posted.elapsed())).map(drop)
        };
        handle.run_on(FROM, hop)?.wait()??;
        std::thread::sleep(PAUSE);
    }
    Ok(handle.run_on(TO, |shard: &mut Shard| shard.hops.percentiles())?.wait()?)
}

/// Keeps the second shard from falling asleep while `measure` runs: it always has another closure to run.
fn keep_awake(handle: &EngineHandle, measure: impl FnOnce() -> Result<Value>) -> Result<Value> {
    let ended = Arc::new(AtomicBool::new(false));
    go_round(handle, &ended)?;
    let measured = measure();
    ended.store(true, Ordering::Relaxed);
    measured
}

fn go_round(handle: &EngineHandle, ended: &Arc<AtomicBool>) -> std::result::Result<(), HandleError> {
    let (again, ended) = (handle.clone(), Arc::clone(ended));
    let round = move |_: &mut Shard| {
        if !ended.load(Ordering::Relaxed) {
            // A stopping engine takes no more.
            let _ = go_round(&again, &ended);
        }
    };
    handle.run_on(TO, round).map(drop)
}

const TOPIC: &str = "all";
const FROM: usize = 0;
const TO: usize = 1;
const PAUSE: Duration = Duration::from_micros(500);
const STOP_DEADLINE: Duration = Duration::from_secs(2);
