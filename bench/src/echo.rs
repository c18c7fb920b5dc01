//! `echo`: closed loop. Every connection keeps a fixed number of messages in flight and sends the next when a
//! reply is in.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::dial::{Upgraded, open_all};
use crate::lane::Lane;
use crate::options::{Common, Messages, Timing, Window};
use crate::sample::Sampler;

/// The options of `echo`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Echo {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    messages: Messages,
    #[command(flatten)]
    #[serde(flatten)]
    timing: Timing,
    /// How many connections there are.
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// How many messages each connection keeps in flight.
    #[arg(long, default_value_t = 1)]
    in_flight: u64,
    /// The client's threads, which share the connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Ends the measured phase after so many messages, if that is sooner.
    #[arg(long = "messages")]
    messages_max: Option<u64>,
}

/// What one thread saw of the measured phase.
#[derive(Debug)]
struct Measured {
    messages: u64,
    seconds: f64,
    sampler: Option<Sampler>,
}

/// Runs the scenario.
///
/// # Errors
/// A connection failed, or a reply was wrong, lost or late.
pub(crate) fn run(options: &Echo) -> Result<Value> {
    let opened = open_all(&options.common.destination()?, options.connections)?;
    let mut shares: Vec<Vec<(u64, Upgraded)>> = (0..options.threads.max(1)).map(|_| Vec::new()).collect();
    let threads = shares.len();
    for (tag, upgraded) in (0..).zip(opened) {
        shares[tag as usize % threads].push((tag, upgraded));
    }
    let window = options.timing.window();
    let measured: Vec<Result<Measured>> = thread::scope(|scope| {
        let run_share = |(index, share)| scope.spawn(move || run_lane(options, index, share, window));
        let threads: Vec<_> = shares.into_iter().enumerate().map(run_share).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    let measured = measured.into_iter().collect::<Result<Vec<_>>>()?;

    let messages = measured.iter().map(|lane| lane.messages).sum::<u64>();
    let rate = measured.iter().map(|lane| lane.messages as f64 / lane.seconds).sum::<f64>();
    let cost = measured.iter().find_map(|lane| lane.sampler.as_ref()).map(|sampler| sampler.cost(messages));
    Ok(json!({ "messages": messages, "messages_per_second": rate, "cost": cost }))
}

fn run_lane(options: &Echo, index: usize, share: Vec<(u64, Upgraded)>, window: Window) -> Result<Measured> {
    options.common.pin(index)?;
    let mut lane = options.common.lane(&options.messages, index)?;
    for (tag, upgraded) in share {
        lane.adopt(upgraded, tag)?;
    }
    let threads = options.threads.max(1);
    let mut sampler = (index == 0).then(|| Sampler::new(options.common.server_pid)).transpose()?;
    sampler = sampler.map(|sampler| sampler.client_threads(threads));
    let messages_max = options.messages_max.map_or(u64::MAX, |messages| messages / threads as u64);

    for connection in 0..lane.connections() {
        lane.send(connection, options.in_flight)?;
    }
    exchange(&mut lane, |_, now| now >= window.from)?;
    let from = Instant::now();
    let until = window.until_from(from);
    sampler.as_mut().map_or(Ok(()), Sampler::begin)?;
    let messages = exchange(&mut lane, |messages, now| now >= until || messages >= messages_max)?;
    let seconds = from.elapsed().as_secs_f64();
    sampler.as_mut().map_or(Ok(()), Sampler::end)?;
    collect_rest(&mut lane)?;
    Ok(Measured { messages, seconds, sampler })
}

/// Answers every reply with the next message until `over`, and returns how many replies there were.
fn exchange(lane: &mut Lane, over: impl Fn(u64, Instant) -> bool) -> Result<u64> {
    let mut messages = 0;
    while !over(messages, Instant::now()) {
        // Reading the clock costs as much as checking a small reply.
        for _ in 0..TURNS_PER_CLOCK_READING {
            for index in 0..lane.wait(WAIT)? {
                let (connection, replies) = lane.serve(index)?;
                if replies > 0 {
                    messages += replies;
                    lane.send(connection, replies)?;
                }
            }
        }
    }
    Ok(messages)
}

/// Waits for the replies still owed: none may be missing.
fn collect_rest(lane: &mut Lane) -> Result<()> {
    let owed = |lane: &Lane| {
        (0..lane.connections()).map(|index| lane.sent(index) - lane.received(index)).sum::<u64>()
    };
    let mut missing = owed(lane);
    let deadline = Instant::now() + REST_TIMEOUT;
    while missing > 0 {
        for index in 0..lane.wait(WAIT)? {
            missing -= lane.serve(index)?.1;
        }
        if Instant::now() > deadline {
            return Err(format!("{missing} replies are missing").into());
        }
    }
    Ok(())
}

const TURNS_PER_CLOCK_READING: u32 = 8;
const WAIT: Duration = Duration::from_millis(10);
const REST_TIMEOUT: Duration = Duration::from_secs(5);
